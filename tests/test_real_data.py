"""Real CTs, where OAR_REAL_DATA names their folder: six OpenKBP patients on stock plans, which nnU-Net transposes to (y, z, x)."""

import json
import os
import shutil
from pathlib import Path

import pytest
import SimpleITK as sitk

from nnunet_oar.plan import SECTION

SOURCE = Path(os.environ.get("OAR_REAL_DATA", "")) / "Dataset501_OpenKBP"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SOURCE / "dataset.json").is_file(), reason="OAR_REAL_DATA does not hold Dataset501_OpenKBP"
    ),
]


@pytest.fixture(scope="module")
def openkbp(raw_workspace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("openkbp")
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir()
    target = folder / "raw" / SOURCE.name
    description = json.loads((SOURCE / "dataset.json").read_text())
    cases = sorted(description.pop("annotations")["all"]["cases"])[:6]
    for kind, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (target / kind).mkdir(parents=True)
        for case in cases:
            shutil.copy(SOURCE / kind / f"{case}{ending}", target / kind)
    description["numTraining"] = len(cases)
    (target / "dataset.json").write_text(json.dumps(description))
    return raw_workspace.with_variables(
        nnUNet_raw=folder / "raw", nnUNet_preprocessed=folder / "preprocessed", nnUNet_results=folder / "results"
    )


def test_the_trainer_on_untouched_stock_plans(openkbp, tmp_path):
    openkbp.run("nnUNetv2_plan_and_preprocess -d 501 -c 3d_fullres -np 2")
    (tmp_path / "short.py").write_text(
        "from nnunet_oar.fit import Budget\n"
        "from nnunet_oar.trainers.cascade import OARCascadeTrainer\n"
        "class OARCascadeTrainer_short(OARCascadeTrainer):\n"
        "    @classmethod\n"
        "    def fit_plan(cls, facts, recipe, budget):\n"
        "        return super().fit_plan(facts, recipe, Budget(0.1, 1, 2))\n"
    )
    workspace = openkbp.with_variables(nnUNet_extTrainer=f"{openkbp.environment['nnUNet_extTrainer']}:{tmp_path}")
    workspace.run("nnUNetv2_train 501 3d_fullres 0 -tr OARCascadeTrainer_short -device cpu")
    results = Path(openkbp.environment["nnUNet_results"])
    plans = json.loads(next(results.rglob("plans.json")).read_text())
    assert plans["transpose_forward"] == [1, 0, 2]
    section = plans["configurations"]["3d_fullres"][SECTION]
    # the slices are on the second axis now, left-right stays on the last; parotids change places when it is mirrored
    assert section["left_right_axis"] == 2 and section["flip_axes"] == [2]
    organs = section["organs"]
    swaps = [{organs[label - 1] for label in pair} for pair in section["swap_on_flip"]]
    assert swaps == [{"Parotid_L", "Parotid_R"}]
    canvas = plans["configurations"]["3d_fullres"]["patch_size"]
    assert canvas[1] == max(canvas)  # headroom along the body, which is the second axis here

    images, output = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    image = sorted((Path(openkbp.environment["nnUNet_raw"]) / SOURCE.name / "imagesTr").iterdir())[0]
    shutil.copy(image, images)
    workspace.run(
        f"nnUNetv2_predict -d 501 -i {images} -o {output} -tr OARCascadeTrainer_short -c 3d_fullres -f 0 -device cpu -npp 1 -nps 1"
    )
    found = sitk.ReadImage(str(next(output.glob("*.nii.gz"))))
    assert found.GetSize() == sitk.ReadImage(str(image)).GetSize()
