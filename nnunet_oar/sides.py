"""Which organs have a side, from their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


def side_pairs(labels: Mapping[str, int]) -> tuple[list[tuple[int, int]], list[str]]:
    """(left label, right label) of the organs that come in pairs, and the names that have a side but no counterpart.

    A side is one of left/right, l/r, lt/rt, sin/dex as a word of the name: Parotid_L, kidney_left, "left lung", LensR.
    """
    opposite = {"left": "right", "l": "r", "lt": "rt", "sin": "dex"}
    opposite |= {right: left for left, right in opposite.items()}
    # words end at separators and where small letters meet capitals: Parotid_L, kidneyLeft, LensR
    words = {name: re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name) for name in labels}
    words = {name: tuple(word.lower() for word in found) for name, found in words.items()}
    by_words = {value: name for name, value in words.items()}
    pairs, single = [], []
    for name, value in words.items():
        sides = [index for index, word in enumerate(value) if word in opposite]
        if not sides:
            continue
        mirrored = tuple(opposite[word] if index in sides else word for index, word in enumerate(value))
        if mirrored not in by_words:
            single.append(name)
        elif value[sides[0]] in ("left", "l", "lt", "sin"):
            pairs.append((labels[name], labels[by_words[mirrored]]))
    return pairs, single


def describe_sides(organs: Sequence[str]) -> str:
    """One line on which organs are taken for left and right ones, so that a name that is not understood is noticed."""
    labels = {name: label for label, name in enumerate(organs, start=1)}
    pairs, single = side_pairs(labels)
    text = ", ".join(f"{organs[left - 1]} / {organs[right - 1]}" for left, right in pairs) or "none"
    alone = ", ".join(single) or "none"
    return f"Organs taken for left / right pairs: {text}; for one-sided without a counterpart: {alone}"
