"""A text as an encoder reads it: whole, attention in both directions.

Shapes: S tokens, B rows, N positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.core.rows import (
    UNLABELLED,
    Int32,
    OneDocument,
    PaddedRows,
    TokenRow,
    row_digest,
    side_by_side,
)
from softlabels.domains import Domain
from softlabels.errors import IntegrityError
from softlabels.format.columns import Column
from softlabels.format.identity import Identity


@dataclass(frozen=True, kw_only=True, eq=False)
class TextRow(TokenRow, OneDocument):
    """One text, or one masked view of it: `input_ids` are the text, with the tokenizer's own marks at its ends.

    A class of the whole text counts as token 0's.
    """

    domain: str
    """The store's; part of the digest."""
    fed_ids: Int32
    """`[S] int32`: what the model is fed: `input_ids`, or with some of them masked."""
    view: int
    """Which masked view of it, from 0."""
    labels: Int32
    """`[N] int32`: a token or a class; `UNLABELLED` where it is not known."""

    @property
    def n(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def label(self) -> int:
        """Of a row with one position: its label."""
        return int(self.labels[0])

    @property
    def context(self) -> Int32:
        """`[N] int32`: the label where it is known, else 0."""
        return np.where(self.labels == UNLABELLED, 0, self.labels).astype(np.int32)

    @property
    def inputs(self) -> dict[str, npt.NDArray[Any]]:
        """`input_ids [S]`: what the model is fed; `label_mask [S]`, `labels [N]`."""
        return {
            "input_ids": self.fed_ids,
            "label_mask": self.label_mask,
            "labels": self.labels,
        }

    def before(self, position: int) -> Int32:
        """All that the model is fed: it reads a text at once."""
        return self.fed_ids

    def digest(self) -> bytes:
        """16 bytes that name these inputs (docs/format.md)."""
        mask = self.label_mask.astype(np.bool_)
        return row_digest(self.domain, self.input_ids, self.fed_ids, mask, self.labels)

    @staticmethod
    def pad(rows: Sequence[TextRow]) -> PaddedRows:
        """`input_ids`, and `attention_mask`: 1 at tokens, 0 at padding."""
        input_ids = side_by_side([r.fed_ids for r in rows])
        width = input_ids.shape[1]
        mask = np.arange(width) < np.array([[r.size] for r in rows])
        inputs = {"input_ids": input_ids, "attention_mask": mask.astype(np.int64)}
        return PaddedRows.of(rows, inputs, width=width)


class TextDomain(Domain):
    """What domains of such rows have in common."""

    row: Callable[..., TextRow]
    """Of what the columns hold of it, by name."""

    def rows_of(
        self, columns: Mapping[str, Column], identity: Identity, *, where: str
    ) -> Sequence[TextRow]:
        """The rows of these columns."""
        return [self.row(**record) for record in self.records(columns)]

    def check(self, row: TextRow, identity: Identity, *, where: str) -> None:
        """Refuse a row that contradicts itself: tokens are the tokenizer's, labels the teacher's."""
        if row.size == 0 or len(row.label_mask) != row.size or len(row.fed_ids) != row.size:
            raise IntegrityError(
                f"{where} has {row.size} input_ids but {len(row.label_mask)} entries of label_mask"
            )
        if int(row.label_mask.sum()) != row.n:
            raise IntegrityError(
                f"{where} has {int(row.label_mask.sum())} positions but {row.n} labels"
            )
        ids, labels = identity.tokenizer.vocab_size, identity.teacher.vocab_size
        for what, values, least, end in (
            ("input id", row.input_ids, 0, ids),
            ("fed id", row.fed_ids, 0, ids),
            ("label", row.labels, UNLABELLED, labels),
        ):
            if row.n and len(values) and not least <= values.min() <= values.max() < end:
                raise IntegrityError(f"{where} has an {what} outside {least}..{end - 1}")
