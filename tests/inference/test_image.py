from itertools import permutations, product

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_oar.inference.image import as_image, read_image, turned, turned_axes, write_labels

RNG = np.random.default_rng(0)
ORIENTATIONS = [
    "".join(pair[side] for pair, side in zip(order, sides, strict=True))
    for order in permutations(("RL", "AP", "SI"))
    for sides in product((0, 1), repeat=3)
]


def ct(orientation="LPS", dtype=np.int16) -> sitk.Image:
    image = sitk.GetImageFromArray(RNG.integers(-1000, 1000, (4, 5, 6)).astype(dtype))
    image.SetSpacing((1.0, 2.0, 3.0))
    return sitk.DICOMOrient(image, orientation)


@pytest.mark.parametrize("letters", ORIENTATIONS)
def test_arrays_are_turned_as_nnunets_reader_does(letters):
    source = ct(letters)
    image = as_image(source)
    expected = sitk.DICOMOrient(source, "RAS")
    array = turned(image.array[0], image.orientation, "SAR")
    assert np.array_equal(array, sitk.GetArrayFromImage(expected))
    spacing = [image.spacing_mm[axis] for axis in turned_axes(image.orientation, "SAR")]
    assert np.allclose(spacing, expected.GetSpacing()[::-1])
    # what is written into the view comes back in the file's own order
    labels = np.zeros(image.array.shape[1:], np.uint8)
    turned(labels, image.orientation, "SAR")[:] = array > 0
    assert np.array_equal(labels, image.array[0] > 0)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_labels_lie_on_the_grid_of_the_file(tmp_path, ending):
    source = ct("RAI")
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    source.SetDirection((np.reshape(source.GetDirection(), (3, 3)) @ turn).ravel())
    source.SetOrigin((10.0, -20.0, 30.0))
    sitk.WriteImage(source, str(tmp_path / f"ct{ending}"))
    image = read_image([tmp_path / f"ct{ending}"])
    labels = (image.array[0] > 0).astype(np.uint8)
    write_labels(image.with_labels(labels), tmp_path / f"labels{ending}")
    written, read = sitk.ReadImage(str(tmp_path / f"labels{ending}")), sitk.ReadImage(str(tmp_path / f"ct{ending}"))
    assert np.array_equal(sitk.GetArrayFromImage(written), labels)
    for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(written, what)(), getattr(read, what)(), atol=1e-5)


def test_a_sheared_nifti_goes_through_nibabel(tmp_path):
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    affine[1, 2] = 1.2  # a tilted gantry
    image = nibabel.Nifti1Image(RNG.integers(-100, 100, (6, 5, 4)).astype(np.int16), None)
    image.set_sform(affine, 1)
    nibabel.save(image, tmp_path / "ct.nii.gz")
    found = read_image([tmp_path / "ct.nii.gz"])
    write_labels(found.with_labels((found.array[0] > 0).astype(np.uint8)), tmp_path / "labels.nii.gz")
    written = nibabel.load(tmp_path / "labels.nii.gz")
    assert np.allclose(written.affine, affine) and written.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(image.dataobj) > 0)
    assert found.orientation == "SAL"


def test_arrays_need_their_geometry():
    array = np.zeros((3, 4, 5), np.float32)
    with pytest.raises(ValueError, match="needs spacing_mm.*direction"):
        as_image(array)
    image = as_image(array, (3, 2, 1), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    assert image.array.shape == (1, 3, 4, 5) and image.orientation == "SPL"
    assert isinstance(image.with_labels(array), np.ndarray)


def bad_files(folder):
    good = folder / "good.nii.gz"
    sitk.WriteImage(ct(), str(good))
    (folder / "truncated.nii.gz").write_bytes(good.read_bytes()[:-60])
    (folder / "text.nii.gz").write_text("no image")
    (folder / "empty.nii.gz").write_bytes(b"")
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5, 2), np.int16), np.eye(4)), folder / "four.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True), str(folder / "rgb.mha"))
    with_nan = np.zeros((3, 4, 5), np.float32)
    with_nan[1, 1, 1] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(with_nan), str(folder / "nan.nrrd"))
    huge = ct()
    huge.SetSpacing((1.0, 1.0, 900.0))
    sitk.WriteImage(huge, str(folder / "spacing.mha"))
    # nibabel takes the sform, SimpleITK the qform
    affine = np.array([[-0.9, 0, 0, 200], [0, 0.9, 0, -150], [0, 0, 3, -40], [0, 0, 0, 1]])
    two = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), affine)
    two.set_sform(affine, 2)
    two.set_qform(np.diag([-1.0, 1, 1, 1]) @ affine, 1)
    nibabel.save(two, folder / "directions.nii.gz")
    sizes = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), affine)
    sizes.header["pixdim"][1:4], sizes.header["qform_code"] = 1, 0
    nibabel.save(sizes, folder / "sizes.nii.gz")
    return folder


