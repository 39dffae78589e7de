"""nnunet_oar predict against stock nnUNetv2_predict, for every trainer, also on CTs of another spacing and orientation."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_oar.evaluation.dice import dice_per_organ


def disguise(source, target) -> None:
    """The CT at 1.3 times finer voxels, stored from head to feet and from left to right."""
    image = sitk.ReadImage(str(source))
    size = [round(n * 1.3) for n in image.GetSize()]
    spacing = [n * s / m for n, s, m in zip(image.GetSize(), image.GetSpacing(), size, strict=True)]
    image = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), spacing, image.GetDirection(), -1000
    )
    sitk.WriteImage(sitk.DICOMOrient(image, "RPI"), str(target))


# half a minute each; the default suite has one of them
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("instances", "heatmaps", "shared", "attention")]


@pytest.mark.parametrize("name", ["trained", *OTHERS])
def test_the_answer_is_that_of_nnunet(name, request, tmp_path):
    workspace = request.getfixturevalue(name)
    images = tmp_path / "images"
    images.mkdir()
    for index, source in enumerate(sorted((workspace.raw / "imagesTs").iterdir())[:2]):
        if index:
            disguise(source, images / source.name)
        else:
            (images / source.name).write_bytes(source.read_bytes())
    workspace.predict(images, tmp_path / "stock")
    log = workspace.run(
        f"nnunet_oar predict -i {images} -o {tmp_path / 'fast'} -m {workspace.model} -f 0 -device cpu --disable_postprocessing"
    )
    labels = json.loads((workspace.raw / "dataset.json").read_text())["labels"]
    compared = set()
    for path in sorted((tmp_path / "stock").glob("*.nii.gz")):
        stock, fast = (sitk.ReadImage(str(tmp_path / folder / path.name)) for folder in ("stock", "fast"))
        assert np.allclose(stock.GetDirection(), fast.GetDirection()) and stock.GetSize() == fast.GetSize()
        arrays = [sitk.GetArrayFromImage(image) for image in (fast, stock)]
        millilitres = np.prod(stock.GetSpacing()) / 1000
        for organ, dice in dice_per_organ(*arrays, labels).items():
            volume = (arrays[1] == labels[organ]).sum() * millilitres
            if volume > 5:
                compared.add(organ)
                # both compute in the processor's reduced precision, and ties are ties
                assert dice > (0.99 if volume > 100 else 0.97), (path.name, organ, volume, log)
        manifest = json.loads((tmp_path / "fast" / path.name.replace(".nii.gz", ".json")).read_text())
        found = {organ for organ, label in labels.items() if label and (arrays[0] == label).any()}
        assert set(manifest["organs"]) == found and manifest["seconds"]["networks"] > 0
        assert manifest["model"]["trainer"] == workspace.trainer and len(manifest["model"]["sha256"]["0"]) == 64
    assert compared
    said = workspace.run(f"nnunet_oar info {workspace.model}")
    assert workspace.trainer in said
    assert ("mm beyond the mean size" in said) == (workspace.trainer == "OARHeatmapCascadeTrainer")
