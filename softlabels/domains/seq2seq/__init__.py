"""`seq2seq`: a target that follows from a source; rows are `PairRow`.

The encoder reads the source whole. The decoder is fed the target moved on by one token, behind the tokenizer's special
id `decoder_start`; what it gives at place t predicts token t of the target, which is token t+1 of what it is fed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.core.rows import (
    LABEL_SHIFT,
    Int32,
    Int64,
    OneDocument,
    PaddedRows,
    row_digest,
    side_by_side,
)
from softlabels.domains import Domain
from softlabels.errors import FormatError, IntegrityError
from softlabels.format.columns import Column
from softlabels.format.identity import Identity, TokenizerRecord

START = "decoder_start"
"""In a tokenizer's `special_ids`: what the decoder is fed first."""


def start_of(tokenizer: TokenizerRecord) -> int:
    """What the decoder is fed first; `FormatError` if the record does not say so."""
    if START not in tokenizer.special_ids:
        raise FormatError(
            f"a store of the domain seq2seq says in the tokenizer's `special_ids` which id is {START}; this one does "
            "not; copy it again from its source"
        )
    return tokenizer.special_ids[START]


@dataclass(frozen=True, kw_only=True, eq=False)
class PairRow(OneDocument):
    """A source and its target."""

    source_ids: Int32
    """`[S] int32`, with the tokenizer's own marks."""
    target_ids: Int32
    """`[N] int32`, likewise: the labels."""
    start: int
    """What the decoder is fed before them."""

    @property
    def n(self) -> int:
        """N."""
        return len(self.target_ids)

    @property
    def size(self) -> int:
        """S + N: both are read."""
        return len(self.source_ids) + self.n

    @property
    def labels(self) -> Int32:
        """`[N] int32`: the target."""
        return self.target_ids

    @property
    def decoder_ids(self) -> Int32:
        """`[N] int32`: what the decoder is fed."""
        return np.concatenate([[self.start], self.target_ids[:-1]]).astype(np.int32)

    @property
    def context(self) -> Int32:
        """`[N] int32`: the token before each."""
        return self.decoder_ids

    @property
    def positions(self) -> Int64:
        """`[N]`: all places of the decoder."""
        return np.arange(self.n, dtype=np.int64)

    @property
    def inputs(self) -> dict[str, npt.NDArray[Any]]:
        """`input_ids [S]`, `decoder_input_ids [N]`, `labels [N]`."""
        return {
            "input_ids": self.source_ids,
            "decoder_input_ids": self.decoder_ids,
            "labels": self.labels,
        }

    @property
    def title(self) -> str:
        """How long both are."""
        return f"{len(self.source_ids)} tokens, of which {self.n} positions follow"

    def place(self, position: int) -> str:
        """`target token 17`."""
        return f"target token {position}"

    def before(self, position: int) -> Int32:
        """The source, and the target up to there."""
        return np.concatenate([self.source_ids, self.target_ids[:position]])

    def digest(self) -> bytes:
        """16 bytes that name these inputs (docs/format.md)."""
        return row_digest("seq2seq", self.source_ids, self.decoder_ids, self.target_ids)

    @staticmethod
    def pad(rows: Sequence[PairRow]) -> PaddedRows:
        """`input_ids`, `attention_mask` (0 at padding), and `decoder_input_ids`, whose attention is causal."""
        decoder_ids = side_by_side([r.decoder_ids for r in rows])
        inputs = {
            "input_ids": side_by_side([r.source_ids for r in rows]),
            "attention_mask": side_by_side([np.ones_like(r.source_ids) for r in rows]),
            "decoder_input_ids": decoder_ids,
        }
        return PaddedRows.of(rows, inputs, width=decoder_ids.shape[1])


class Seq2Seq(Domain):
    """A pair is a row."""

    name = "seq2seq"
    label_shift = LABEL_SHIFT
    lists = (("source_ids", np.int32), ("target_ids", np.int32))
    numbers = (("document", np.int64),)
    transformers = "AutoModelForSeq2SeqLM"

    def rows_of(
        self, columns: Mapping[str, Column], identity: Identity, *, where: str
    ) -> list[PairRow]:
        """The rows of these columns; `FormatError` if the identity does not say what the decoder is fed first."""
        start = start_of(identity.tokenizer)
        return [PairRow(start=start, **record) for record in self.records(columns)]

    def check(self, row: PairRow, identity: Identity, *, where: str) -> None:
        """Sources of the tokenizer, targets that the teacher can give, neither without a token."""
        ids, labels = identity.tokenizer.vocab_size, identity.teacher.vocab_size
        for what, values, end in (
            ("source", row.source_ids, ids),
            ("target", row.target_ids, labels),
            (START, np.array([row.start]), labels),
        ):
            if len(values) == 0 or values.min() < 0 or values.max() >= end:
                raise IntegrityError(
                    f"{where} has a {what} without tokens, or outside 0..{end - 1}"
                )
        if row.document < 0:
            raise IntegrityError(f"{where} holds a document {row.document}, expected at least 0")


DOMAIN = Seq2Seq()
