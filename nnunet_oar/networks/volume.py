"""What every network here does with the volume that nnU-Net's predictor hands it, before and after its own part."""

from __future__ import annotations

import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nnunet_oar.intensity import measure, replace_non_finite
from nnunet_oar.networks.layers import Layer, Part, paste
from nnunet_oar.networks.precision import autocast
from nnunet_oar.plan import OARPlan, Triple
from nnunet_oar.roi import Box, resize

logger = logging.getLogger(__name__)

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass
class PredictionReport:
    """What happened to one volume: where something was found and which box of it was segmented at last (both by name of what is in
    it, in voxels of the image without padding), and which guards fired. quiet: the warnings are not logged."""

    localised: dict[str, Box] = field(default_factory=dict)
    boxes: dict[str, Box] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    quiet: bool = False

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        if self.quiet:
            return
        # nnU-Net's "Predicting X:" is the only place where the case's name is known: what is said must follow it in a log file
        sys.stdout.flush()
        logger.warning(text)

    def warn_of_missing(self, organs: Sequence[str], pairs: Sequence[Sequence[int]]) -> None:
        """Say which of the organs were not found, where each is looked for on its own, and of which of a pair of labels that look
        alike the side is in doubt because the other one was not found."""
        missing = [organ for organ in organs if organ not in self.localised]
        if missing:
            everything = "; the result is empty" if len(missing) == len(organs) else ""
            self.warn(f"not found, and left out: {', '.join(missing)}{everything}")
        for pair in pairs:
            found, absent = sorted((organs[label - 1] for label in pair), key=missing.__contains__)
            if found not in missing and absent in missing:
                self.warn(f"{found} was found and {absent}, which looks alike, was not: check that it is {found}")


class Volume(ABC):
    """What a network reads of one image, in voxels of the working spacing: `shape`, without padding, on `device`."""

    shape: Triple
    device: torch.device
    lowest: Tensor
    """(C,): the lowest intensity of each channel, normalised."""

    @abstractmethod
    def sample(self, box: Box, shape: Sequence[int]) -> Tensor:
        """Normalised intensity in a box of the image on a grid of `shape`, (1, C, *shape) float32."""

    @abstractmethod
    def whole(self) -> Tensor:
        """The image as it came, not normalised, (C, *shape) float32."""


class LoadedVolume(Volume):
    """An image (C, Z, Y, X) of finite values at the working spacing; window: as `measure`."""

    def __init__(self, image: Tensor, window: tuple[float, float] | None):
        self.shape, self.device = tuple(image.shape[1:]), image.device
        self.image, self.normalised = image, measure(image, window).apply(image)
        self.lowest = self.normalised.amin((1, 2, 3))

    def sample(self, box: Box, shape: Sequence[int]) -> Tensor:
        return resize(self.normalised[(slice(None), *box.slices)][None], shape, mode="linear")

    def whole(self) -> Tensor:
        return self.image.float()


class VolumeNetwork(nn.Module):
    """A pipeline in one module: forward of a volume predicts, forward of a dict runs what the trainer's loader made.

    forward of a volume (B, C, Z, Y, X), possibly padded with zeros on any side: logits (B, K, Z, Y, X) in float32, relative
    to the background: channel 0 is 0, organs are `plan.floor` outside their layers and at least that inside.

    A sub-class implements `forward_batch` and `predict_layers` (or `predict_parts`). K is len(plan.organs) + 1. canvas: nnU-Net's
    patch size; a volume that fills it is probably one tile of several. `reports` holds one PredictionReport per volume of the last
    prediction.
    """

    def __init__(self, plan: OARPlan, canvas: tuple[int, ...] | None = None):
        super().__init__()
        self.plan, self.organs, self.canvas = plan, plan.organs, canvas
        self.num_classes = len(plan.organs) + 1
        self.reports: list[PredictionReport] = []

    def forward_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the loader made, normalised -> logits for training and online validation."""
        raise NotImplementedError

    def predict_layers(self, volume: Volume, report: PredictionReport) -> list[Layer]:
        """What there is in the volume; where there is no layer the background is."""
        raise NotImplementedError

    def predict_parts(self, volume: Volume, report: PredictionReport) -> Iterator[Part]:
        """The same in parts that have no voxel in common, for networks that say too much to hold it at once. The parts' number and
        regions depend on the volume's shape alone."""
        yield Part((0.0,) * 3, volume.shape, self.predict_layers(volume, report))

    @torch.compiler.disable
    def forward(self, x: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        if isinstance(x, dict):
            return self.forward_batch(x)
        self.reports = [PredictionReport() for _ in x]
        return torch.cat([self._predict(volume, report) for volume, report in zip(x, self.reports, strict=True)])

    @torch.no_grad()
    def _predict(self, image: Tensor, report: PredictionReport) -> Tensor:
        """image: (C, Z, Y, X) -> (1, K, Z, Y, X)."""
        shape = tuple(image.shape[1:])
        logits = torch.full((1, self.num_classes, *shape), self.plan.floor, device=image.device)
        logits[:, 0] = 0
        valid = Box.from_mask((image != 0).any(0))
        if valid is None:
            report.warn("the image is 0 everywhere: no organ can be found, the result is empty")
            return logits
        if self.canvas == shape and any(a == b for a, b in zip(valid.shape, shape, strict=True)):
            report.warn(
                f"the image fills the canvas of {shape} voxels and is probably larger: it is predicted in tiles, each on its "
                f"own, and organs that are cut by a tile may be wrong; see `canvas` in docs/conventions.md"
            )
        image, bad = replace_non_finite(image[(slice(None), *valid.slices)])
        if bad:
            report.warn(f"{bad} voxels are NaN or infinite; they were replaced by the smallest finite value")
        volume = LoadedVolume(image, self.plan.data_window)
        target = logits[(0, slice(1, None), *valid.slices)]
        for part in self.predict_parts(volume, report):
            paste(part.layers, target)
        return logits


def run_float32(network: nn.Module, images: Tensor) -> Tensor | tuple[Tensor, ...]:
    """`network(images)`, computed in reduced precision where the device has it, as float32; images (B, C, *two or three axes)."""
    if images.device.type == "cpu":
        # a third faster in float32: oneDNN's convolutions then need no reordering of few-channel tensors
        images = images.contiguous(memory_format=_CHANNELS_LAST[images.ndim])
    with autocast(images.device):
        out = network(images)
    return out.float() if isinstance(out, Tensor) else tuple(part.float() for part in out)


def run_finite(network: nn.Module, images: Tensor) -> Tensor | tuple[Tensor, ...]:
    """As `run_float32`, for prediction: raises ValueError where what comes out is not finite."""
    out = run_float32(network, images)
    for part in (out,) if isinstance(out, Tensor) else out:
        require_finite(part)
    return out


def require_finite(out: Tensor) -> None:
    """Raise ValueError for NaN or infinities in what a network says, which would look like background: nothing is above 0 there."""
    # the sum of finite ones is finite, and needs no memory
    if not out.sum().isfinite():
        raise ValueError(
            "a network's output is NaN or infinite: its training has diverged or, on a GPU, its values are larger than float16 "
            "holds; try -device cpu or another checkpoint"
        )
