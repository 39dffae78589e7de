"""Structure sets of others: holes, contours off the slices, slices that are not there, and real ones."""

import os
from pathlib import Path

import numpy as np
import pytest
from ct_series import Geometry, add, dice, write_series
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from nnunet_oar.dicom.rtstruct import About, write_rtstruct
from nnunet_oar.dicom.series import read_series
from nnunet_oar.dicom.structure_set import rasterised, read_structure_set

GEOMETRY = Geometry((20, 24), (1.0, 1.0), np.arange(8) * 2.0, first=(0, 0, 0))
REAL = Path(os.environ.get("OAR_REAL_DATA", ""))


def square(index, low=4.5, high=10.5, off=0.0):
    """Along the edges of the pixels 5 to 10, in the plane of a slice."""
    corners = [(low, low), (low, high), (high, high), (high, low)]
    return [(column, row, 2.0 * index + off) for row, column in corners]


def structure_set(path: Path, contours, kind="CLOSED_PLANAR", images=()) -> Path:
    """One region of interest of these contours, each a list of points in the patient."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    add(ds, SOPClassUID=RTStructureSetStorage, SOPInstanceUID="1.2.3", Modality="RTSTRUCT")
    items = []
    for number, points in enumerate(contours):
        item = add(
            Dataset(), ContourGeometricType=kind, ContourData=[f"{value:.3f}" for point in points for value in point]
        )
        item.NumberOfContourPoints = len(points)
        if number < len(images):
            item.ContourImageSequence = [add(Dataset(), ReferencedSOPInstanceUID=images[number])]
        items.append(item)
    ds.StructureSetROISequence = [add(Dataset(), ROINumber=7, ROIName="Organ", ReferencedFrameOfReferenceUID="1.2")]
    ds.ROIContourSequence = [add(Dataset(), ReferencedROINumber=7, ContourSequence=items)]
    ds.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ct")
    write_series(folder, np.zeros((8, 20, 24)), GEOMETRY)
    return read_series(folder)


def result(path, series, *args, **options):
    return rasterised(read_structure_set(structure_set(path / "rs.dcm", *args, **options)).rois[0], series)


def test_contours_and_holes(series, tmp_path):
    found = result(tmp_path, series, [square(2), square(2, 6.5, 8.5), square(3)])
    expected = np.zeros((8, 20, 24), bool)
    expected[2:4, 5:11, 5:11] = True
    expected[2, 7:9, 7:9] = False
    assert np.array_equal(found.mask, expected) and found.remarks == ()


def test_a_rounded_plane_belongs_to_its_slice(series, tmp_path):
    images = [series.slices[2].uid]
    found = result(tmp_path, series, [square(2, off=0.4)], images=images)
    assert found.mask.any(axis=(1, 2)).tolist() == [index == 2 for index in range(8)]


@pytest.mark.parametrize(
    "contours, options, why",
    [
        ([], {}, "no closed contour"),
        ([square(2)], dict(kind="OPEN_PLANAR"), "no closed contour"),
        ([square(2)[:2]], {}, "no closed contour"),
        ([square(2, off=0.7)], {}, "0.70 mm off the nearest slice"),
        ([square(2), square(9)], {}, "4.00 mm off the nearest slice"),
        ([square(2)[:3] + [(4.5, 10.5, 9.0)]], {}, "mm off the nearest slice"),
        ([square(2)], dict(images=["1.2.3.4"]), "drawn on 1 slices that the series lacks"),
        ([square(2, 4.5, 30.0)], {}, "outside the images"),
        ([square(index) for index in (0, 2, 4, 6)], {}, "drawn on 4 of the 7 slices that it spans"),
        ([square(index) for index in (0, 3, 6)], {}, "drawn on 3 of the 7 slices that it spans"),
        ([square(index) for index in (0, 7)], {}, "drawn on 2 of the 8 slices that it spans"),
        ([square(2), square(2)], {}, "the same or cross each other"),
        ([square(2), square(2, 7.5, 13.5)], {}, "the same or cross each other"),
        ([square(2, 4.6, 4.9)], {}, "encloses the centre of no voxel"),
    ],
)
def test_what_would_have_to_be_guessed_is_refused(series, contours, options, why, tmp_path):
    found = result(tmp_path, series, contours, **options)
    assert found.mask is None and why in found.why


def test_a_contour_that_names_another_slice_is_refused(series, tmp_path):
    found = result(tmp_path, series, [square(2)], images=[series.slices[5].uid])
    assert found.mask is None and "names another slice" in found.why


def test_gaps_and_points_are_remarked_on(series, tmp_path):
    found = result(tmp_path, series, [square(1), square(2), square(5), square(6)[:1]])
    assert found.mask.any() and found.remarks == (
        "1 contours that enclose nothing (points, open lines)", "not drawn on 2 of the 5 slices that it spans",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["dicom_rtstruct_lung3", "dicom_rtstruct_lung4"])
@pytest.mark.skipif(not (REAL / "dicom_rtstruct_lung3").is_dir(), reason="OAR_REAL_DATA does not hold the series")
def test_real_contours_there_and_back(name, tmp_path):
    series = read_series(REAL / name)
    (path,) = (REAL / name).glob("DCM_RS_*")
    for roi in read_structure_set(path).rois:
        first = rasterised(roi, series)
        assert first.mask.sum() * 0.977**2 * 3 > 1000, first.why
        labels = first.mask.astype(np.uint8)
        write_rtstruct(tmp_path / "rs.dcm", series, labels, {1: roi.name}, {1: (1, 2, 3)}, About("a", "b", "c"))
        second = rasterised(read_structure_set(tmp_path / "rs.dcm").rois[0], series)
        assert dice(first.mask, second.mask) == 1


@pytest.mark.skipif(
    not (REAL / "dicom_rtstruct_breast_1slice").is_dir(), reason="OAR_REAL_DATA does not hold the series"
)
def test_real_contours_on_slices_that_are_not_there():
    series = read_series(REAL / "dicom_rtstruct_breast_1slice")
    (path,) = (REAL / "dicom_rtstruct_breast_1slice").glob("rtss*")
    reasons = {roi.name: rasterised(roi, series).why for roi in read_structure_set(path).rois}
    assert len(reasons) == 10 and reasons.pop("Areola") == "has no closed contour"
    assert all("slices that the series lacks" in reason for reason in reasons.values())
