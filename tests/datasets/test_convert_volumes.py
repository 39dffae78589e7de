"""Label maps and masks as files: values, overlaps, grids, headers."""

import gzip
import itertools

import nibabel
import numpy as np
import pytest
from published import LEFT_HANDED, OBLIQUE, SHAPE, SLICES_FIRST, geometry, read, write_ct, write_mask, write_volume

from nnunet_oar.datasets.convert.volumes import (
    TOLERANCE_MM,
    copy_image,
    merge_masks,
    open_volume,
    read_label_map,
    require_same_grid,
    write_labels,
)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int64", "float32", "float64"])
def test_whole_numbers_of_any_type_are_labels(tmp_path, dtype):
    labels = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 4
    path = write_volume(tmp_path / "labels.nii.gz", labels.astype(dtype))
    result = read_label_map(path, ("a", "b", "c"))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, labels)


def test_a_slope_in_the_header_is_applied(tmp_path):
    labels = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3
    image = nibabel.Nifti1Image(labels.astype(np.int16) * 2, OBLIQUE)
    image.header.set_slope_inter(0.5, 0)
    path = tmp_path / "labels.nii.gz"
    nibabel.save(image, path)
    assert nibabel.load(path).dataobj.slope == 0.5
    np.testing.assert_array_equal(read_label_map(path, ("a", "b")), labels)


@pytest.mark.parametrize(
    "value, dtype", [(4, "uint8"), (-1, "int16"), (1.5, "float32"), (np.nan, "float32"), (257, "int64")]
)
def test_another_value_is_refused_with_the_file_and_the_value(tmp_path, value, dtype):
    path = write_mask(tmp_path / "labels.nii.gz", (1, 2, 3), value=value, dtype=dtype)
    with pytest.raises(ValueError, match=rf"labels.nii.gz holds the value {value}, expected"):
        read_label_map(path, ("a", "b", "c"))


def smallest_mask_of_each_voxel(masks: dict[int, np.ndarray]) -> tuple[np.ndarray, int]:
    """By the definition, voxel by voxel."""
    merged, several = np.zeros(SHAPE, np.uint8), 0
    for voxel in np.ndindex(SHAPE):
        holders = [label for label, mask in masks.items() if mask[voxel]]
        merged[voxel] = min(holders, key=lambda label: (masks[label].sum(), -label), default=0)
        several += len(holders) > 1
    return merged, several


def test_where_masks_overlap_the_smaller_organ_wins(tmp_path):
    random = np.random.default_rng(0)
    masks = {label: random.random(SHAPE) < share for label, share in ((1, 0.3), (2, 0.7), (3, 0.1), (7, 0.5))}
    files = {label: write_volume(tmp_path / f"{label}.nii.gz", mask.astype(np.uint8)) for label, mask in masks.items()}
    expected, several = smallest_mask_of_each_voxel(masks)
    assert several > 50
    for order in itertools.permutations(files):
        merged, overlap = merge_masks({label: files[label] for label in order})
        np.testing.assert_array_equal(merged, expected)
        assert overlap == several and merged.dtype == np.uint8


def test_of_two_equal_organs_the_higher_label_wins(tmp_path):
    files = {label: write_mask(tmp_path / f"{label}.nii.gz", (0, 0, 0), (0, 0, label)) for label in (1, 2)}
    merged, overlap = merge_masks(files)
    assert merged[0, 0].tolist() == [2, 1, 2, 0] and overlap == 1


def test_a_mask_may_use_any_one_value_and_may_be_empty(tmp_path):
    full = write_mask(tmp_path / "full.nii.gz", (0, 0, 0), value=255)
    empty = write_mask(tmp_path / "empty.nii.gz")
    merged, overlap = merge_masks({1: empty, 2: full})
    assert merged[0, 0, 0] == 2 and merged.sum() == 2 and overlap == 0
    several = write_volume(tmp_path / "several.nii.gz", np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE) % 3)
    with pytest.raises(ValueError, match="several.nii.gz holds the values 1, 2, expected one organ's mask"):
        merge_masks({1: several})


@pytest.mark.parametrize("affine", [OBLIQUE, LEFT_HANDED, SLICES_FIRST])
@pytest.mark.parametrize("codes", [{"sform": 2, "qform": None}, {"sform": None, "qform": 1}, {"sform": 1, "qform": 3}])
def test_labels_lie_exactly_where_the_ct_does(tmp_path, affine, codes):
    ct = write_ct(tmp_path / "ct.nii.gz", affine=affine, **codes)
    labels = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE)
    write_labels(labels, ct, tmp_path / "labels.nii.gz")
    written = nibabel.load(tmp_path / "labels.nii.gz")
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(read(tmp_path / "labels.nii.gz"), labels)
    assert geometry(tmp_path / "labels.nii.gz") == geometry(ct)
    assert written.affine.tobytes() == nibabel.load(ct).affine.tobytes()


def test_nothing_of_the_ct_but_the_grid_is_in_the_labels(tmp_path):
    image = nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), OBLIQUE)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"words of the scanner"))
    image.header["cal_max"] = 2000
    nibabel.save(image, tmp_path / "ct.nii.gz")
    write_labels(np.zeros(SHAPE, np.uint8), tmp_path / "ct.nii.gz", tmp_path / "labels.nii.gz")
    header = nibabel.load(tmp_path / "labels.nii.gz").header
    assert not header.extensions and header["cal_max"] == 0


