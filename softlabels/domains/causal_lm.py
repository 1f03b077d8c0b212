"""`causal-lm`: position t predicts token t+1; rows are `softlabels.core.rows.Row`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from softlabels.core.rows import LABEL_SHIFT, Row
from softlabels.domains.columns import listed, lists_of
from softlabels.errors import IntegrityError
from softlabels.format.columns import Column, Expected
from softlabels.format.identity import Identity

__all__ = ["DIGEST_BYTES", "LABEL_SHIFT", "check", "columns", "expected", "rows_of"]

DIGEST_BYTES = 16
LISTS: dict[str, np.dtype[Any]] = {
    "input_ids": np.dtype(np.int32),
    "segment_lengths": np.dtype(np.int32),
    "documents": np.dtype(np.int64),
    "label_mask": np.dtype(np.bool_),
}


def columns(rows: Sequence[Row]) -> dict[str, Column]:
    """One list a row of each of `LISTS`."""
    return {name: listed([getattr(r, name) for r in rows], dtype) for name, dtype in LISTS.items()}


def expected(identity: Identity, rows: int | None) -> dict[str, Expected]:
    """No list is longer than the rows' tokens."""
    tokens = None if rows is None else rows * identity.corpus.seq_len
    return {name: Expected(dtype=dtype, most=tokens) for name, dtype in LISTS.items()}


def rows_of(columns: Mapping[str, Column], identity: Identity, *, where: str) -> list[Row]:
    """The rows of these columns."""
    parts = {name: lists_of(columns[name]) for name in LISTS}
    return [
        Row(**dict(zip(parts, values, strict=True))) for values in zip(*parts.values(), strict=True)
    ]


def check(row: Row, identity: Identity, *, where: str) -> None:
    """Refuse a row that contradicts itself.

    Raises:
        IntegrityError: names `where` and the contradiction.
    """
    tokens = len(row.input_ids)
    if tokens == 0 or len(row.label_mask) != tokens:
        raise IntegrityError(
            f"{where}: {tokens} input_ids but {len(row.label_mask)} entries of label_mask"
        )
    lengths = row.segment_lengths
    if len(lengths) == 0 or lengths.min() < 1 or int(lengths.sum(dtype=np.int64)) != tokens:
        raise IntegrityError(f"{where}: segment_lengths do not sum to the {tokens} tokens")
    if len(row.documents) != len(lengths):
        raise IntegrityError(f"{where}: {len(lengths)} segments but {len(row.documents)} documents")
    ends = np.cumsum(lengths) - 1
    if row.label_mask[ends].any():
        raise IntegrityError(f"{where}: label_mask asks for a token beyond the end of a document")
    v = identity.teacher.vocab_size
    if row.input_ids.min() < 0 or row.input_ids.max() >= v:
        raise IntegrityError(f"{where} has an input id outside 0..{v - 1}")
