"""What a shared encoder saves: SharedEncoderNet beside two separate networks of the same width on the same grid (CascadeNetwork).

    python scripts/benchmark_encoder.py

Each line comes from a process of its own: a training step and a prediction of one synthetic chest CT, cut to its body, the seconds
the best of three. Both networks see all of it at its own spacing, with the same number of features at that level: the cascade
localises on a grid as large as the CT and segments the box of all organs, the shared encoder cuts the box of each organ out of its
features. Weights are random, so boxes are those of the truth. "windows" is the shared encoder as it predicts after a training on
the smallest parts of CTs that plans have: it normalises by windows of that size.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from nnunet_oar.body import find_body
from nnunet_oar.datasets.phantom import REGIONS, make_phantom
from nnunet_oar.fit_shared_encoder import LEAST_SHARE
from nnunet_oar.losses import DiceCrossEntropyLoss, HardVoxelDiceLoss
from nnunet_oar.networks.cascade import CascadeNetwork
from nnunet_oar.networks.shared_encoder import SharedEncoderNet
from nnunet_oar.padding import pad_to
from nnunet_oar.plan import CascadePlan, SharedEncoderPlan
from nnunet_oar.roi import Box, resize

NETWORKS = {"training": ("separate", "shared"), "prediction": ("separate", "shared", "windows")}
MARGIN_MM = 10.0


class Shared:
    share = 1.0
    """Of the CT that training sees at once."""

    def __init__(self, image: Tensor, labels: Tensor, organs: tuple[str, ...], spacing_mm, features: int):
        margin = tuple(round(MARGIN_MM / spacing) for spacing in spacing_mm)
        plan = SharedEncoderPlan(
            organs=organs, spacing_mm=spacing_mm, grid_spacing_mm=spacing_mm, features=features, margin_vox=margin,
            crop_shape=tuple(round(size * self.share ** (1 / 3)) for size in image.shape[2:]),
        )  # fmt: skip
        self.network = SharedEncoderNet(image.shape[1], plan)
        self.network.decoders_trained.fill_(True)
        shape = self.network.padded(image.shape[2:])
        self.image, self.labels = pad_to(image, shape), pad_to(labels, shape)
        self.boxes = {label: Box.from_mask(labels[0, 0] == label) for label in range(1, len(organs) + 1)}
        # the coarse branch runs, but what it finds is the truth
        self.network.find_organs = lambda coarse, shape: self.boxes
        self.loss = HardVoxelDiceLoss(1.0, 1.0)

    def losses(self):
        out = self.network({"image": self.image})
        coarse = resize(self.labels, out["coarse"].shape[2:], mode="nearest")
        target = torch.cat([coarse == label for label in range(out["coarse"].shape[1])], 1)
        loss = self.loss(out["coarse"], target)
        for label, box in self.boxes.items():
            box = self.network.fine_box(box, self.image.shape[2:])
            logits = self.network.decode(out["features"], label, box)
            loss = loss + self.loss.of_logits(logits, self.labels[(..., *box.slices)] == label) / len(self.boxes)
        yield loss


class Windows(Shared):
    share = LEAST_SHARE


class Separate:
    def __init__(self, image: Tensor, labels: Tensor, organs: tuple[str, ...], spacing_mm, features: int):
        margin = tuple(round(MARGIN_MM / spacing) for spacing in spacing_mm)
        around = Box.from_mask(labels[0, 0])
        box = around.grow(margin).within(image.shape[2:])
        plan = CascadePlan(
            organs=organs, coarse_shape=tuple(image.shape[2:]), fine_shape=box.shape, margin_vox=margin, dropout=0.0,
            min_box_vox=(1, 1, 1), coarse_features=features, fine_features=features,
        )  # fmt: skip
        self.network = CascadeNetwork(image.shape[1], plan)
        localise = self.network.localise

        # the localiser runs, but what it finds is the truth
        def localised(coarse: Tensor, shape: tuple[int, ...]) -> Box:
            localise(coarse, shape)
            return around

        self.network.localise = localised
        self.parts = {"coarse": (image, labels), "fine": tuple(x[(..., *box.slices)] for x in (image, labels))}
        self.loss = DiceCrossEntropyLoss(1.0)

    def losses(self):
        for stage, (image, labels) in self.parts.items():
            yield self.loss(self.network({stage: image})[stage], labels)


def peak_gb_so_far() -> float:
    """Of this process' resident memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM"))


def measure(network: str, task: str, spacing_mm: tuple[float, float, float], features: int) -> None:
    """Print one line of the table."""
    phantom, organs = (
        make_phantom("thorax", 0, 0, spacing_mm),
        tuple(name for name, value in REGIONS["thorax"].labels.items() if value),
    )
    body = find_body(phantom.image_hu, 0, (1.0, 0.0))
    image = torch.from_numpy(phantom.image_hu[body.slices].astype("float32"))[None, None]
    labels = torch.from_numpy(phantom.labels[body.slices].astype("int16"))[None, None]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    volume, normalised = image.to(device), ((image - image.mean()) / image.std()).to(device)
    torch.manual_seed(0)
    run = {"shared": Shared, "windows": Windows, "separate": Separate}[network](
        normalised, labels.to(device), organs, spacing_mm, features
    )
    run.network.to(device)
    run.network.train(task == "training")
    optimizer = torch.optim.Adam(run.network.parameters())
    # Linux begins a new peak: drawing the phantom took more than what it left
    Path("/proc/self/clear_refs").write_text("5")
    before, seconds = peak_gb_so_far(), []
    for _ in range(3):
        start = time.perf_counter()
        if task == "training":
            for loss in run.losses():
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        else:
            with torch.inference_mode():
                run.network(volume)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else peak_gb_so_far() - before
    weights = sum(parameter.numel() for parameter in run.network.parameters()) / 1e6
    print(
        f"{network:9s} {task:10s} {tuple(image.shape[2:])} voxels, {features} features, {weights:5.1f} million weights: "
        f"{min(seconds):6.1f} s, {peak_gb:5.2f} GB more than before",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spacing", type=float, nargs=3, default=(3.0, 2.0, 2.0), metavar=("Z", "Y", "X"), help="mm")
    parser.add_argument("--features", type=int, default=8)
    parser.add_argument("--only", nargs=2, metavar=("NETWORK", "TASK"), help="one line, in this process")
    args = parser.parse_args()
    if args.only:
        if args.only[0] not in NETWORKS.get(args.only[1], ()):
            lines = (f"{network} {task}" for task, networks in NETWORKS.items() for network in networks)
            parser.error(f"--only: one of {', '.join(lines)}")
        measure(*args.only, tuple(args.spacing), args.features)
        return 0
    for task, networks in NETWORKS.items():
        for network in networks:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", network, task], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
