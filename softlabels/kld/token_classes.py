"""Kinds of tokens, as a tokenizer's table spells them: what a quantisation hurts is not the same for all."""

from __future__ import annotations

import re
import unicodedata

import numpy as np

from softlabels.kld.positions import Int64

SPACE = ("Ġ", "▁", " ")
"""How tables spell a space that a token begins with."""
BLANK = re.compile(r"[ĠĊĉčÂ▁\s]+|<0x0[9AD]>")


def class_of(token: str | None) -> str:
    """The kind of one token; None is one that the table lacks."""
    if token is None or re.fullmatch(r"<[^<>\s]+>|\[[A-Z]+\]", token):
        return "special"
    if BLANK.fullmatch(token):
        return "white space"
    begins = token.startswith(SPACE)
    word = token.lstrip("".join(SPACE))
    first = word[:1]
    if first.isdigit():
        return "number"
    if first.isalpha() and not word.startswith("Ã"):
        return "word begins" if begins else "word goes on"
    return "punctuation" if unicodedata.category(first)[0] in "PS" and ord(first) < 128 else "other"


def classes_of(labels: Int64, table: dict[int, str]) -> list[str]:
    """`[N]`: of each label."""
    ids, place = np.unique(labels, return_inverse=True)
    kinds = [class_of(table.get(int(i))) for i in ids]
    return [kinds[p] for p in place]
