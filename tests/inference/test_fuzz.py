"""Two hundred damaged files and four good CTs in one folder, in one call: each damaged file is named in one sentence, the CTs are
predicted, and nothing else is left behind."""

import contextlib
import gzip
import io
import os
import random
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from toy_model import make_model

from nnunet_oar.cli import main

SEED = 20240607
SHAPE, SPACING = (9, 12, 14), (2.0, 2.0, 3.0)
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
# offsets in the header of a NIfTI file
DIM, DATATYPE, PIXDIM, VOX_OFFSET, FORMS, SROW = 40, 70, 76, 108, 252, 280


def ct(seed=0, dtype=np.int16) -> sitk.Image:
    image = sitk.GetImageFromArray(np.random.default_rng(seed).integers(-1000, 1000, SHAPE).astype(dtype))
    image.SetSpacing(SPACING)
    return image


def save(path: Path, image: sitk.Image, **options) -> None:
    sitk.WriteImage(image, str(path), **options)


def content(path: Path, **options) -> bytes:
    """Of a good CT as a file of this name; gzip is taken off."""
    save(path, ct(), **options)
    stored = path.read_bytes()
    return gzip.decompress(stored) if path.name.endswith(".gz") else stored


def compressed(path: Path, stored: bytes) -> None:
    path.write_bytes(gzip.compress(stored) if path.name.endswith(".gz") else stored)


def cut(path: Path, chance: random.Random) -> None:
    """At any length, also such that all voxels are there and only the checksum is not."""
    save(path, ct())
    stored = path.read_bytes()
    keep = chance.choice((chance.randrange(1, len(stored)), len(stored) - chance.randint(1, 8)))
    path.write_bytes(stored[:keep])


def cut_in_upper_case(path: Path, chance: random.Random) -> None:
    """Files from other systems may shout."""
    lower = path.with_name(path.name.lower())
    cut(lower, chance)
    lower.rename(path)


def flipped_header(path: Path, chance: random.Random) -> None:
    """May still be the header of a CT."""
    stored = bytearray(content(path))
    for _ in range(chance.randint(1, 8)):
        stored[chance.randrange(348)] ^= 1 << chance.randrange(8)
    compressed(path, bytes(stored))


