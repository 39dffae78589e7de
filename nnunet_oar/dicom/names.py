"""Organ names of clinical archives brought to those of AAPM TG-263 (Mayo et al., Int J Radiat Oncol Biol Phys 100, 2018)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nnunet_oar.sides import LEFT, RIGHT

# other signs mean something: TG-263 marks parts of organs with ~, margins with + and -, structures that are no organs with
# a leading _, and people doubt with ?
_PLAIN = re.compile(r"[^\W_]([\w .,()/-]*[\w.)])?")
# TG-263's name without its side -> other names in use; case, separators and order of the side do not matter
SINGLE = {
    "Brain": ("whole brain", "gehirn"),
    "Brainstem": ("brain stem", "bs", "hirnstamm"),
    "OpticChiasm": ("chiasm", "chiasma", "optic chiasm", "chiasma opticum"),
    "Pituitary": ("pituitary gland", "hypophysis"),
    "SpinalCord": ("spinal cord", "cord", "myelon", "medulla spinalis", "rueckenmark"),
    "SpinalCanal": ("spinal canal", "spinalkanal"),
    "Bone_Mandible": ("mandible", "mandibula", "unterkiefer"),
    "Cavity_Oral": ("oral cavity", "cavum oris", "mundhoehle"),
    "Larynx": ("kehlkopf",),
    "Glnd_Thyroid": ("thyroid", "thyroid gland", "schilddruese"),
    "Esophagus": ("oesophagus", "eso", "oesoph", "esoph"),
    "Trachea": (),
    "Heart": ("cor", "herz"),
    "A_Aorta": ("aorta",),
    "Liver": ("hepar", "leber"),
    "Spleen": ("milz",),
    "Stomach": ("gaster", "magen"),
    "Pancreas": ("pankreas",),
    "Gallbladder": ("gall bladder", "gallenblase"),
    "Duodenum": (),
    "Bowel_Small": ("small bowel", "duenndarm"),
    "Colon": (),
    "Bladder": ("urinary bladder", "vesica", "blase", "harnblase"),
    "Rectum": ("rektum",),
    "PenileBulb": ("penile bulb", "bulbus penis"),
    "Prostate": ("prostata",),
}
SIDED = {
    "Eye": ("globe", "eyeball", "auge", "bulbus"),
    "Lens": ("linse",),
    "OpticNrv": ("optic nerve", "optic nrv", "n opticus", "nervus opticus", "sehnerv"),
    "Cochlea": (),
    "Lobe_Temporal": ("temporal lobe", "temporallappen"),
    "Parotid": ("parotid gland", "parotis", "glandula parotis", "glandula parotidea"),
    "Glnd_Submand": ("submandibular", "submandibular gland", "submand", "glnd submandibular"),
    "BrachialPlex": ("brachial plexus", "plexus brachialis"),
    "Lung": ("pulmo", "lunge"),
    "Breast": ("mamma", "brust"),
    "Kidney": ("ren", "niere"),
    "Glnd_Adrenal": ("adrenal", "adrenal gland"),
    "Femur_Head": ("femoral head", "femur head", "head of femur", "femurkopf", "caput femoris"),
}


def key(name: str) -> tuple[str, str]:
    """(letters and digits of the name without its side, side: "L", "R" or ""). Names that mean the same have one key."""
    words = [word.lower() for word in re.findall(r"[^\W\d_]+|\d+", _separated(name))]
    sides = {"L" if word in LEFT else "R" for word in words if word in LEFT | RIGHT}
    rest = "".join(word for word in words if word not in LEFT | RIGHT)
    # both sides, or a side alone, are part of the name
    return ("".join(words), "") if len(sides) != 1 or not rest else (rest, sides.pop())


def read_aliases(path: Path) -> dict[str, tuple[str, ...]]:
    """A JSON file {"Parotid_L": ["Ohrspeicheldruese li", ...], ...}: organ -> names of it. Raises ValueError for anything else."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in found.values()
    ):
        raise ValueError(f'{path} must hold {{"ORGAN": ["OTHER NAME", ...], ...}}')
    bad = [organ for organ in found if organ.strip() in ("", "background", "ignore") or not organ.isprintable()]
    if bad:
        raise ValueError(f"{path}: {bad[0]!r} cannot be the name of an organ")
    return {organ: tuple(names) for organ, names in found.items()}


class Names:
    """Organs by the names that archives give them: those of this module, and `more`, which wins.

    Raises ValueError where `more` gives one name to two organs.
    """

    def __init__(self, more: Mapping[str, Sequence[str]] | None = None):
        self._organs: dict[tuple[str, str], str] = {}
        for organ, names in SINGLE.items():
            self._organs |= {key(name): organ for name in (organ, *names)}
        for organ, names in SIDED.items():
            for side in "LR":
                self._organs |= {(key(name)[0], side): f"{organ}_{side}" for name in (organ, *names)}
        theirs: dict[tuple[str, str], str] = {}
        for organ, names in (more or {}).items():
            for name in (organ, *names):
                if theirs.setdefault(key(name), organ) != organ:
                    raise ValueError(f"{name!r} cannot name both {theirs[key(name)]} and {organ}")
        self._organs |= theirs
        self._exact = {name for organ, names in (more or {}).items() for name in (organ, *names)}

    def organ(self, name: str) -> str | None:
        """TG-263's name, or the user's; None for a name that nobody knows."""
        plain = _PLAIN.fullmatch(name.strip())
        return self._organs.get(key(name)) if plain or name in self._exact else None

    def ordered(self, organs: Iterable[str]) -> list[str]:
        """In the order of the tables."""
        organs = set(organs)
        return [organ for organ in dict.fromkeys(self._organs.values()) if organ in organs]


def _separated(name: str) -> str:
    """With a space where small letters meet capitals: ParotidL, LensR."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