@pytest.mark.parametrize(
    "name, words",
    [
        ("truncated.nii.gz", ""), ("text.nii.gz", ""), ("empty.nii.gz", ""), ("missing.nii.gz", "does not exist"),
        ("four.nii.gz", "4 dimensions"), ("rgb.mha", "3 values in each voxel"), ("nan.nrrd", "1 voxels are NaN"),
        ("spacing.mha", "check the header's spacing"), ("directions.nii.gz", "two affines"),
        ("sizes.nii.gz", "two sizes of a voxel, 1 x 1 x 1 and 0.9 x 0.9 x 3 mm"),
    ],
)  # fmt: skip
def test_what_is_no_ct_is_refused_with_its_name(tmp_path, name, words):
    with pytest.raises(ValueError) as error:
        read_image([bad_files(tmp_path) / name])
    text = str(error.value)
    assert name in text and words in text and "\n" not in text


@pytest.mark.parametrize("factor, taken", [(1.002, True), (0.98, False)])
def test_sizes_that_formats_round_are_one(tmp_path, factor, taken):
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.diag([-0.9, -0.9, 3.0, 1.0]))
    image.header["pixdim"][3] *= factor
    nibabel.save(image, tmp_path / "ct.nii.gz")
    if taken:
        assert read_image([tmp_path / "ct.nii.gz"]).spacing_mm[0] == pytest.approx(3.0, rel=0.01)
    else:
        with pytest.raises(ValueError, match="ct.nii.gz.* two sizes of a voxel"):
            read_image([tmp_path / "ct.nii.gz"])


def test_an_image_says_itself_how_it_lies():
    image = sitk.GetImageFromArray(np.zeros((4, 5, 6), np.int16))
    for options in ({"spacing_mm": (1, 1, 1)}, {"direction": np.eye(3)}):
        with pytest.raises(ValueError, match="are for arrays; an image says itself"):
            as_image(image, **options)


@pytest.mark.parametrize("ending, field", [(".nrrd", b"space: "), (".mha", b"TransformMatrix = ")])
def test_a_file_that_does_not_say_how_it_lies_is_remarked_on(tmp_path, ending, field):
    path = tmp_path / f"ct{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 6), np.int16)), str(path), False)
    assert read_image([path]).remarks == ()
    content = path.read_bytes()
    start = content.index(field)
    path.write_bytes(content[:start] + content[content.index(b"\n", start) + 1 :])
    if ending == ".nrrd":  # vectors need a space
        content = path.read_bytes()
        for name in (b"space directions", b"space origin"):
            start = content.index(name)
            content = content[:start] + content[content.index(b"\n", start) + 1 :]
        path.write_bytes(content.replace(b"encoding", b"spacings: 1 1 1\nencoding"))
    (remark,) = read_image([path]).remarks
    assert remark == f"ct{ending} does not say how it lies in the patient: check left and right"
    assert len(read_image([path, path]).remarks) == 2


def test_channels_must_lie_on_one_grid(tmp_path):
    for name, letters in (("a.mha", "LPS"), ("b.mha", "RAS")):
        sitk.WriteImage(ct(letters), str(tmp_path / name))
    assert read_image([tmp_path / "a.mha"] * 2).array.shape[0] == 2
    with pytest.raises(ValueError, match="b.mha.*must lie on one grid"):
        read_image([tmp_path / "a.mha", tmp_path / "b.mha"])


# ---------------------------------------------------------------- left and right


