# ruff: noqa: E501
"""Odd and damaged folders: each is read right or refused with one sentence that names it, whatever is wrong."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from ct_series import Geometry, write_series
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

from nnunet_oar.dicom.series import read_series
from nnunet_oar.dicom.volume import hu_image

SLICES, SHAPE = 8, (40, 48)
HU = np.random.default_rng(1).integers(-1000, 1500, (SLICES, *SHAPE))


def elements(folder, wanted=lambda index: True, **values):
    """The series with other elements in some slices; None deletes one."""

    def change(index, ds):
        for keyword, value in values.items() if wanted(index) else ():
            if value is None:
                del ds[keyword]
            else:
                setattr(ds, keyword, value(ds) if callable(value) else value)

    return write_series(folder, HU, Geometry(SHAPE, depths=np.arange(SLICES) * 3.0), change)


def one(index):
    return lambda other: other == index


def copied(folder, index, **values):
    """One more file, of a slice with other elements."""
    dataset = pydicom.dcmread(elements(folder)[index])
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(folder / "more.dcm")


def moved(index, by):
    return lambda ds: [*ds.ImagePositionPatient[:2], float(ds.ImagePositionPatient[2]) + by]


def without(folder, *indices):
    for index, path in enumerate(elements(folder)):
        if index in indices:
            path.unlink()


def cut(folder, index, share):
    path = elements(folder)[index]
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def cut_at(folder, index, size, ending=".dcm"):
    """After so many bytes; endings of all files changed."""
    paths = elements(folder)
    paths[index].write_bytes(paths[index].read_bytes()[:size])
    for path in paths:
        path.rename(path.with_suffix(ending))


def sideways(folder, index, by):
    change = lambda ds: [float(ds.ImagePositionPatient[0]) + by, *ds.ImagePositionPatient[1:]]  # noqa: E731
    elements(folder, one(index), ImagePositionPatient=change)


def without_any_uid(folder, **values):
    """Two patients beside each other, as an archive without UIDs leaves them."""
    empty = dict(SeriesInstanceUID="", SOPInstanceUID="")
    elements(folder / "a", **empty)
    elements(folder / "b", **empty, ImagePositionPatient=moved(1, 24.0), **values)


def noise(folder, index, seed):
    path = elements(folder)[index]
    path.write_bytes(np.random.default_rng(seed).bytes(2000))


def compressed(folder, syntax):
    for path in elements(folder):
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)


def broken_stream(folder):
    compressed(folder, RLELossless)
    path = sorted(folder.iterdir())[3]
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([b"\x01\x02\x03\x04" * 5])
    dataset.save_as(path)


def shifted(folder, by):
    write_series(folder, HU, Geometry(SHAPE, depths=np.arange(SLICES) * 3.0, tilt=by))


def spaced(folder, depths):
    write_series(folder, HU[: len(depths)], Geometry(SHAPE, depths=np.array(depths, float)))


def two(folder, **values):
    elements(folder / "a")
    elements(folder / "b", **values)


PIXEL = "ImagePositionPatient ImageOrientationPatient PixelSpacing Rows Columns RescaleIntercept RescaleSlope".split()
REFUSED = {
    **{f"no {keyword}": (lambda folder, k=keyword: elements(folder, **{k: None}), f"lacks {keyword}") for keyword in PIXEL},
    **{f"no {keyword} in one": (lambda folder, k=keyword: elements(folder, one(4), **{k: None}), f"lacks {keyword}") for keyword in PIXEL},
    **{f"{k} empty": (lambda folder, k=k: elements(folder, one(2), **{k: ""}), f"lacks {k}") for k in ("PixelSpacing", "RescaleSlope")},
    "no modality": (lambda folder: elements(folder, Modality=None), "says no modality"),
    "other modality": (lambda folder: elements(folder, Modality="MR"), "found 8 of MR"),
    "secondary capture": (lambda folder: elements(folder, SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "holds no CT series"),
    "enhanced": (lambda folder: elements(folder, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1"), "many frames"),
    "frames": (lambda folder: elements(folder, one(1), NumberOfFrames=3), "many frames"),
    "colour": (lambda folder: elements(folder, PhotometricInterpretation="RGB", SamplesPerPixel=3), "no CT slice"),
    "inverted": (lambda folder: elements(folder, one(0), PhotometricInterpretation="MONOCHROME1"), "no CT slice"),
    "scout among the slices": (lambda folder: elements(folder, one(5), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localiser image under the same series"),
    "scouts alone": (lambda folder: elements(folder, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localiser images only"),
    "two series": (two, "holds 2 CT series"),
    "two series in one folder": (lambda folder: elements(folder, lambda index: index % 2, SeriesInstanceUID="1.2"), "holds 2 CT series"),
    "empty and other series": (lambda folder: two(folder, SeriesInstanceUID=""), "without UID"),
    "oblique slice": (lambda folder: elements(folder, one(3), ImageOrientationPatient=[1, 0, 0, 0, 0.99, 0.141067]), "differ in orientation"),
    "flipped slice": (lambda folder: elements(folder, one(3), ImageOrientationPatient=[-1, 0, 0, 0, 1, 0]), "differ in orientation"),
    "orientation of zeros": (lambda folder: elements(folder, ImageOrientationPatient=[0] * 6), "no pair of unit vectors"),
    "orientation twice the same": (lambda folder: elements(folder, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "no pair of unit vectors"),
    "orientation of five": (lambda folder: elements(folder, one(6), ImageOrientationPatient=[1, 0, 0, 0, 1]), "must be 6 numbers"),
    "position of two": (lambda folder: elements(folder, one(6), ImagePositionPatient=[1, 0]), "must be 3 numbers"),
    "spacing of zero": (lambda folder: elements(folder, PixelSpacing=[0, 1]), "above 0"),
    "negative spacing": (lambda folder: elements(folder, PixelSpacing=[-1, -1]), "above 0"),
    "huge spacing": (lambda folder: elements(folder, PixelSpacing=[700, 700]), None),
    "other spacing in one": (lambda folder: elements(folder, one(2), PixelSpacing=[1.5, 1.3]), "differ in size or pixel spacing"),
    "other frame of reference": (lambda folder: elements(folder, one(2), FrameOfReferenceUID="1.2.3"), "differ in frame of reference"),
    **{f"duplicate of {index}": (lambda folder, i=index: copied(folder, i), "lie at the same place") for index in (0, 3, 7)},
    **{f"another at the place of {index}": (lambda folder, i=index: copied(folder, i, SOPInstanceUID=generate_uid(prefix=None)), "lie at the same place") for index in (0, 4)},
    **{f"missing {index}": (lambda folder, i=index: without(folder, i), "slices are missing between") for index in (1, 3, 6)},
    "two missing side by side": (lambda folder: without(folder, 3, 4), "slices are missing between"),
    "one moved": (lambda folder: elements(folder, one(4), ImagePositionPatient=moved(4, 1.0)), "--resample accepts that"),
    "all at one place": (lambda folder: elements(folder, ImagePositionPatient=[0, 0, 0]), "lie at the same place"),
    **{f"tilt {tilt}": (lambda folder, t=tilt: shifted(folder, t), "tilt of") for tilt in (0.1, -0.2, 0.5)},
    "spacing changes": (lambda folder: spaced(folder, [0, 2, 4, 6, 9, 12, 15, 18]), "lie 2.00 to 3.00 mm"),
    "spacing doubles": (lambda folder: spaced(folder, [0, 2, 4, 6, 10, 14, 18, 22]), "--resample accepts that"),
    **{f"cut at {share}": (lambda folder, s=share: cut(folder, 3, s), None) for share in (0.02, 0.2, 0.5, 0.7, 0.9, 0.99)},
    **{f"noise {seed}": (lambda folder, s=seed: noise(folder, 2, s), "slice0002.dcm") for seed in range(8)},
    **{f"end {end} cut at {size}": (lambda folder, e=end, s=size: cut_at(folder, e, s), None) for end in (0, 7) for size in (10, 140, 200, 300, 400, 500, 700, 900, 1200)},
    **{f"no endings, {size} bytes at the end": (lambda folder, s=size: cut_at(folder, 7, s, ""), None) for size in (0, 50, 140, 300, 600)},
    "scattered missing": (lambda folder: spaced(folder, [0, 3, 9, 12, 15, 21, 24, 27]), "slices are missing between"),
    "one far sideways": (lambda folder: sideways(folder, 3, 20.0), "not evenly as by a tilted gantry"),
    "last far sideways": (lambda folder: sideways(folder, 7, 500.0), "not evenly as by a tilted gantry"),
    "leaning by 60 degrees": (lambda folder: shifted(folder, 1.8), "not evenly as by a tilted gantry"),
    "two patients without UIDs": (lambda folder: without_any_uid(folder, PatientID="P2"), "differ in patient or study"),
    "two studies without UIDs": (lambda folder: without_any_uid(folder), "differ in patient or study"),
    "last is of no modality": (lambda folder: elements(folder, one(7), Modality="OT"), "and no CT image, but OT"),
    "last is a capture": (lambda folder: elements(folder, one(7), SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "Secondary Capture"),
    **{f"slope {slope}": (lambda folder, s=slope: elements(folder, RescaleSlope=s), "make no HU") for slope in (0, -1, 1e16)},
    "intercept": (lambda folder: elements(folder, RescaleIntercept="1e19"), "make no HU"),
    "bits": (lambda folder: elements(folder, BitsStored=12), "HighBit must be BitsStored - 1"),
    "thickness twice": (lambda folder: elements(folder, one(0), SliceThickness=[3, 3]), "SliceThickness must be a number"),
    "rows twice": (lambda folder: elements(folder, one(2), NumberOfFrames=[1, 1]), "NumberOfFrames must be a number"),
    "empty file": (lambda folder: elements(folder)[5].write_bytes(b""), "slice0005.dcm"),
    "text": (lambda folder: elements(folder)[5].write_text("moved to tape"), "slice0005.dcm"),
    "no pixels": (lambda folder: elements(folder, one(2), PixelData=None), "slice0002.dcm"),
    "too few pixels": (lambda folder: elements(folder, one(2), PixelData=b"\0" * 20), "slice0002.dcm"),
    "rows of another size": (lambda folder: elements(folder, one(2), Rows=39), "differ in size"),
    "broken stream": (broken_stream, "slice0003.dcm"),
    "one slice without thickness": (lambda folder: [path.unlink() for path in elements(folder, SliceThickness="")[1:]], "without SliceThickness"),
    "slope is text": (lambda folder: elements(folder, one(1), RescaleSlope=float("nan")), "RescaleSlope"),
    "nothing": (lambda folder: folder.mkdir(), "no DICOM file"),
    "other files": (lambda folder: (folder.mkdir(), (folder / "notes.txt").write_text("x"))[1], "no DICOM file"),
}  # fmt: skip


def stored_as(folder, dtype, intercept, slope):
    """Pixels of another type; HU are multiples of the slope."""
    bits = np.dtype(dtype).itemsize * 8

    def change(index, ds):
        ds.PixelData = np.rint((HU[index] - intercept) / slope).astype(dtype).tobytes()
        ds.BitsAllocated = ds.BitsStored = bits
        ds.HighBit, ds.PixelRepresentation = bits - 1, int(np.dtype(dtype).kind == "i")
        ds.RescaleIntercept, ds.RescaleSlope = intercept, slope

    write_series(folder, HU, Geometry(SHAPE, depths=np.arange(SLICES) * 3.0), change)


def big_endian(folder):
    """Without meta information, so that nothing but the bytes says it."""
    for path in elements(folder):
        dataset = pydicom.dcmread(path)
        dataset.PixelData = dataset.pixel_array.astype(">u2").tobytes()
        dataset.preamble, dataset.file_meta = None, pydicom.dataset.FileMetaDataset()
        pydicom.filewriter.dcmwrite(path, dataset, implicit_vr=False, little_endian=False, enforce_file_format=False)


ACCEPTED = {
    "plain": lambda folder: elements(folder),
    "signed": lambda folder: stored_as(folder, np.int16, 0, 1),
    "32 bits": lambda folder: stored_as(folder, np.uint32, -2000, 1),
    "slope 2": lambda folder: stored_as(folder, np.uint16, -1024, 2),
    "RLE": lambda folder: compressed(folder, RLELossless),
    "JPEG 2000": lambda folder: compressed(folder, JPEG2000Lossless),
    "JPEG-LS": lambda folder: compressed(folder, JPEGLSLossless),
    "12 bits": lambda folder: elements(folder, BitsStored=12, HighBit=11),
    "big endian": big_endian,
    "links": lambda folder: (elements(folder / "there"), (folder / "here").mkdir(), (folder / "here" / "ct").symlink_to(folder / "there"), (folder / "there" / "loop").symlink_to(folder)),
    "empty UIDs": lambda folder: elements(
        folder, SOPInstanceUID="", StudyInstanceUID="", SeriesInstanceUID="", SOPClassUID=""
    ),
    "no thickness": lambda folder: elements(folder, SliceThickness=None),
    "wrong thickness": lambda folder: elements(folder, SliceThickness=7.0),
    "instance numbers reversed": lambda folder: elements(folder, InstanceNumber=lambda ds: 100 - ds.InstanceNumber),
    "no instance numbers": lambda folder: elements(folder, InstanceNumber=None),
    "structure set and dose beside it": lambda folder: (
        elements(folder),
        write_series(folder / "dose", HU[:1], Geometry(SHAPE, depths=np.zeros(1)), Modality="RTDOSE"),
        write_series(folder / "rs", HU[:1], Geometry(SHAPE, depths=np.zeros(1)), Modality="RTSTRUCT"),
    ),
    "scout beside it": lambda folder: (
        elements(folder),
        write_series(folder / "scout", HU[:1], Geometry(SHAPE, depths=np.zeros(1)), ImageType=["A", "B", "LOCALIZER"]),
    ),
    "rounded positions": lambda folder: elements(
        folder, ImagePositionPatient=lambda ds: [*ds.ImagePositionPatient[:2], round(float(ds.ImagePositionPatient[2]) + 0.13, 1)]
    ),
    "DICOMDIR": lambda folder: (elements(folder), (folder / "DICOMDIR").write_bytes(b"\0" * 300)),
}  # fmt: skip


def test_there_are_a_hundred():
    assert len(REFUSED) + len(ACCEPTED) >= 100


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind, tmp_path):
    make, problem = REFUSED[kind]
    make(tmp_path / "ct")
    with pytest.raises(ValueError) as error:
        image = hu_image(read_series(tmp_path / "ct"))
        if kind == "huge spacing":
            from nnunet_oar.inference.image import as_image

            as_image(image)
    text = str(error.value)
    assert "\n" not in text and (problem or "") in text
    if kind != "huge spacing":
        assert str(tmp_path / "ct") in text


@pytest.mark.parametrize("kind", ACCEPTED)
def test_accepted(kind, tmp_path):
    ACCEPTED[kind](tmp_path / "ct")
    array = sitk.GetArrayFromImage(hu_image(read_series(tmp_path / "ct")))
    expected = HU if kind != "slope 2" else np.rint((HU + 1024) / 2) * 2 - 1024
    assert np.array_equal(array, expected)


@pytest.mark.filterwarnings("ignore:::pydicom")
@pytest.mark.parametrize("seed", range(60))
def test_flipped_bytes_in_headers(seed, tmp_path):
    """Read or refused with a sentence that names a file, never another exception; what is read is whole, in finite HU."""
    rng = np.random.default_rng(seed)
    for path in elements(tmp_path / "ct")[::3]:
        content = bytearray(path.read_bytes())
        for at in rng.integers(132, len(content) - 2 * SHAPE[0] * SHAPE[1], 6):
            content[at] = rng.integers(256)
        path.write_bytes(bytes(content))
    try:
        array = sitk.GetArrayFromImage(hu_image(read_series(tmp_path / "ct")))
    except ValueError as error:
        assert "\n" not in str(error) and str(tmp_path / "ct") in str(error)
    else:
        assert array.shape == HU.shape and np.isfinite(array).all()
