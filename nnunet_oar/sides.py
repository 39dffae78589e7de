"""Which organs have a side, from their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

# words for a side in the names of organs, left -> right
_RIGHT_OF = {
    "left": ("right",), "l": ("r",), "lt": ("rt",), "li": ("re",), "links": ("rechts",), "sin": ("dex",),
    "sinister": ("dexter",), "gauche": ("droit", "droite"),
}  # fmt: skip
LEFT, RIGHT = frozenset(_RIGHT_OF), frozenset(word for words in _RIGHT_OF.values() for word in words)
_OPPOSITES = _RIGHT_OF | {right: (left,) for left, rights in _RIGHT_OF.items() for right in rights}
# at the beginning or the end of a word
_GLUED = (("left", "right"), ("links", "rechts"), ("l", "r"))


def side_pairs(labels: Mapping[str, int]) -> tuple[list[tuple[int, int]], list[str]]:
    """(left label, right label) of the organs that come in pairs, and the names that have a side but no counterpart.

    A side is one of LEFT or RIGHT as a word of the name: Parotid_L, kidney_left, "left lung", LensR, Niere_li. Where it may be part
    of a word, as the name of another organ is the same but for it (leftlung, rightlung), that is no more than a guess, by which
    nothing may be exchanged: both names are among those without a counterpart.
    """
    # words end at separators and where small letters meet capitals: Parotid_L, kidneyLeft, LensR
    words = {name: re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name) for name in labels}
    words = {name: tuple(word.lower() for word in found) for name, found in words.items()}
    by_words = {value: name for name, value in words.items()}
    pairs, single = [], []
    for name, value in words.items():
        sides = [word for word in value if word in _OPPOSITES]
        if not sides:
            if any(other in by_words for other in _other_sides(value)):
                single.append(name)
            continue
        mirrored = product(*(_OPPOSITES.get(word, (word,)) for word in value))
        partner = next((by_words[other] for other in mirrored if other in by_words), None)
        if partner is None:
            single.append(name)
        elif sides[0] in LEFT:
            pairs.append((labels[name], labels[partner]))
    return pairs, single


def _other_sides(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """What the words would be of the organ of the other side, were a side glued to one of them."""
    for index, word in enumerate(words):
        for left, right in _GLUED:
            for own, other in ((left, right), (right, left)):
                if word.startswith(own):
                    yield (*words[:index], other + word[len(own) :], *words[index + 1 :])
                if word.endswith(own):
                    yield (*words[:index], word[: -len(own)] + other, *words[index + 1 :])


def describe_sides(organs: Sequence[str]) -> str:
    """One line on which organs are taken for left and right ones, so that a name that is not understood is noticed."""
    labels = {name: label for label, name in enumerate(organs, start=1)}
    pairs, single = side_pairs(labels)
    text = ", ".join(f"{organs[left - 1]} / {organs[right - 1]}" for left, right in pairs) or "none"
    alone = ", ".join(single) or "none"
    return (
        f"Organs taken for left / right pairs: {text}; for one-sided without a counterpart that is understood: {alone}"
    )
