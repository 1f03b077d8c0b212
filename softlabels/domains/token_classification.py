"""`token-classification`: a class for each word; rows are `TextRow` with a position at each word's first token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.domains.columns import listed, lists_of, scalar
from softlabels.domains.text import TextRow, check_text
from softlabels.format.columns import Column, Expected
from softlabels.format.identity import Identity

__all__ = ["DIGEST_BYTES", "LABEL_SHIFT", "check", "columns", "expected", "make_row", "rows_of"]

NAME = "token-classification"
LABEL_SHIFT = 0
DIGEST_BYTES = 16
LISTS: dict[str, np.dtype[Any]] = {
    "input_ids": np.dtype(np.int32),
    "label_mask": np.dtype(np.bool_),
    "labels": np.dtype(np.int32),
}


def make_row(
    input_ids: npt.NDArray[np.int32],
    label_mask: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.int32],
    *,
    document: int,
) -> TextRow:
    """The row of a text `[S]`, which of its tokens `[S]` begin a word, and the words' classes `[N]`."""
    return TextRow(
        domain=NAME,
        input_ids=input_ids,
        fed_ids=input_ids,
        document=document,
        view=0,
        label_mask=label_mask,
        labels=labels,
    )


def columns(rows: Sequence[TextRow]) -> dict[str, Column]:
    """Tokens, which of them begin a word, the words' classes, which text."""
    lists = {name: listed([getattr(r, name) for r in rows], dtype) for name, dtype in LISTS.items()}
    return lists | {"document": scalar([r.document for r in rows], np.int64)}


def expected(identity: Identity, rows: int | None) -> dict[str, Expected]:
    """No list is longer than the rows' tokens."""
    tokens = None if rows is None else rows * identity.corpus.seq_len
    lists = {name: Expected(dtype=dtype, most=tokens) for name, dtype in LISTS.items()}
    return lists | {"document": Expected(dtype=np.dtype(np.int64), listed=False, most=rows)}


def rows_of(columns: Mapping[str, Column], identity: Identity, *, where: str) -> list[TextRow]:
    """The rows of these columns."""
    parts = zip(
        *(lists_of(columns[name]) for name in LISTS),
        columns["document"].values.tolist(),
        strict=True,
    )
    return [make_row(ids, mask, labels, document=d) for ids, mask, labels, d in parts]


def check(row: TextRow, identity: Identity, *, where: str) -> None:
    """Tokens of the tokenizer, classes of the teacher, a class or none for each word."""
    check_text(
        row,
        ids=identity.tokenizer.vocab_size,
        labels=identity.teacher.vocab_size,
        where=where,
    )