@settings(deadline=None)
@given(st.sampled_from(ORIENTATIONS), st.sampled_from(ORIENTATIONS), st.integers(0, 2))
def test_turned_back_is_where_it_was(letters, wanted, lead):
    array = np.arange(2**lead * 24).reshape((2,) * lead + (2, 3, 4))
    there = turned(array, letters, wanted)
    assert np.array_equal(turned(there, wanted, letters), array) and np.shares_memory(there, array)
    assert np.array_equal(turned(array, letters, letters), array)
    assert there.shape[lead:] == tuple(array.shape[lead + axis] for axis in turned_axes(letters, wanted))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_files_of_one_anatomy_are_turned_to_one_array(tmp_path, ending):
    """By hand, without SimpleITK's reorientation: what is at the patient's left in one file is so in the other."""
    # marks at the patient's left, front and head, and inside
    canonical = np.zeros((4, 5, 6), np.int16)
    canonical[:, :, 0], canonical[:, -1], canonical[-1] = 1, 2, 3
    canonical[2, 3, 1] = 9
    # ITK's world is LPS: an identity is an LPS file
    files = {
        "lps": (canonical[:, ::-1, ::-1], (1, 0, 0, 0, 1, 0, 0, 0, 1)),
        "ras": (canonical, (-1, 0, 0, 0, -1, 0, 0, 0, 1)),
        "pir": (canonical[::-1, ::-1].transpose(2, 0, 1), (0, 0, -1, 1, 0, 0, 0, -1, 0)),
    }
    for name, (array, direction) in files.items():
        image = sitk.GetImageFromArray(np.ascontiguousarray(array))
        image.SetDirection(direction)
        sitk.WriteImage(image, str(tmp_path / f"{name}{ending}"))
        found = read_image([tmp_path / f"{name}{ending}"])
        assert np.array_equal(turned(found.array[0], found.orientation, "SAR"), canonical), name
        assert np.array_equal(turned(found.array[0], found.orientation, "SPL"), canonical[:, ::-1, ::-1])


def test_niftis_of_one_anatomy_are_turned_to_one_array(tmp_path):
    """The same with nibabel, whose world is RAS and whose arrays are (x, y, z)."""
    canonical = RNG.integers(-100, 100, (4, 5, 6)).astype(np.int16)
    ras = canonical.transpose()
    nibabel.save(nibabel.Nifti1Image(ras, np.diag([1.0, 2, 3, 1])), tmp_path / "ras.nii")
    nibabel.save(nibabel.Nifti1Image(ras[::-1, ::-1], np.diag([-1.0, -2, 3, 1])), tmp_path / "lps.nii")
    for name in ("ras.nii", "lps.nii"):
        for image in (read_image([tmp_path / name]), as_image(nibabel.load(tmp_path / name))):
            assert np.array_equal(turned(image.array[0], image.orientation, "SAR"), canonical)
            assert image.spacing_mm == pytest.approx((3, 2, 1))


# ---------------------------------------------------------------- back into the file's form


def turn(*degrees) -> np.ndarray:
    """Rotation about x, then y, then z."""
    out = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        one = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        one[[a, b, a, b], [a, b, b, a]] = np.cos(angle), np.cos(angle), -np.sin(angle), np.sin(angle)
        out = one @ out
    return out


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("letters", ["LPS", "RAS", "SLA", "AIR"])
def test_an_oblique_ct_and_its_labels_lie_in_one_place(tmp_path, letters, ending):
    """About all axes, and in millimetres: the same for each corner of the volume."""
    source = ct(letters)
    source.SetDirection((turn(17, -25, 12) @ np.reshape(source.GetDirection(), (3, 3))).ravel())
    source.SetOrigin((-123.4, 56.7, 890.1))
    source.SetSpacing((0.977, 1.3, 2.5))
    path, out = tmp_path / f"ct{ending}", tmp_path / f"labels{ending}"
    sitk.WriteImage(source, str(path))
    image = read_image([path])
    assert image.array.shape == (1, *source.GetSize()[::-1]) and image.spacing_mm == pytest.approx((2.5, 1.3, 0.977))
    labels = RNG.integers(0, 4, image.array.shape[1:]).astype(np.uint8)
    write_labels(image.with_labels(labels), out)
    written = sitk.ReadImage(str(out))
    assert written.GetPixelID() == sitk.sitkUInt8 and np.array_equal(sitk.GetArrayFromImage(written), labels)
    for corner in product(*((0, size - 1) for size in source.GetSize())):
        places = [np.array(of.TransformIndexToPhysicalPoint(corner)) for of in (source, written)]
        assert np.abs(places[0] - places[1]).max() < 2e-3
    assert as_image(written).orientation == image.orientation


