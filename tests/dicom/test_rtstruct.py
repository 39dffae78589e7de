"""Structure sets of analytic bodies, read by another reader (ct_series.read_back): place, volume, sides."""

import shutil
import subprocess

import numpy as np
import pydicom
import pytest
from ct_series import POSITIONS, Geometry, dice, oblique, read_back, write_series

from nnunet_oar.dicom.rtstruct import About, write_rtstruct
from nnunet_oar.dicom.series import read_series
from nnunet_oar.dicom.structure_set import rasterised, read_structure_set

ABOUT = About("test", "a description", "an algorithm")
UNEVEN = np.cumsum([0, *([2.0] * 9), *([3.0] * 7), *([2.5] * 4)])


def bodies(points: np.ndarray) -> dict[str, np.ndarray]:
    """Signed distance to the surface, in mm and above 0 inside, of bodies around the middle of the points."""
    p = points - points.reshape(-1, 3).mean(axis=0)
    x, y, z = np.moveaxis(p, -1, 0)
    around = np.hypot(x, y)
    ball = 14 - np.linalg.norm(p, axis=-1)
    return {
        "ball": ball,
        "torus": 5 - np.hypot(around - 13, z),
        "hollow cylinder": np.minimum(4 - np.abs(around - 11), 15 - np.abs(z)),
        "two components": np.maximum(
            8 - np.linalg.norm(p - [12, 3, 0], axis=-1), 7 - np.linalg.norm(p + [12, 3, 0], axis=-1)
        ),
        "at the border": 25 - np.linalg.norm(p - p[-1, -1, -1], axis=-1),
    }


