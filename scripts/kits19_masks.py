"""Real kidneys and tumours end to end: KiTS19's label maps with simulated CTs around them, through convert, training, prediction.

    OAR_REAL_DATA=FOLDER python scripts/kits19_masks.py -o OUT

FOLDER holds kits19_masks/case_XXXXX_segmentation.nii.gz as KiTS19 stores them. Anatomy is real, intensities are not: a body of fat
and muscle with a spine and blobs of soft tissue, kidneys and tumours at the HU of contrast-enhanced ones, blur and noise. Each mask
is shown in several copies, turned, scaled and moved a little. The masks named by --held-out are tested on, the others trained on.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from pipeline import Pipeline, best_device, stock_prediction
from scipy.ndimage import affine_transform, gaussian_filter

from nnunet_oar.evaluation.dice import format_table, score_folder, summary

NUMBER = 59
GRID_MM = (4.0, 3.0, 3.0)  # at most as fine: 2 cores shall do
TRAINER = "OARInstanceCascadeTrainer"
FLOOR = 0.85


def coarser(mask: nib.Nifti1Image) -> tuple[np.ndarray, np.ndarray]:
    """Labels (slice, row, column) thinned to about GRID_MM, and the affine of what is left."""
    steps = [max(1, round(want / have)) for want, have in zip(GRID_MM, mask.header.get_zooms(), strict=True)]
    labels = np.asarray(mask.dataobj)[tuple(slice(step // 2, None, step) for step in steps)]
    affine = mask.affine @ np.vstack((np.diag([*map(float, steps), 1.0])[:3], [0, 0, 0, 1]))
    affine[:3, 3] += mask.affine[:3, :3] @ [step // 2 for step in steps]
    return labels, affine


def moved(labels: np.ndarray, spacing_mm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned by up to 8 degrees in the plane, scaled by up to a tenth, shifted by up to 15 mm."""
    angle, scale = np.deg2rad(rng.uniform(-8, 8)), rng.uniform(0.9, 1.1)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]) / scale
    matrix = turn * spacing_mm[None, :] / spacing_mm[:, None]
    centre = np.array(labels.shape) / 2
    return affine_transform(labels, matrix, centre - matrix @ (centre + rng.uniform(-15, 15, 3) / spacing_mm), order=0)


