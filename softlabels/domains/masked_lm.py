"""`masked-lm`: tokens of a text that are hidden from the model; rows are `MaskedRow`.

Only the text is stored, and which masked view of it the row is: the masks are drawn again (`masking.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.core.rows import UNLABELLED, Int32
from softlabels.domains.columns import listed, lists_of, scalar
from softlabels.domains.masking import ATTENDED, mask_tokens, masking_of
from softlabels.domains.text import TextRow, check_text
from softlabels.errors import IntegrityError
from softlabels.format.columns import Column, Expected
from softlabels.format.identity import Identity, MaskingRecord, TokenizerRecord

__all__ = [
    "DIGEST_BYTES",
    "LABEL_SHIFT",
    "MaskedRow",
    "check",
    "columns",
    "expected",
    "make_row",
    "rows_of",
]

NAME = "masked-lm"
LABEL_SHIFT = 0
DIGEST_BYTES = 16
NUMBERS: dict[str, np.dtype[Any]] = {
    "document": np.dtype(np.int64),
    "piece": np.dtype(np.int32),
    "view": np.dtype(np.int32),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedRow(TextRow):
    """One masked view of a text, or of a piece of a long one."""

    piece: int
    """Which piece of the text, from 0."""

    @property
    def context(self) -> Int32:
        """`[N] int32`: the label where it is known, else the token that is fed, which is the likeliest."""
        fed = self.fed_ids[self.label_mask]
        return np.where(self.labels == UNLABELLED, fed, self.labels).astype(np.int32)


def make_row(
    input_ids: npt.NDArray[np.int32],
    masking: MaskingRecord,
    tokenizer: TokenizerRecord,
    *,
    document: int,
    piece: int,
    view: int,
) -> MaskedRow:
    """The row of a piece `[S]` in one of its views."""
    fed, hidden = mask_tokens(input_ids, masking, tokenizer, view=view)
    known = np.zeros(len(input_ids), np.bool_)
    known[hidden] = True
    everywhere = masking.targets == ATTENDED
    return MaskedRow(
        domain=NAME,
        input_ids=input_ids,
        fed_ids=fed,
        document=document,
        piece=piece,
        view=view,
        label_mask=np.ones(len(input_ids), np.bool_) if everywhere else known,
        labels=np.where(known, input_ids, UNLABELLED).astype(np.int32)
        if everywhere
        else input_ids[hidden],
    )


def columns(rows: Sequence[MaskedRow]) -> dict[str, Column]:
    """Tokens as they were, which text, piece and view."""
    return {"input_ids": listed([r.input_ids for r in rows], np.int32)} | {
        name: scalar([getattr(r, name) for r in rows], dtype) for name, dtype in NUMBERS.items()
    }


def expected(identity: Identity, rows: int | None) -> dict[str, Expected]:
    """The types of these columns."""
    tokens = None if rows is None else rows * identity.corpus.seq_len
    return {"input_ids": Expected(dtype=np.dtype(np.int32), most=tokens)} | {
        name: Expected(dtype=dtype, listed=False, most=rows) for name, dtype in NUMBERS.items()
    }


def rows_of(columns: Mapping[str, Column], identity: Identity, *, where: str) -> list[MaskedRow]:
    """The rows of these columns, masked again.

    Raises:
        IntegrityError: a number below 0, or a view that the store has not.
        FormatError: the identity does not say how to mask.
    """
    masking = masking_of(identity)
    numbers = {name: columns[name].values for name in NUMBERS}
    for name, values in numbers.items():
        if len(values) and values.min() < 0:
            raise IntegrityError(f"{where} holds a {name} {values.min()}, expected at least 0")
    if (numbers["view"] >= masking.views).any():
        raise IntegrityError(
            f"{where} holds view {numbers['view'].max()}, the manifest says that there are {masking.views}"
        )
    return [
        make_row(
            ids,
            masking,
            identity.tokenizer,
            **{name: int(values[r]) for name, values in numbers.items()},
        )
        for r, ids in enumerate(lists_of(columns["input_ids"]))
    ]


def check(row: MaskedRow, identity: Identity, *, where: str) -> None:
    """Tokens of the tokenizer, labels of the teacher."""
    check_text(
        row,
        ids=identity.tokenizer.vocab_size,
        labels=identity.teacher.vocab_size,
        where=where,
    )