GEOMETRIES = {
    "even": Geometry(),
    "not even": Geometry(depths=UNEVEN),
    **{
        name: Geometry(right=right, down=down)
        for name, (right, down) in POSITIONS.items()
        if name != "head first, supine"
    },
    "oblique": Geometry(right=oblique(4)[0], down=oblique(4)[1]),
    "oblique, not even": Geometry(depths=UNEVEN, right=oblique(5)[0], down=oblique(5)[1]),
    "thick slices, small pixels": Geometry((90, 100), (0.7, 0.7), np.arange(12) * 5.0),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_bodies_come_back_in_place(name, tmp_path):
    geometry = GEOMETRIES[name]
    points = geometry.points()
    write_series(tmp_path / "ct", np.zeros(points.shape[:3]), geometry)
    series = read_series(tmp_path / "ct", resample=True)
    for body, inside in bodies(points).items():
        mask = inside > 0
        write_rtstruct(tmp_path / "rs.dcm", series, mask.astype(np.uint8), {1: body}, {1: (255, 0, 0)}, ABOUT)
        share = read_back(tmp_path / "rs.dcm", geometry, finer=3)[body]
        # every point of every pixel is on the right side: neither shifted nor smoothed
        assert np.array_equal(share, mask)
        # against the body itself: where its surface passes a pixel, the contour passes on average
        assert dice(share > 0.5, inside > 0) >= 0.98
        near = np.abs(inside) < 2 * max(geometry.spacing)
        offset = ((share - 0.5) - np.clip(inside / np.sqrt(np.prod(geometry.spacing)), -0.5, 0.5))[near]
        assert abs(offset.mean()) < 0.1, body
        back = rasterised(read_structure_set(tmp_path / "rs.dcm").rois[0], series)
        assert np.array_equal(back.mask, mask)


def test_one_voxel_and_the_whole_image(tmp_path):
    geometry = Geometry((5, 6), depths=np.arange(4) * 3.0)
    write_series(tmp_path / "ct", np.zeros((4, 5, 6)), geometry)
    series = read_series(tmp_path / "ct")
    for mask in (np.ones((4, 5, 6), bool), *(np.arange(120).reshape(4, 5, 6) == index for index in (0, 47, 119))):
        write_rtstruct(tmp_path / "rs.dcm", series, mask.astype(np.uint8), {1: "organ"}, {1: (1, 2, 3)}, ABOUT)
        assert np.array_equal(read_back(tmp_path / "rs.dcm", geometry, 2)["organ"], mask)


@pytest.mark.parametrize("position", POSITIONS)
def test_left_stays_left(position, tmp_path):
    right, down = POSITIONS[position]
    geometry = Geometry(right=right, down=down, depths=np.arange(16) * 3.0)
    points = geometry.points()
    centre = points.reshape(-1, 3).mean(axis=0)
    labels = np.where(points[..., 0] > centre[0] + 3, 1, np.where(points[..., 0] < centre[0] - 3, 2, 0))
    labels[np.linalg.norm(points - centre, axis=-1) > 18] = 0
    write_series(tmp_path / "ct", labels * 100, geometry)
    names, colours = {1: "Lung_L", 2: "Lung_R"}, {1: (1, 2, 3), 2: (4, 5, 6)}
    write_rtstruct(tmp_path / "rs.dcm", read_series(tmp_path / "ct"), labels.astype(np.uint8), names, colours, ABOUT)
    dataset = pydicom.dcmread(tmp_path / "rs.dcm")
    for roi, item in zip(dataset.StructureSetROISequence, dataset.ROIContourSequence, strict=True):
        x = np.concatenate([np.array(contour.ContourData[::3], float) for contour in item.ContourSequence])
        # patient coordinates grow to the patient's left
        assert (x > centre[0]).all() if roi.ROIName == "Lung_L" else (x < centre[0]).all()


def test_what_the_file_says(tmp_path):
    geometry = Geometry((30, 30), depths=np.arange(6) * 3.0)
    write_series(
        tmp_path / "ct", np.zeros((6, 30, 30)), geometry, PatientName="Müller^Ä", SpecificCharacterSet="ISO_IR 100"
    )
    series = read_series(tmp_path / "ct")
    labels = np.zeros((6, 30, 30), np.uint8)
    labels[2:4, 5:9, 5:9], labels[1, 20:24, 3:7] = 3, 1
    names = {1: "heart", 2: "absent", 3: "kidney_left"}
    colours = {label: (label, 10, 20) for label in names}
    write_rtstruct(
        tmp_path / "rs.dcm", series, labels, names, colours, About("a label that is long", "d" * 2000, "a" * 90)
    )
    ct, rs = pydicom.dcmread(series.slices[0].path), pydicom.dcmread(tmp_path / "rs.dcm")
    assert [str(roi.ROIName) for roi in rs.StructureSetROISequence] == ["heart", "kidney_left"]
    assert [list(item.ROIDisplayColor) for item in rs.ROIContourSequence] == [[1, 10, 20], [3, 10, 20]]
    assert {item.RTROIInterpretedType for item in rs.RTROIObservationsSequence} == {"ORGAN"}
    assert rs.ApprovalStatus == "UNAPPROVED" and "ReviewerName" not in rs and len(rs.StructureSetLabel) <= 16
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate"):
        assert rs[keyword].value == ct[keyword].value
    assert rs.SeriesInstanceUID != ct.SeriesInstanceUID and rs.SOPInstanceUID == rs.file_meta.MediaStorageSOPInstanceUID
    frame = rs.ReferencedFrameOfReferenceSequence[0]
    referenced = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert frame.FrameOfReferenceUID == ct.FrameOfReferenceUID and referenced.SeriesInstanceUID == ct.SeriesInstanceUID
    assert [str(image.ReferencedSOPInstanceUID) for image in referenced.ContourImageSequence] == [
        one.uid for one in series.slices
    ]
    assert not [element for element in rs.iterall() if element.tag.is_private]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_a_validator_finds_no_fault(tmp_path):
    geometry = Geometry((30, 30), depths=np.arange(6) * 3.0)
    write_series(tmp_path / "ct", np.zeros((6, 30, 30)), geometry)
    labels = np.zeros((6, 30, 30), np.uint8)
    labels[2:4, 5:9, 5:9], labels[1:5, 15:25, 15:25], labels[1:3, 18:20, 18:20] = 1, 2, 0
    colours = {1: (1, 2, 3), 2: (4, 5, 6)}
    write_rtstruct(tmp_path / "rs.dcm", read_series(tmp_path / "ct"), labels, {1: "a", 2: "b"}, colours, ABOUT)
    found = subprocess.run(["dciodvfy", tmp_path / "rs.dcm"], capture_output=True, text=True)
    assert (found.stdout + found.stderr).split() == ["RTStructureSet"]


@pytest.mark.parametrize(
    "change, problem",
    [
        (dict(StudyInstanceUID=""), "lacks StudyInstanceUID"),
        (dict(SOPInstanceUID=""), "lacks SOPInstanceUID"),
        (dict(FrameOfReferenceUID=""), "lacks FrameOfReferenceUID"),
        (dict(SeriesInstanceUID=""), "lacks SeriesInstanceUID"),
        (dict(SOPInstanceUID="1.2.3"), "several slices have one SOPInstanceUID"),
    ],
)
def test_a_series_without_uids_is_refused(change, problem, tmp_path):
    write_series(tmp_path / "ct", np.zeros((4, 8, 8)), Geometry((8, 8), depths=np.arange(4) * 3.0), **change)
    series = read_series(tmp_path / "ct")
    with pytest.raises(ValueError, match=problem):
        write_rtstruct(tmp_path / "rs.dcm", series, np.ones((4, 8, 8), np.uint8), {1: "a"}, {1: (1, 2, 3)}, ABOUT)
    assert not (tmp_path / "rs.dcm").exists()


@pytest.mark.parametrize(
    "labels, names, problem",
    [
        (np.zeros((4, 8, 8), np.uint8), {1: "a"}, "no organ was found"),
        (np.ones((4, 8, 7), np.uint8), {1: "a"}, "must be on the series' 4 slices"),
        (np.ones((4, 8, 8), np.uint8), {1: "a\\b"}, "no backslash"),
        (np.ones((4, 8, 8), np.uint8), {1: "n" * 65}, "1 to 64 bytes"),
        (np.arange(256).reshape(4, 8, 8) % 3, {1: "same", 2: "same"}, "two regions cannot have one name: same"),
    ],
)
def test_what_cannot_be_written_is_refused(labels, names, problem, tmp_path):
    write_series(tmp_path / "ct", np.zeros((4, 8, 8)), Geometry((8, 8), depths=np.arange(4) * 3.0))
    colours = dict.fromkeys(names, (1, 2, 3))
    with pytest.raises(ValueError, match=problem):
        write_rtstruct(tmp_path / "rs.dcm", read_series(tmp_path / "ct"), labels, names, colours, ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["ct"]