def simulated(labels: np.ndarray, spacing_mm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A CT in HU, int16, around the labels: kidney 1, tumour 2."""
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip(labels.shape, spacing_mm, strict=True)), indexing="ij")

    def noise(mm: float) -> np.ndarray:
        field = gaussian_filter(rng.normal(size=labels.shape), mm / spacing_mm)
        return field / field.std()

    middle = [axis.mean() for axis in grid]
    kidneys = np.argwhere(labels > 0).mean(0) * spacing_mm
    # rows run from front to back, the kidneys lie behind the middle
    half_y, half_x = rng.uniform(105, 125), rng.uniform(155, 180)
    radius = np.hypot((grid[1] - kidneys[1] + 25) / half_y, (grid[2] - middle[2]) / half_x)
    radius /= max(1.0, radius[labels > 0].max() / 0.92)  # large enough for what is in it
    image = np.full(labels.shape, -1000.0)
    image[radius < 1] = -100
    organs = (radius < 0.9) & (noise(12) > -0.2)
    image[organs] = (rng.uniform(40, 70) + 35 * noise(18))[organs]
    spine = np.hypot(grid[1] - kidneys[1] - 10, grid[2] - middle[2]) < 19
    image[spine] = (220 + 60 * noise(6))[spine]
    kidney_hu = rng.uniform(120, 190)
    image[labels == 1] = (kidney_hu + 10 * noise(6))[labels == 1]
    image[labels == 2] = (kidney_hu - rng.uniform(35, 80) + 15 * noise(8))[labels == 2]
    image = gaussian_filter(image, rng.uniform(0.8, 1.5) / spacing_mm) + rng.normal(0, rng.uniform(12, 25), image.shape)
    return np.clip(image, -1024, 3000).astype(np.int16)


def write_cases(masks: dict[str, Path], folder: Path, copies: int, first: int) -> None:
    """KiTS19's layout: case_XXXXX/imaging.nii.gz and segmentation.nii.gz."""
    number = first
    for path in masks.values():
        labels, affine = coarser(nib.load(path))
        spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
        for _ in range(copies):
            rng = np.random.default_rng((19, number))
            here = moved(labels, spacing_mm, rng)
            case = folder / f"case_{number:05d}"
            case.mkdir(parents=True)
            nib.save(nib.Nifti1Image(simulated(here, spacing_mm, rng), affine), case / "imaging.nii.gz")
            nib.save(nib.Nifti1Image(here.astype(np.uint8), affine), case / "segmentation.nii.gz")
            number += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-o", type=Path, default=Path("kits19_masks_output"), help="new folder for everything that is made"
    )
    parser.add_argument("--held-out", nargs="+", default=["00061", "00120"], help="numbers of the masks to test on")
    parser.add_argument("--copies", type=int, default=4, help="simulated CTs per mask")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("-gpu_memory_target", type=float, default=0.3, help="GB; grids and width follow")
    args = parser.parse_args()
    source = Path(os.environ.get("OAR_REAL_DATA") or ".") / "kits19_masks"
    masks = {path.name.split("_")[1]: path for path in sorted(source.glob("case_*_segmentation.nii.gz"))}
    if not masks:
        parser.error(
            f"OAR_REAL_DATA must name the folder that holds kits19_masks, got {os.environ.get('OAR_REAL_DATA')!r}"
        )
    if args.o.exists():
        parser.error(f"{args.o} exists; choose another -o or remove it")
    if not set(args.held_out) < set(masks):
        parser.error(f"--held-out must be some of {', '.join(masks)}, got {' '.join(args.held_out)}")
    pipeline = Pipeline(args.o)
    train = {number: path for number, path in masks.items() if number not in args.held_out}
    test = {number: masks[number] for number in args.held_out}
    write_cases(train, args.o / "simulated" / "train", args.copies, first=0)
    write_cases(test, args.o / "simulated" / "test", args.copies, first=len(train) * args.copies)
    pipeline.run(
        "convert", f"nnunet_oar convert kits19 {args.o / 'simulated' / 'train'} -d {NUMBER} --disable_progress_bar"
    )
    pipeline.run(
        "prepare",
        f"nnunet_oar prepare -d {NUMBER} -tr {TRAINER} --epochs {args.epochs} --iterations {args.iterations} "
        f"-gpu_memory_target {args.gpu_memory_target} --disable_progress_bar",
    )
    command = f"nnUNetv2_train {NUMBER} 3d_fullres 0 -tr {TRAINER} -p nnUNetOARPlans -device {best_device()}"
    pipeline.run("train", command)
    images, labels = args.o / "test" / "images", args.o / "test" / "labels"
    for folder in (images, labels):
        folder.mkdir(parents=True)
    for case in (args.o / "simulated" / "test").iterdir():
        (images / f"{case.name}_0000.nii.gz").symlink_to((case / "imaging.nii.gz").resolve())
        (labels / f"{case.name}.nii.gz").symlink_to((case / "segmentation.nii.gz").resolve())
    output = args.o / "predictions"
    model = next(pipeline.results.glob(f"*/{TRAINER}__*"))
    pipeline.run("predict", stock_prediction(model, images, output))
    scores = score_folder(output, labels, {"kidney": 1, "tumor": 2}, ".nii.gz")
    print(format_table(scores))
    kidney = summary(scores)["kidney"]
    print(f"mean Dice of the kidneys in CTs of masks that were not trained on: {kidney:.3f}, expected at least {FLOOR}")
    return 0 if kidney >= FLOOR else 1


if __name__ == "__main__":
    sys.exit(main())
