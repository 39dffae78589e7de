"""nnunet_oar predict at paper scale against stock nnU-Net, on CTs of 512 x 512 x 180 voxels and of other lengths.

    python scripts/benchmark_inference.py -o OUT                                  # everything
    python scripts/benchmark_inference.py -o OUT --parts commands organs          # some of it

commands: five CTs through nnunet_oar predict and, two of them, through stock nnUNetv2_predict with the same checkpoint, from the
start of the command to its end. tiles: one tile of stock nnU-Net's own 3d_fullres network, times the number of tiles of such a CT.
organs: 5 and 33 organs. slices: 60 to 960 slices.

The 128^3 networks have random weights and a localiser that is set by hand to call every voxel an organ: the largest box there is,
with logits of all organs everywhere. Nothing can take longer; organs and slices are also measured with organs of ordinary size at
places of their own (predict_in_places.py). What OUT holds already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from arms import load_results, save_results
from benchmark_speed import DATASET, SHAPE, call_everything_an_organ, fit_to_shape
from pipeline import Pipeline, best_device, stock_prediction

from nnunet_oar.datasets.phantom import write_dataset
from nnunet_oar.inference.model import NETWORKS
from nnunet_oar.plan import SECTION, CascadePlan

SPACING_MM = (2.0, 0.8, 0.8)
CTS, STOCK_CTS = 5, 2
ORGANS = (5, 33)
SLICES = (60, 120, 240, 480, 960)
PARTS = ("commands", "tiles", "organs", "slices")
# suffix of a result -> what predicts
COMMANDS = {"": "nnunet_oar predict", "-places": f"python {Path(__file__).with_name('predict_in_places.py')}"}


def make_data(pipeline: Pipeline) -> Path:
    """CTs of one size, a fingerprint, our plans and stock ones; returns the folder of the CTs to predict."""
    raw = pipeline.raw / DATASET
    if not raw.is_dir():
        write_dataset(raw, "thorax", 2, CTS, spacing_mm=SPACING_MM, processes=2)
        fit_to_shape(raw, SPACING_MM)
    if not (pipeline.preprocessed / DATASET / "nnUNetPlans.json").is_file():
        pipeline.run("fingerprint", "nnUNetv2_extract_fingerprint -d 55 -np 2")
        pipeline.run("plan", "nnunet_oar plan -d 55 --recipe paper --disable_progress_bar")
        pipeline.run("plan-stock", "nnUNetv2_plan_experiment -d 55")
    return raw / "imagesTs"


def make_model(pipeline: Pipeline, organs: int) -> Path:
    """The paper's cascade without training, as nnUNetv2_train would leave it."""
    folder = pipeline.results / DATASET / f"OARCascadeTrainer__organs{organs}__3d_fullres"
    if folder.is_dir():
        return folder
    names = tuple(f"organ_{number}" for number in range(1, organs + 1))
    plans = json.loads((pipeline.preprocessed / DATASET / "nnUNetOARPlans.json").read_text())
    # as planned for a data set
    postprocessing = dict.fromkeys(names, ("drop_small",))
    plan = CascadePlan(organs=names, array_orientation="SAR", postprocessing=postprocessing)
    plans["configurations"]["3d_fullres"][SECTION] = plan.to_section()
    dataset_json = json.loads((pipeline.raw / DATASET / "dataset.json").read_text())
    dataset_json["labels"] = {"background": 0} | {name: label for label, name in enumerate(names, start=1)}
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans | {"plans_name": f"organs{organs}"}))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    torch.manual_seed(0)
    checkpoint = {
        "network_weights": NETWORKS[CascadePlan](1, plan, None).state_dict(),
        "trainer_name": plan.trainer,
        "init_args": {"configuration": "3d_fullres", "fold": 0},
        "current_epoch": 0,
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    call_everything_an_organ(folder / "fold_0" / "checkpoint_final.pth")
    return folder


def links(folder: Path, files: list[Path]) -> Path:
    folder.mkdir(exist_ok=True)
    for file in files:
        if not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    return folder


def predict(pipeline: Pipeline, name: str, images: Path, model: Path, command: str, slices: int | None = None) -> dict:
    """Seconds of the command, what its manifests say a CT took on average, peak memory; slices: of a CT whose size is told, too."""
    out = pipeline.folder / name
    lines, memory_gb = pipeline.timed(
        name,
        f"{command} -i {images} -o {out} -m {model} -device {best_device()} --disable_progress_bar",
    )
    manifests = [json.loads(path.read_text()) for path in sorted(out.glob("phantom*.json"))]
    steps = {step: float(np.mean([of["seconds"][step] for of in manifests])) for step in manifests[0]["seconds"]}
    result = {"seconds": lines[-1][0], "cts": len(manifests), "memory_gb": memory_gb, "steps": steps}
    return result if slices is None else result | {"input_gb": slices * SHAPE[1] * SHAPE[2] * 2 / 1e9}


def predict_stock(pipeline: Pipeline, images: Path, model: Path) -> dict:
    command = stock_prediction(model, images, pipeline.folder / "stock")
    lines, memory_gb = pipeline.timed("commands-stock", command)
    begins = [seconds for seconds, line in lines if line.startswith("Predicting ")]
    # the first CT's preprocessing is waited for; that of the others overlaps
    return {"seconds": lines[-1][0], "cts": len(begins), "memory_gb": memory_gb, "second": lines[-1][0] - begins[-1]}


def stock_tiles(pipeline: Pipeline) -> dict:
    """One forward pass of stock nnU-Net's 3d_fullres network in single precision, as it runs on a CPU, and the number of tiles."""
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    plans = json.loads((pipeline.preprocessed / DATASET / "nnUNetPlans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    architecture = configuration["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"], 1, 6,
        deep_supervision=False,
    ).eval().to(best_device())  # fmt: skip
    patch = configuration["patch_size"]
    shape = [round(n * have / want) for n, have, want in zip(SHAPE, SPACING_MM, configuration["spacing"], strict=True)]
    steps = compute_steps_for_sliding_window(
        tuple(max(n, p) for n, p in zip(shape, patch, strict=True)), tuple(patch), 0.5
    )
    tiles = int(np.prod([len(of_axis) for of_axis in steps]))
    tile = torch.zeros(1, 1, *patch, device=best_device())
    seconds = []
    with torch.inference_mode():
        for _ in range(3):
            start = time.perf_counter()
            network(tile).float().mean().item()
            seconds.append(time.perf_counter() - start)
    return {"patch": patch, "tiles": tiles, "seconds a tile": min(seconds), "seconds": min(seconds) * tiles}


def stretched(source: Path, folder: Path, slices: int) -> Path:
    """A CT of as many slices: the source mirrored again and again."""
    folder.mkdir(exist_ok=True)
    image = sitk.ReadImage(str(source))
    array = sitk.GetArrayFromImage(image)
    period = np.concatenate((np.arange(len(array)), np.arange(len(array))[::-1]))
    longer = sitk.GetImageFromArray(array[np.resize(period, slices)])
    longer.SetSpacing(image.GetSpacing())
    longer.SetDirection(image.GetDirection())
    sitk.WriteImage(longer, str(folder / f"phantom{slices}_0000.nii.gz"))
    return folder


def steps_of(result: dict) -> str:
    return ", ".join(f"{step} {seconds:.1f}" for step, seconds in result["steps"].items())


def print_results(results: dict) -> None:
    print(f"\n{' x '.join(map(str, SHAPE))} voxels, {torch.get_num_threads()} threads, {best_device()}")
    for name, result in results.items():
        if "tiles" in result:
            each = f"{result['seconds a tile']:.1f} s each"
            print(f"{name}: {result['tiles']} tiles of {result['patch']}, {each}: {result['seconds']:.0f} s")
            continue
        text = (
            f"{name}: {result['seconds']:.1f} s for {result['cts']} CTs, {result['seconds'] / result['cts']:.1f} s each"
        )
        text += f", the last one {result['second']:.1f} s" if "second" in result else f" ({steps_of(result)})"
        input_gb = f"; input {result['input_gb']:.2f} GB" if "input_gb" in result else ""
        print(f"{text}; peak {result['memory_gb']:.2f} GB{input_gb}")
    stock, tiles = results.get("commands-stock"), results.get("tiles")
    for suffix in COMMANDS:
        ours = results.get(f"commands{suffix}")
        if ours and stock:
            times = stock["second"] / ours["seconds"] * ours["cts"]
            print(f"stock nnUNetv2_predict with the same checkpoint instead of ours{suffix}: {times:.1f} times as long")
        if ours and tiles:
            times = tiles["seconds"] / ours["seconds"] * ours["cts"]
            print(f"stock 3d_fullres instead of ours{suffix}: {times:.0f} times as long, without mirroring")
        few, many = (results.get(f"organs-{organs}{suffix}") for organs in ORGANS)
        if few and many:
            times = [sum(result["steps"].values()) for result in (few, many)]
            print(f"{ORGANS[1]} organs instead of {ORGANS[0]}{suffix}: {times[1] / times[0]:.2f} times as long")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, default=Path("inference_output"), help="folder, kept between runs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    pipeline = Pipeline(args.o)
    os.environ.update(pipeline.environment)
    images = make_data(pipeline)
    files = sorted(images.iterdir())
    file = args.o / "inference.json"
    results = load_results(file)

    def measure(name: str, action: Callable[[], dict]) -> None:
        if name not in results:
            results[name] = action()
            save_results(file, results)

    model = make_model(pipeline, ORGANS[0])
    if "commands" in args.parts:
        for suffix, command in COMMANDS.items():
            measure(f"commands{suffix}", partial(predict, pipeline, f"commands{suffix}", images, model, command))
        few = links(pipeline.folder / "stock-images", files[:STOCK_CTS])
        measure("commands-stock", lambda: predict_stock(pipeline, few, model))
    if "tiles" in args.parts:
        measure("tiles", lambda: stock_tiles(pipeline))
    if "organs" in args.parts:
        two = links(pipeline.folder / "organs-images", files[:2])
        for (suffix, command), organs in product(COMMANDS.items(), ORGANS):
            name, of = f"organs-{organs}{suffix}", make_model(pipeline, organs)
            measure(name, partial(predict, pipeline, name, two, of, command))
    if "slices" in args.parts:
        for (suffix, command), slices in product(COMMANDS.items(), SLICES):
            name, folder = f"slices-{slices}{suffix}", pipeline.folder / f"images-{slices}"
            if name not in results:
                stretched(files[0], folder, slices)
            measure(name, partial(predict, pipeline, name, folder, model, command, slices))
    print_results(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
