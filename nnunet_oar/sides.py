"""Which organs have a side, from their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

# words for a side in the names of organs
LEFT = frozenset({"left", "l", "lt", "li", "links", "sin", "sinister", "gauche"})
RIGHT = frozenset({"right", "r", "rt", "re", "rechts", "dex", "dexter", "droite", "droit"})
# at the beginning or the end of a word
_GLUED = (("left", "right"), ("links", "rechts"), ("l", "r"))


def side_pairs(labels: Mapping[str, int]) -> tuple[list[tuple[int, int]], list[str]]:
    """(left label, right label) of the organs that come in pairs, and the names that have a side but no counterpart.

    A side is one of LEFT or RIGHT as a word of the name: Parotid_L, kidney_left, "left lung", LensR, Niere_li; or, where a word of
    another name is the same but for it, left/right, links/rechts or l/r at its beginning or end: leftlung, PAROTIDR.
    """
    words = _split(labels)
    by_words = {value: name for name, value in words.items()}
    pairs, single = [], []
    for name, value in words.items():
        if not {"L", "R"} & set(value):
            continue
        mirrored = tuple({"L": "R", "R": "L"}.get(word, word) for word in value)
        if mirrored not in by_words:
            single.append(name)
        elif next(word for word in value if word in "LR") == "L":
            pairs.append((labels[name], labels[by_words[mirrored]]))
    return pairs, single


def _split(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Name -> its words in small letters, "L" or "R" where one is a side."""
    # words end at separators and where small letters meet capitals: Parotid_L, kidneyLeft, LensR
    found = {name: re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name) for name in names}
    sides = dict.fromkeys(LEFT, "L") | dict.fromkeys(RIGHT, "R")
    split = {name: tuple(sides.get(word.lower(), word.lower()) for word in words) for name, words in found.items()}
    known = set(split.values())
    return {name: _unglued(words, known) for name, words in split.items()}


def _unglued(words: tuple[str, ...], known: set[tuple[str, ...]]) -> tuple[str, ...]:
    """With a side of its own where that is glued to a word, and `known` holds the same with the other side."""
    if {"L", "R"} & set(words):
        return words
    for index, word in enumerate(words):
        for left, right in _GLUED:
            for side, own, other in (("L", left, right), ("R", right, left)):
                before, after = words[:index], words[index + 1 :]
                if word.startswith(own) and (*before, other + word[len(own) :], *after) in known:
                    return (*before, side, word[len(own) :], *after)
                if word.endswith(own) and (*before, word[: -len(own)] + other, *after) in known:
                    return (*before, word[: -len(own)], side, *after)
    return words


def describe_sides(organs: Sequence[str]) -> str:
    """One line on which organs are taken for left and right ones, so that a name that is not understood is noticed."""
    labels = {name: label for label, name in enumerate(organs, start=1)}
    pairs, single = side_pairs(labels)
    text = ", ".join(f"{organs[left - 1]} / {organs[right - 1]}" for left, right in pairs) or "none"
    alone = ", ".join(single) or "none"
    return f"Organs taken for left / right pairs: {text}; for one-sided without a counterpart: {alone}"