def test_what_is_in_memory_comes_back_in_its_own_form():
    affine = np.diag([-1.0, 2, 3, 1])
    affine[:3, 3] = 10, 20, 30
    source = nibabel.Nifti1Image(np.zeros((6, 5, 4), np.float32), affine)
    source.header.set_sform(affine, 2)
    labels = RNG.integers(0, 300, (4, 5, 6)).astype(np.uint16)
    out = as_image(source).with_labels(labels)
    assert type(out) is nibabel.Nifti1Image and np.array_equal(np.asarray(out.dataobj), labels.transpose())
    assert np.array_equal(out.affine, affine) and out.header["sform_code"] == 2 and out.get_data_dtype() == np.uint16
    # the image that was given is not changed
    assert source.get_data_dtype() == np.float32 and not np.asarray(source.dataobj).any()
    stock = ct("RAI")
    out = as_image(stock).with_labels(labels.astype(np.uint8)[: stock.GetDepth()])
    assert isinstance(out, sitk.Image) and out.GetDirection() == stock.GetDirection()
    # of channels it is the first that is given back
    out = as_image([stock, stock]).with_labels(labels.astype(np.uint8))
    assert isinstance(out, sitk.Image) and out.GetNumberOfComponentsPerPixel() == 1


def test_labels_of_a_scaled_nifti_are_not_scaled(tmp_path):
    """A CT stored as unsigned numbers with a slope and an intercept, through SimpleITK and, with a shear, through nibabel."""
    shear = np.diag([-2.0, 2.0, 3.0, 1.0])
    shear[1, 2] = 1.2
    stored = RNG.integers(0, 3000, (6, 5, 4)).astype(np.uint16)
    for name, affine in (("straight.nii.gz", np.diag([-2.0, 2.0, 3.0, 1.0])), ("shear.nii.gz", shear)):
        image = nibabel.Nifti1Image(stored, None)
        image.set_sform(affine, 1)
        image.header.set_zooms((2.0, 2.0, 3.0))
        image.header.set_slope_inter(0.5, -1024)
        nibabel.save(image, tmp_path / "scaled.nii.gz")
        raw = np.asarray(nibabel.load(tmp_path / "scaled.nii.gz").dataobj)
        found = read_image([tmp_path / "scaled.nii.gz"])
        np.testing.assert_allclose(found.array[0], raw.transpose(), atol=1e-3)
        labels = RNG.integers(0, 4, (4, 5, 6)).astype(np.uint8)
        write_labels(found.with_labels(labels), tmp_path / name)
        written = nibabel.load(tmp_path / name)
        assert np.array_equal(np.asarray(written.dataobj).transpose(), labels) and written.get_data_dtype() == np.uint8


# ---------------------------------------------------------------- refusals


def spacing_in_nifti(path, spacing, qform: int, sform: int):
    """What no library writes: x voxels of this size in mm. qform, sform: the codes that say which of them counts."""
    nifti(path, RNG.integers(-100, 100, (6, 5, 4)).astype(np.int16), ".nii")
    raw = bytearray((path / "bad.nii").read_bytes())
    raw[80:84] = np.array(spacing, "<f4").tobytes()
    raw[252:256] = np.array([qform, sform], "<i2").tobytes()
    raw[280:296] = np.array([spacing, 0, 0, 0], "<f4").tobytes()
    (path / "bad.nii").write_bytes(raw)


def written(path, source, ending):
    sitk.WriteImage(source, str(path / f"bad{ending}"))
    return path / f"bad{ending}"


def with_value(value) -> sitk.Image:
    array = np.zeros((3, 4, 5), np.float32)
    array[1, 1, 1] = value
    return sitk.GetImageFromArray(array)


def truncated(path, ending, part):
    whole = written(path, ct(), ending).read_bytes()
    (path / f"bad{ending}").write_bytes(whole[: int(len(whole) * part)])


def text(path, ending):
    (path / f"bad{ending}").write_text("Dear colleague,\nplease find attached\n")


def edited(path, ending, line, value):
    """A text header in which one line says something else."""
    file = written(path, ct(), ending)
    raw = file.read_bytes()
    start = raw.index(line.encode())
    file.write_bytes(raw[:start] + f"{line}{value}".encode() + raw[raw.index(b"\n", start) :])


def sheared(path, array):
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    affine[1, 2] = 1.2
    image = nibabel.Nifti1Image(array, None)
    image.set_sform(affine, 1)
    nibabel.save(image, path / "bad.nii.gz")


def spaced(*spacing) -> sitk.Image:
    image = ct()
    image.SetSpacing(spacing)
    return image


def nifti(path, array, ending=".nii.gz"):
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path / f"bad{ending}")