def test_the_grids_of_ct_and_labels_must_agree(tmp_path):
    ct = open_volume(write_ct(tmp_path / "ct.nii.gz"))

    def labels(name, shape=SHAPE, move=0.0, **codes):
        affine = OBLIQUE.copy()
        affine[1, 3] += move
        return open_volume(write_mask(tmp_path / name, shape=shape, affine=affine, **codes))

    require_same_grid(ct, labels("same.nii.gz"))
    require_same_grid(ct, labels("rounded.nii.gz", move=TOLERANCE_MM / 2))
    with pytest.raises(ValueError, match=r"ct.nii.gz and .*moved.nii.gz must lie on one grid, .* up to 0.002 mm"):
        require_same_grid(ct, labels("moved.nii.gz", move=TOLERANCE_MM * 2))
    with pytest.raises(ValueError, match=r"ct.nii.gz and .*turned.nii.gz must have one shape, .*\(6, 5, 4\)"):
        require_same_grid(ct, labels("turned.nii.gz", shape=(6, 5, 4)))


def test_a_ct_is_copied_byte_for_byte(tmp_path):
    ct = write_ct(tmp_path / "ct.nii.gz")
    ct.chmod(0o444)  # as archives are kept
    copy_image(ct, tmp_path / "copy.nii.gz")
    assert (tmp_path / "copy.nii.gz").read_bytes() == ct.read_bytes()
    assert (tmp_path / "copy.nii.gz").stat().st_mode & 0o200


def damaged(path, kind):
    content = path.read_bytes()
    if kind == "cut":
        path.write_bytes(content[:-20])
    elif kind == "short":
        path.write_bytes(gzip.compress(gzip.decompress(content)[:-20]))
    elif kind == "flipped":
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 255]) + content[-4:])
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif kind == "empty":
        path.write_bytes(b"")
    return path


@pytest.mark.parametrize("kind", ["cut", "short", "flipped", "text", "empty"])
def test_a_damaged_file_is_named(tmp_path, kind):
    random = np.random.default_rng(0).integers(0, 2, (30, 30, 30), np.uint8)  # so that the cut is in the voxels
    path = damaged(write_volume(tmp_path / "volume.nii.gz", random), kind)
    with pytest.raises(ValueError, match="volume.nii.gz cannot be read: ."):
        copy_image(path, tmp_path / "copy.nii.gz")
    with pytest.raises(ValueError, match="volume.nii.gz cannot be read: ."):
        read_label_map(path, ("organ",))


def test_a_series_of_volumes_is_no_ct(tmp_path):
    path = write_volume(tmp_path / "series.nii.gz", np.zeros((3, 4, 5, 2), np.int16))
    with pytest.raises(ValueError, match=r"series.nii.gz must be .* three dimensions, its shape is \(3, 4, 5, 2\)"):
        open_volume(path)


@pytest.mark.parametrize("mirror", [np.diag([-1.0, 1, 1, 1]), np.diag([1.0, -1, 1, 1])])
@pytest.mark.parametrize("codes", [(2, 1), (1, 1), (1, 2), (1, 4)])
def test_a_header_with_two_affines_that_disagree_is_refused(tmp_path, codes, mirror):
    """Readers take the sform, SimpleITK with some codes the qform, and viewers what they like: left would be right."""
    path = write_ct(tmp_path / "ct.nii.gz", affine=LEFT_HANDED)
    open_volume(path)
    image = nibabel.load(path)
    image.set_sform(LEFT_HANDED, codes[0])
    image.set_qform(mirror @ LEFT_HANDED, codes[1])
    nibabel.save(image, tmp_path / "two.nii.gz")
    with pytest.raises(ValueError, match="two.nii.gz holds two affines .* left and right may be mistaken"):
        open_volume(tmp_path / "two.nii.gz")
    # of one that says that it is not known nothing is believed
    image.set_qform(mirror @ LEFT_HANDED, 0)
    nibabel.save(image, tmp_path / "one.nii.gz")
    open_volume(tmp_path / "one.nii.gz")


def test_a_header_that_does_not_say_where_left_is_is_refused(tmp_path):
    path = write_ct(tmp_path / "none.nii.gz", sform=None, qform=None)
    with pytest.raises(ValueError, match="none.nii.gz does not say how it lies in the patient .* fslorient"):
        open_volume(path)


def test_a_qform_that_is_no_rotation_does_not_matter_beside_a_sform(tmp_path):
    """Rounded in the header, as real files have it."""
    path = write_ct(tmp_path / "ct.nii.gz", affine=LEFT_HANDED)
    image = nibabel.load(path)
    image.header["quatern_b"], image.header["quatern_c"] = 0.8, 0.8
    nibabel.save(nibabel.Nifti1Image(image.dataobj, None, image.header), tmp_path / "rounded.nii.gz")
    np.testing.assert_allclose(open_volume(tmp_path / "rounded.nii.gz").affine, LEFT_HANDED)


def test_a_shear_at_which_nnunet_stops_is_refused(tmp_path):
    sheared = LEFT_HANDED.copy()
    sheared[0, 2] = 0.8
    image = nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), sheared)
    nibabel.save(image, tmp_path / "tilted.nii.gz")
    with pytest.raises(ValueError, match="tilted.nii.gz has axes that are not at right angles .* resample it"):
        open_volume(tmp_path / "tilted.nii.gz")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_ct_with_voxels_that_are_no_numbers_is_refused(tmp_path, value):
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3] = value
    path = write_volume(tmp_path / "ct.nii.gz", array)
    with pytest.raises(ValueError, match="ct.nii.gz .*1 voxels are NaN or infinite"):
        copy_image(path, tmp_path / "copy.nii.gz")
    assert not (tmp_path / "copy.nii.gz").exists()
