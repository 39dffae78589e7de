"""The whole way: phantom -> DICOM series -> nnunet_oar predict --format rtstruct -> another reader, as good as through NIfTI."""

import json

import numpy as np
import SimpleITK as sitk
from ct_series import Geometry, read_back, write_series

from nnunet_oar.evaluation.dice import dice_per_organ


def test_organs_of_a_series_are_those_of_the_image(trained, tmp_path):
    labels = json.loads((trained.raw / "dataset.json").read_text())["labels"]
    image_path = sorted((trained.raw / "imagesTs").iterdir())[0]
    case = image_path.name[: -len("_0000.nii.gz")]
    truth_path = trained.raw / "labelsTs" / f"{case}.nii.gz"
    # the series is stored feet first: slices, rows and columns run otherwise than in the file
    image, truth = (sitk.DICOMOrient(sitk.ReadImage(str(path)), "RPI") for path in (image_path, truth_path))
    direction = np.reshape(image.GetDirection(), (3, 3))
    x, y, z = image.GetSpacing()
    depths = np.arange(image.GetSize()[2]) * z
    geometry = Geometry(
        image.GetSize()[1::-1], (y, x), depths, direction[:, 0], direction[:, 1], np.array(image.GetOrigin())
    )
    assert np.allclose(geometry.normal, direction[:, 2])
    write_series(tmp_path / "series", np.rint(sitk.GetArrayFromImage(image)), geometry)
    model = f"-m {trained.model} -f 0 -device cpu"
    trained.run(f"nnunet_oar predict -i {tmp_path / 'series'} -o {tmp_path / 'dicom'} {model} --format rtstruct")
    trained.run(f"nnunet_oar predict -i {image_path} -o {tmp_path / 'nifti'} {model}")
    regions = read_back(tmp_path / "dicom" / "series.dcm", geometry)
    through_dicom = np.zeros(regions[next(iter(regions))].shape, np.uint8)
    for organ, share in regions.items():
        through_dicom[share > 0] = labels[organ]
    through_nifti = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "nifti" / f"{case}.nii.gz")), "RPI")
    expected = dice_per_organ(sitk.GetArrayFromImage(through_nifti), sitk.GetArrayFromImage(truth), labels)
    found = dice_per_organ(through_dicom, sitk.GetArrayFromImage(truth), labels)
    assert any(dice for dice in found.values())
    for organ, dice in expected.items():
        assert dice is None or abs(found[organ] - dice) < 0.005, (organ, found[organ], dice)
