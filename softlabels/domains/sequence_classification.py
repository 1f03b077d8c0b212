"""`sequence-classification`: one class for a whole text; rows are `TextRow` with one position, token 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from softlabels.domains.columns import listed, lists_of, scalar
from softlabels.domains.text import TextRow, check_text
from softlabels.format.columns import Column, Expected
from softlabels.format.identity import Identity

__all__ = ["DIGEST_BYTES", "LABEL_SHIFT", "check", "columns", "expected", "make_row", "rows_of"]

NAME = "sequence-classification"
LABEL_SHIFT = 0
DIGEST_BYTES = 16


def make_row(input_ids: npt.NDArray[np.int32], *, document: int, label: int) -> TextRow:
    """The row of a text `[S]` and its class."""
    mask = np.zeros(len(input_ids), np.bool_)
    mask[:1] = True
    return TextRow(
        domain=NAME,
        input_ids=input_ids,
        fed_ids=input_ids,
        document=document,
        view=0,
        label_mask=mask,
        labels=np.full(min(len(input_ids), 1), label, np.int32),
    )


def columns(rows: Sequence[TextRow]) -> dict[str, Column]:
    """Tokens, which text, its class."""
    return {
        "input_ids": listed([r.input_ids for r in rows], np.int32),
        "document": scalar([r.document for r in rows], np.int64),
        "label": scalar([int(r.labels[0]) for r in rows], np.int32),
    }


def expected(identity: Identity, rows: int | None) -> dict[str, Expected]:
    """The types of these columns."""
    tokens = None if rows is None else rows * identity.corpus.seq_len
    return {
        "input_ids": Expected(dtype=np.dtype(np.int32), most=tokens),
        "document": Expected(dtype=np.dtype(np.int64), listed=False, most=rows),
        "label": Expected(dtype=np.dtype(np.int32), listed=False, most=rows),
    }


def rows_of(columns: Mapping[str, Column], identity: Identity, *, where: str) -> list[TextRow]:
    """The rows of these columns."""
    parts = zip(
        lists_of(columns["input_ids"]),
        columns["document"].values.tolist(),
        columns["label"].values.tolist(),
        strict=True,
    )
    return [make_row(ids, document=document, label=label) for ids, document, label in parts]


def check(row: TextRow, identity: Identity, *, where: str) -> None:
    """Tokens of the tokenizer, a class of the teacher."""
    check_text(
        row,
        ids=identity.tokenizer.vocab_size,
        labels=identity.teacher.vocab_size,
        where=where,
    )
