"""VISCERAL Anatomy3: 10000100_1_CTce_ThAb.nii.gz and one file per organ, 10000100_1_CTce_ThAb_58_7.nii.gz, anywhere below SRC.

58 is the organ's RadLex number, 7 the annotator's. An organ whose file a volume lacks is not annotated there. Where
several annotators drew one organ the one with the lowest number is taken: the same for everybody who converts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_oar.datasets.convert.layout import FILE_ENDING, Case, Collection, chosen_organs, counted, nothing_found

NAME = "VISCERAL"
HELP = (
    "VISCERAL Anatomy3: volumes 10000100_1_CTce_ThAb.nii.gz and organs 10000100_1_CTce_ThAb_58_7.nii.gz anywhere below SRC; "
    "MR volumes are left out, of several annotators the lowest number is taken"
)
RADLEX = {
    58: "liver",
    86: "spleen",
    170: "pancreas",
    187: "gallbladder",
    237: "urinary_bladder",
    480: "aorta",
    1247: "trachea",
    1302: "lung_right",
    1326: "lung_left",
    2473: "sternum",
    7578: "thyroid_gland",
    29193: "first_lumbar_vertebra",
    29662: "kidney_right",
    29663: "kidney_left",
    30324: "adrenal_gland_right",
    30325: "adrenal_gland_left",
    32248: "psoas_major_right",
    32249: "psoas_major_left",
    40357: "rectus_abdominis_right",
    40358: "rectus_abdominis_left",
}
_FILE = re.compile(
    r"(?P<volume>\d+_\d+_(?P<modality>CT|CTce|MR[A-Za-z0-9]*)_[A-Za-z]+)(_(?P<radlex>\d+)_(?P<annotator>\d+))?\.nii\.gz"
)


@dataclass
class _Files:
    """volumes: CT -> file. organs: CT -> RadLex number -> annotator -> file. The rest: names of what is left out."""

    volumes: dict[str, Path] = field(default_factory=dict)
    organs: dict[str, dict[int, dict[int, Path]]] = field(default_factory=dict)
    magnetic: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)


def find(folder: Path, organs: Sequence[str] | None = None) -> Collection:
    """organs: which to convert, all that occur where None.

    Raises ValueError where there is no CT volume with an organ, where two files have one name, and for an organ that no
    volume has.
    """
    files = _files_below(folder)
    if not files.volumes:
        raise nothing_found(folder, "CT volumes such as 10000100_1_CTce_ThAb.nii.gz (in its sub-folders, too)")
    # volume -> organ -> annotator -> file
    drawn = {
        volume: {RADLEX[number]: found for number, found in files.organs.get(volume, {}).items() if number in RADLEX}
        for volume in files.volumes
    }
    occurring = [organ for organ in RADLEX.values() if any(organ in found for found in drawn.values())]
    if not occurring:
        example = f"{next(iter(files.volumes))}_58_7.nii.gz"
        raise ValueError(
            f"looked for organs such as {example} of {counted(len(files.volumes), 'CT volume')} below {folder} and found none"
        )
    names = chosen_organs(organs or occurring, occurring, folder)
    training, without, several = [], [], []
    for volume, image in files.volumes.items():
        chosen = {organ: drawn[volume][organ] for organ in names if organ in drawn[volume]}
        several += [f"{volume}, {organ}" for organ, found in chosen.items() if len(found) > 1]
        if chosen:
            masks = {organ: found[min(found)] for organ, found in chosen.items()}
            training.append(Case(volume, image, masks=masks))
        else:
            without.append(volume)
    unknown = sorted({number for found in files.organs.values() for number in found} - set(RADLEX))
    remarks = [
        _remark("left out: {} of MR", files.magnetic, "volume"),
        _remark("left out: {} of CT without any of these organs", without, "volume"),
        _remark("left out: organs of {} that are not there", sorted(set(files.organs) - set(files.volumes)), "volume"),
        _remark("left out: {} of no organ of VISCERAL", [str(number) for number in unknown], "RadLex number"),
        _remark("left out: {} of another name", files.other, "file"),
        _remark("the lowest of several annotators is taken for {}", several, "organ"),
    ]
    return Collection(names, tuple(training), remarks=tuple(filter(None, remarks)))


def _files_below(folder: Path) -> _Files:
    files, seen = _Files(), {}
    for path in sorted(folder.rglob(f"*{FILE_ENDING}")):
        # archives made on macOS hold a file ._X beside each X
        if path.name.startswith(".") or not path.is_file():
            continue
        match = _FILE.fullmatch(path.name)
        if match is None:
            files.other.append(path.name)
        elif match["modality"].startswith("MR"):
            files.magnetic += [] if match["radlex"] else [path.name]
        elif path.name in seen:
            raise ValueError(f"two files are called {path.name}: {seen[path.name]} and {path}; keep one of them")
        else:
            seen[path.name] = path
            if match["radlex"] is None:
                files.volumes[match["volume"]] = path
            else:
                by_number = files.organs.setdefault(match["volume"], {})
                by_number.setdefault(int(match["radlex"]), {})[int(match["annotator"])] = path
    return files


def _remark(text: str, names: Sequence[str], noun: str) -> str:
    return f"{text.format(counted(len(names), noun))} (as {names[0]})" if names else ""