def flipped_voxels(path: Path, chance: random.Random) -> None:
    """In the middle of what is compressed: a checksum tells."""
    save(path, ct(), useCompression=True)
    stored = bytearray(path.read_bytes())
    stored[chance.randrange(len(stored) // 2, len(stored) - 8)] ^= 0x55
    path.write_bytes(bytes(stored))


def wrong_field(path: Path, chance: random.Random) -> None:
    """Impossible, or more voxels than the file holds."""
    stored = bytearray(content(path))
    offset, layout, values = chance.choice(
        (
            (DIM, "<h", (0,)), (DIM, "<h", (9,)), (DIM + 2, "<h", (-5,)), (DIM + 2, "<h", (0,)), (DIM + 2, "<h", (30000,)),
            (DIM + 2, "<hhh", (32767,) * 3), (DIM + 6, "<h", (10,)), (DATATYPE, "<h", (999,)), (DATATYPE, "<h", (0,)),
            (DATATYPE, "<hh", (64, 64)), (DATATYPE, "<hh", (1, 1)), (DATATYPE, "<hh", (128, 24)), (VOX_OFFSET, "<f", (1e9,)),
            (VOX_OFFSET, "<f", (354.0,)), (VOX_OFFSET, "<f", (-500.0,)), (VOX_OFFSET, "<f", (float("nan"),)),
            (VOX_OFFSET, "<f", (float("inf"),)), (344, "<4s", (b"none",)),
        )
    )  # fmt: skip
    struct.pack_into(layout, stored, offset, *values)
    compressed(path, bytes(stored))


def not_finite(path: Path, chance: random.Random) -> None:
    array = sitk.GetArrayFromImage(ct(dtype=np.float32))
    array[tuple(chance.randrange(size) for size in SHAPE)] = chance.choice((np.nan, np.inf, -np.inf))
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    save(path, image)


def huge_spacing(path: Path, chance: random.Random) -> None:
    image, spacing = ct(), list(SPACING)
    spacing[chance.randrange(3)] = chance.choice((1e-4, 1e3, 1e9))
    image.SetSpacing(spacing)
    save(path, image)


def no_spacing(path: Path, chance: random.Random) -> None:
    """Zero in pixdim, with or without an affine that knows better, and in the other formats."""
    stored = bytearray(content(path, useCompression=False))
    if ".nii" in path.name:
        struct.pack_into(
            "<fff", stored, PIXDIM + 4, *chance.choice(((0.0, 0.0, 0.0), (2.0, 0.0, 3.0), (2.0, 2.0, 0.0)))
        )
        if chance.random() < 0.5:
            struct.pack_into("<12f", stored, SROW, *(0.0,) * 12)
    else:
        stored = stored.replace(b"ElementSpacing = 2 2 3", b"ElementSpacing = 2 0 3")
        stored = stored.replace(b"space directions: (2,0,0)", b"space directions: (0,0,0)")
    compressed(path, bytes(stored))


def one_slice(path: Path, chance: random.Random) -> None:
    where = [slice(None)] * 3
    at = chance.randrange(3)
    where[at] = slice(0, 1)
    save(path, ct()[tuple(where)])


def four_dimensions(path: Path, chance: random.Random) -> None:
    save(path, sitk.JoinSeries([ct(time) for time in range(2)]))


def colours(path: Path, chance: random.Random) -> None:
    if ".nii" in path.name and chance.random() < 0.5:
        voxels = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    else:
        save(path, sitk.Compose([sitk.Cast(ct(colour), sitk.sitkUInt8) for colour in range(3)]))


def complex_numbers(path: Path, chance: random.Random) -> None:
    save(path, sitk.Cast(ct(), sitk.sitkComplexFloat32))


def no_bytes(path: Path, chance: random.Random) -> None:
    path.write_bytes(b"")


def text(path: Path, chance: random.Random) -> None:
    path.write_text(
        chance.choice(("a", "this is\nno image\n", "<html><body>404</body></html>", "version https://git-lfs\n"))
    )


def noise(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.randbytes(chance.randint(1, 5000)))


def other_format(path: Path, chance: random.Random) -> None:
    """NIfTI without its gzip, or with one too many."""
    stored = content(path)
    path.write_bytes(stored if path.name.endswith(".gz") else gzip.compress(stored))


def unreadable(path: Path, chance: random.Random) -> None:
    save(path, ct())
    path.chmod(0)


def directory(path: Path, chance: random.Random) -> None:
    path.mkdir()


# how many of each, and the endings that it makes sense for
NIFTI = (".nii.gz", ".nii")
KINDS = {
    cut: (32, ENDINGS),
    flipped_voxels: (12, (".nii.gz", ".nrrd", ".mha")),
    no_spacing: (10, ENDINGS),
    cut_in_upper_case: (4, (".NII.GZ", ".NII")),
    flipped_header: (30, NIFTI),
    wrong_field: (24, NIFTI),
    not_finite: (12, ENDINGS),
    huge_spacing: (10, ENDINGS),
    one_slice: (9, ENDINGS),
    four_dimensions: (8, ENDINGS),
    colours: (8, ENDINGS),
    complex_numbers: (4, ENDINGS),
    no_bytes: (5, ENDINGS),
    text: (8, ENDINGS),
    noise: (8, ENDINGS),
    other_format: (6, NIFTI),
    unreadable: (4, ENDINGS),
    directory: (6, ENDINGS),
}
GOOD = ("good a.nii.gz", "good_b_0000.nii", "z good c.nrrd", "~good d.mha")


class Fuzzed:
    """What the one call was given and what it left."""

    def __init__(self, folder: Path):
        chance = random.Random(SEED)
        images = folder / "in"
        images.mkdir()
        self.model = make_model(folder)
        for index, name in enumerate(GOOD):
            save(images / name, ct(index))
        self.damaged: dict[str, list[Path]] = {}
        for kind, (count, endings) in KINDS.items():
            for index in range(count):
                ending = endings[index % len(endings)]
                path = images / f"{kind.__name__}{index:02d}{ending}"
                kind(path, chance)
                self.damaged.setdefault(kind.__name__, []).append(path)
        self.images, self.out = images, folder / "out"

    def predict(self) -> int:
        return main(
            ["predict", "-i", str(self.images), "-o", str(self.out), "-m", str(self.model), "-q", "-device", "cpu"]
        )

    def labels(self, path: Path) -> Path:
        name = path.name.replace("_0000", "")
        return self.out / name.replace(".NII", ".nii").replace(".GZ", ".gz")


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    made = Fuzzed(tmp_path_factory.mktemp("fuzz"))
    # what Python writes; ITK's own warnings go past it
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        made.status = made.predict()
    made.said = stderr.getvalue().splitlines()
    made.errors = [line for line in made.said if line.startswith("nnunet_oar predict: ")]
    return made


def test_there_are_two_hundred():
    assert sum(count for count, _ in KINDS.values()) == 200


def test_all_good_cts_are_predicted(fuzzed):
    for index, name in enumerate(GOOD):
        labels = sitk.ReadImage(str(fuzzed.labels(fuzzed.images / name)))
        assert labels.GetSize() == ct(index).GetSize() and sitk.GetArrayFromImage(labels).any()


def test_the_status_and_the_last_line_tell_of_failures(fuzzed):
    assert fuzzed.status == 1
    *_, last = fuzzed.errors
    assert last == fuzzed.said[-1] and "cases were not predicted" in last


@pytest.mark.parametrize("kind", [kind.__name__ for kind in KINDS])
def test_each_damaged_file_is_named_in_one_sentence_and_has_no_labels(fuzzed, kind):
    if kind == "unreadable" and os.access(fuzzed.damaged[kind][0], os.R_OK):
        pytest.skip("root may read everything")
    wrong = {}
    for path in fuzzed.damaged[kind]:
        lines = [line for line in fuzzed.errors if str(path) in line]
        predicted = fuzzed.labels(path).exists()
        if kind == "flipped_header" and predicted and not lines:
            continue
        if len(lines) != 1 or predicted:
            wrong[path.name] = lines, predicted
    assert not wrong


def test_many_flipped_headers_are_refused(fuzzed):
    """Else this kind, of which some may be predicted, tests nothing."""
    refused = [path for path in fuzzed.damaged["flipped_header"] if not fuzzed.labels(path).exists()]
    assert len(refused) > len(fuzzed.damaged["flipped_header"]) / 4


def test_nothing_else_is_left_behind(fuzzed):
    expected = {"dataset.json", "plans.json"}
    for path in fuzzed.images.iterdir():
        labels = fuzzed.labels(path)
        if labels.exists():
            ending = next(ending for ending in ENDINGS if labels.name.endswith(ending))
            expected |= {labels.name, f"{labels.name.removesuffix(ending)}.json"}
    assert {path.name for path in fuzzed.out.iterdir()} == expected


def test_every_line_is_about_one_file(fuzzed):
    """An error that names a damaged file, or a warning that begins with a case's name; none is broken into lines."""
    damaged = [str(path) for paths in fuzzed.damaged.values() for path in paths]
    cases = {path.stem.removesuffix(".nii") for path in fuzzed.out.iterdir()}
    for line in fuzzed.said[:-1]:
        if line in fuzzed.errors:
            assert sum(path in line for path in damaged) == 1, line
        else:
            assert line.split(": ")[0] in cases, line