RGB = np.zeros((6, 5, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
NAN = np.full((6, 5, 4), np.nan, np.float32)
TWO_CTS = sitk.JoinSeries([spaced(1, 1, 1)] * 2)
VECTORS = sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True)
NO_CT = "check the header's spacing"
FORMATS = (".nii.gz", ".nii", ".nrrd", ".mha")

# name of the case, function that writes the file, its arguments, and what the sentence says
REFUSED = [
    *((f"a part of {ending}", truncated, (ending, part), "") for ending in FORMATS for part in (0.2, 0.9)),
    *((f"text as {ending}", text, (ending,), "") for ending in FORMATS),
    ("nothing", lambda path: (path / "bad.nii.gz").write_bytes(b""), (), ""),
    ("a folder", lambda path: (path / "bad.nii.gz").mkdir(), (), "is a folder"),
    *((f"4D {ending}", written, (TWO_CTS, ending), "4 dimensions") for ending in FORMATS),
    *((f"vectors {ending}", written, (VECTORS, ending), "3 values in each voxel") for ending in FORMATS),
    ("RGB NIfTI", nifti, (RGB,), "3 values in each voxel"),
    ("complex", nifti, (np.zeros((6, 5, 4), np.complex64),), "must be numbers"),
    ("one slice alone", written, (ct()[:, :, 0], ".mha"), "2 dimensions"),
    *(
        (f"{value} in {ending}", written, (with_value(value), ending), "1 voxels are NaN or infinite")
        for ending in (".nrrd", ".mha")
        for value in (np.nan, np.inf, -np.inf)
    ),
    # ITK's NIfTI reader makes 0 HU of it, which is water
    ("NaN in a NIfTI", nifti, (NAN,), "120 voxels are NaN or infinite"),
    ("sheared, 4D", sheared, (np.zeros((6, 5, 4, 2), np.int16),), "4 dimensions"),
    ("sheared, RGB", sheared, (RGB,), "3 values in each voxel"),
    ("sheared, NaN", sheared, (NAN,), "120 voxels are NaN or infinite"),
    *(
        (f"voxels of {size} mm in {ending}", written, (spaced(1, 1, size), ending), NO_CT)
        for ending in FORMATS
        for size in (0.001, 51, 900, 1e9)
    ),
    ("0 mm in .mha", edited, (".mha", "ElementSpacing = ", "0 1 1"), "spacing"),
    ("nan mm in .mha", edited, (".mha", "ElementSpacing = ", "nan 1 1"), "spacing"),
    ("0 mm in .nrrd", edited, (".nrrd", "space directions: ", "(0,0,0) (0,1,0) (0,0,1)"), "spacing"),
    # ITK takes 1 mm where it cannot make sense of a NIfTI's spacing
    *(
        (f"{size} mm in the {form} of a NIfTI", spacing_in_nifti, (size, *codes), "")
        for size in (0, np.nan, 1e9, 1e-6)
        for form, codes in (("qform", (1, 0)), ("sform", (0, 1)), ("two forms", (1, 1)))
        if size or form != "qform"
    ),
]


@pytest.mark.parametrize("make, arguments, words", [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_one_sentence_names_the_file(tmp_path, make, arguments, words):
    make(tmp_path, *arguments)
    (path,) = tmp_path.glob("bad*")
    with pytest.raises(ValueError) as error:
        read_image([path])
    text = str(error.value)
    assert path.name in text and words in text and "\n" not in text


def test_more_than_four_metres_are_no_patient():
    image = sitk.GetImageFromArray(np.zeros((90, 1, 1), np.int16))
    image.SetSpacing((1, 1, 45))
    with pytest.raises(ValueError, match=NO_CT):
        as_image(image)


@pytest.mark.parametrize("ending, line, value", [
    (".mha", "ElementSpacing = ", "-1 2 3"), (".nrrd", "space directions: ", "(-1,0,0) (0,2,0) (0,0,3)"),
])  # fmt: skip
def test_a_negative_spacing_is_an_axis_that_runs_the_other_way(tmp_path, ending, line, value):
    """These formats allow it, and ITK puts every voxel where the header says."""
    edited(tmp_path, ending, line, value)
    image = read_image([tmp_path / f"bad{ending}"])
    assert image.orientation == "SPR" and image.spacing_mm == (3, 2, 1)
    assert image.source.TransformIndexToPhysicalPoint((2, 0, 0)) == pytest.approx((-2, 0, 0))


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image[:, :, 1:],
        lambda image: sitk.DICOMOrient(image, "RAS"),
        lambda image: image.SetSpacing((1.0, 2.0, 3.1)),
        lambda image: image.SetOrigin((0, 0, 60)),
        lambda image: image.SetDirection(turn(0, 0, 20).ravel()),
    ],
    ids=["size", "orientation", "spacing", "origin", "direction"],
)
def test_channels_on_different_grids_are_refused(tmp_path, change):
    """One tells of another place than the other: labels would lie in neither."""
    first, second = ct(), ct()
    second = change(second) or second
    for name, image in (("a.mha", first), ("b.mha", second)):
        sitk.WriteImage(image, str(tmp_path / name))
    with pytest.raises(ValueError, match="must lie on one grid") as error:
        read_image([tmp_path / "a.mha", tmp_path / "b.mha"])
    assert "b.mha" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("sheared_first", [True, False])
def test_a_sheared_channel_is_not_on_a_straight_ones_grid(tmp_path, sheared_first):
    """nibabel reads one, SimpleITK the other."""
    array = np.zeros((6, 5, 4), np.int16)
    sheared(tmp_path, array)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-2.0, 2.0, 3.0, 1.0])), tmp_path / "straight.nii.gz")
    paths = [tmp_path / "bad.nii.gz", tmp_path / "straight.nii.gz"]
    assert read_image(paths[:1]).orientation == read_image(paths[1:]).orientation
    with pytest.raises(ValueError, match="must lie on one grid"):
        read_image(paths if sheared_first else paths[::-1])


