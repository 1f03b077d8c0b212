"""A row as a model sees it, and of a causal LM the one definition of which position predicts which token.

A causal LM's position t predicts token t+1. `label_mask[t]` is True where that prediction counts:
tokens t and t+1 belong to one document and token t+1 is to be learnt (in a chat: it belongs to the
assistant). The N positions of a row are the True entries of its mask, in order. Builder, reader,
loss and evaluation all use this file, so none of them can be off by one.

Rows of other domains are in `domains/`; `InputRow` is what all have in common.

Shapes: S tokens, B rows, N positions, D documents that share a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from softlabels.core.records import Count, Record

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

LABEL_SHIFT = 1
"""Position t predicts token t + LABEL_SHIFT."""
UINT8, INT32 = np.dtype(np.uint8), np.dtype("<i4")
"""Of the arrays that a digest is over: of truth values, and of ids."""
UNLABELLED = -1
"""Label of a position of which only the teacher's opinion is known."""


class Location(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Where a document begins in the files of a job, so that reading can begin there."""

    corpus: Count = 0
    """Of several, in the order of the job."""
    file: Count = 0
    """Of the corpus, in its order."""
    row: Count = 0
    """Of the file: its line or row."""
    byte: Count = 0
    """Of a file of lines: where the line begins."""
    view: Count = 0
    """Of a domain that goes through the corpus several times: how many times before."""
    document: Count | None = None
    """There: the document's number in its pass."""


class Cursor(NamedTuple):
    """A place in a corpus: token `offset` of document `document`; in other domains than causal-lm its row `offset`."""

    document: int
    offset: int
    location: Location | None = None
    """Of the document; None: it is found by reading the corpus from its beginning."""


BEGINNING = Cursor(0, 0)


class InputRow(Protocol):
    """One row of any domain: what goes into a model, and where in it are N positions."""

    @property
    def documents(self) -> Int64:
        """`[D]`: which entries of the corpus it was made from."""

    @property
    def n(self) -> int:
        """N."""

    @property
    def size(self) -> int:
        """What a model spends on it: tokens; 1 for an image."""

    @property
    def labels(self) -> Int32:
        """`[N] int32`: what is true at each position; `UNLABELLED` where that is not known."""

    @property
    def context(self) -> Int32:
        """`[N] int32`, at least 0: what the kept ids are most likely to follow from, for `packed` to code them by."""

    @property
    def inputs(self) -> dict[str, npt.NDArray[Any]]:
        """What a model is fed, by name."""

    @property
    def title(self) -> str:
        """What it is, for people: `17 tokens, 16 positions`."""

    def place(self, position: int) -> str:
        """Where a position lies, for messages: `token 17`."""

    def before(self, position: int) -> Int32:
        """Tokens that a model has read when it answers at a position, for people to see; of an image none."""

    def renumbered(self, documents: int) -> InputRow:
        """The same row of a corpus before which so many documents were put."""

    def digest(self) -> bytes:
        """16 bytes that name these inputs: the same on every machine, for ever (docs/format.md)."""

    @staticmethod
    def pad(rows: Sequence[Any]) -> PaddedRows:
        """Rows of this kind side by side, padded on the right."""


def row_digest(domain: str, *arrays: npt.NDArray[Any]) -> bytes:
    """16 bytes that name a row of these arrays, of ids or of bools."""
    parts = [f"softlabels {domain} row 1\n".encode()]
    for array in arrays:
        dtype = UINT8 if array.dtype == np.bool_ else INT32
        parts += len(array).to_bytes(8, "little"), array.astype(dtype, copy=False).tobytes()
    return hashlib.sha256(b"".join(parts)).digest()[:16]


@dataclass(frozen=True, kw_only=True, eq=False)
class OneDocument:
    """What rows of one document have in common."""

    document: int
    """Which document of the corpus, from 0."""

    @property
    def documents(self) -> Int64:
        """`[1]`."""
        return np.array([self.document], np.int64)

    def renumbered(self, documents: int) -> Self:
        """The same row, so many documents further on."""
        return replace(self, document=self.document + documents)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenRow:
    """What rows of tokens have in common, some of which have a target."""

    input_ids: Int32
    """`[S] int32`."""
    label_mask: Bool
    """`[S] bool`: the tokens that have a target."""

    @property
    def size(self) -> int:
        """S."""
        return len(self.input_ids)

    @property
    def positions(self) -> Int64:
        """`[N]`: the tokens that have a target."""
        return self.label_mask.nonzero()[0]

    @property
    def title(self) -> str:
        """Its tokens and positions."""
        return f"{self.size} tokens, {len(self.positions)} positions"

    def place(self, position: int) -> str:
        """`token 17`."""
        return f"token {self.positions[position]}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Row(TokenRow):
    """One training sequence: one or more whole or partial documents, attention kept apart.

    `label_mask` is True where position t predicts token t+1; its last entry is always False.
    """

    segment_lengths: Int32
    """`[D] int32`: how many of the tokens belong to each document; sums to S."""
    documents: Int64
    """`[D] int64`: which document of the corpus (counted from 0) each segment comes from."""

    @property
    def n(self) -> int:
        """N, the number of positions."""
        return int(np.count_nonzero(self.label_mask))

    @property
    def context(self) -> Int32:
        """`[N] int32`: the token at each position."""
        return self.input_ids[self.label_mask]

    @property
    def inputs(self) -> dict[str, npt.NDArray[Any]]:
        """`input_ids [S]`, `position_ids [S]`, `label_mask [S]`, `labels [N]`."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "label_mask": self.label_mask,
            "labels": self.labels,
        }

    def renumbered(self, documents: int) -> Row:
        """The same row, so many documents further on."""
        return replace(self, documents=self.documents + np.int64(documents))

    def alone(self) -> list[Row]:
        """Each of its documents that has a position as a row of its own: in order, so are their positions its own."""
        cuts = np.cumsum(self.segment_lengths)[:-1]
        parts = zip(
            *(np.split(x, cuts) for x in (self.input_ids, self.label_mask)),
            *(x[:, None] for x in (self.segment_lengths, self.documents)),
            strict=True,
        )
        return [
            Row(input_ids=ids, label_mask=mask, segment_lengths=length, documents=document)
            for ids, mask, length, document in parts
            if mask.any()
        ]

    def before(self, position: int) -> Int32:
        """Those of its document, the one at the position included."""
        token = int(self.positions[position])
        return self.input_ids[token - int(self.position_ids[token]) : token + 1]

    @staticmethod
    def pad(rows: Sequence[Row]) -> PaddedRows:
        """`input_ids`, 0 at padding, where causal attention never looks; `position_ids` if documents share a row."""
        inputs = {"input_ids": side_by_side([r.input_ids for r in rows])}
        width = inputs["input_ids"].shape[1]
        if any(len(r.segment_lengths) > 1 for r in rows):
            position_ids = np.tile(np.arange(width, dtype=np.int64), (len(rows), 1))
            for b, row in enumerate(rows):
                n, last = row.size, int(row.segment_lengths[-1])
                position_ids[b, :n] = row.position_ids
                position_ids[b, n:] = np.arange(last, last + width - n)  # goes on with the last one
            inputs["position_ids"] = position_ids
        return PaddedRows.of(rows, inputs, width=width)

    @property
    def labels(self) -> Int32:
        """`[N] int32`: the token that follows each position."""
        return self.input_ids[self.positions + LABEL_SHIFT]

    @property
    def position_ids(self) -> Int32:
        """`[S] int32`: counts from 0 again at each document, which is also what keeps them apart."""
        return np.concatenate([np.arange(n, dtype=np.int32) for n in self.segment_lengths])

    def digest(self) -> bytes:
        """Of its tokens, segments and mask."""
        mask = self.label_mask.astype(np.bool_, copy=False)
        return row_digest("causal-lm", self.input_ids, self.segment_lengths, mask)


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedRow(Row):
    """A row whose inputs are elsewhere: only their digest, and how many positions it has, are known.

    `label_mask` is `[N]`, all True; there are no tokens.
    """

    name: bytes
    """16 bytes."""

    @staticmethod
    def of(name: bytes, positions: int) -> NamedRow:
        """From a digest and N."""
        return NamedRow(
            name=name,
            input_ids=np.zeros(0, np.int32),
            segment_lengths=np.zeros(0, np.int32),
            documents=np.zeros(0, np.int64),
            label_mask=np.ones(positions, np.bool_),
        )

    def digest(self) -> bytes:
        """Of the inputs that it stands for."""
        return self.name


@dataclass(frozen=True, kw_only=True, eq=False)
class PaddedRows:
    """B rows as rectangles for a model, and where their N positions lie in its output."""

    inputs: dict[str, npt.NDArray[Any]]
    """What the model is fed, by the names of its own arguments: each `[B, …]`, sequences `[B, L] int64` padded on the
    right."""
    width: int
    """S: places of a row in the model's output, of which some are positions; 1 where a row has one answer."""
    flat_positions: Int64
    """`[N]`: indices into the flattened `[B * S]` places, row by row."""
    labels: Int64
    """`[N] int64`."""

    @staticmethod
    def of(rows: Sequence[Any], inputs: dict[str, npt.NDArray[Any]], *, width: int) -> PaddedRows:
        """Of rows whose `positions` are among `width` places of the output."""
        flat = np.concatenate([r.positions + b * width for b, r in enumerate(rows)])
        labels = np.concatenate([r.labels for r in rows]).astype(np.int64)
        return PaddedRows(inputs=inputs, width=width, flat_positions=flat, labels=labels)


def side_by_side(sequences: Sequence[npt.NDArray[Any]]) -> Int64:
    """`[B, L] int64`: sequences as one rectangle, padded on the right with 0 to the longest."""
    padded = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
    for b, sequence in enumerate(sequences):
        padded[b, : len(sequence)] = sequence
    return padded