def test_rounded_geometry_is_one_grid(tmp_path):
    """Formats round: a micrometre is no difference. The bad one of several files is named."""
    first, second = ct(), ct()
    second.SetSpacing((1.000001, 2.0, 3.0))
    second.SetOrigin((1e-6, 0, 0))
    for name, image in (("a.mha", first), ("b.mha", second)):
        sitk.WriteImage(image, str(tmp_path / name))
    image = read_image([tmp_path / "a.mha", tmp_path / "b.mha"])
    assert np.array_equal(image.array[1], sitk.GetArrayFromImage(second))
    with pytest.raises(ValueError, match="missing.mha"):
        read_image([tmp_path / "a.mha", tmp_path / "missing.mha"])


@pytest.mark.parametrize(
    "source, spacing, direction, words",
    [
        (np.zeros((3, 4)), (1, 1, 1), np.eye(3).ravel(), r"must be \(Z, Y, X\)"),
        (np.zeros((3, 4, 5)), (1, 1, 1), None, "needs spacing_mm"),
        (np.zeros((3, 4, 5)), (1, 1, 1), (0,) * 9, "whose axes span space"),
        (np.zeros((3, 4, 5)), (1, 1, 1), (1, 0, 0), "whose axes span space"),
        (np.zeros((3, 4, 5)), None, np.eye(3).ravel(), "needs spacing_mm"),
        (np.zeros((3, 4, 5)), (1, 1), np.eye(3).ravel(), "three numbers of mm above 0"),
        (np.zeros((3, 4, 5)), (1, 0, 1), np.eye(3).ravel(), "three numbers of mm above 0"),
        (np.zeros((3, 4, 5)), (1, -1, 1), np.eye(3).ravel(), "three numbers of mm above 0"),
        (np.zeros((3, 4, 5)), (1, np.nan, 1), np.eye(3).ravel(), "three numbers of mm above 0"),
        (np.zeros((3, 4, 5)), (1, 1, 100), np.eye(3).ravel(), NO_CT),
        (np.zeros((3, 0, 5)), (1, 1, 1), np.eye(3).ravel(), "is empty"),
        (np.zeros((3, 4, 5), "U3"), (1, 1, 1), np.eye(3).ravel(), "must be numbers"),
        (np.full((2, 3, 4, 5), np.inf), (1, 1, 1), np.eye(3).ravel(), "120 voxels are NaN or infinite"),
        ("ct.nii.gz", None, None, "got str"),
        (
            [np.zeros((3, 4, 5)), np.zeros((3, 4, 6))],
            (1, 1, 1),
            np.eye(3).ravel(),
            "channel 1 and channel 0.* one grid",
        ),
    ],
)
def test_what_a_caller_holds_is_checked_too(source, spacing, direction, words):
    with pytest.raises(ValueError, match=words) as error:
        as_image(source, spacing, direction)
    assert "\n" not in str(error.value)
