"""Rows as plain sequences, for back-ends that know nothing of packed rows, and their dense logits in chunks.

A row may hold several documents that must not see each other. `hf` tries whether its model keeps them apart within the
row; a graph, a callable or a server cannot be trusted to, so they get each document's piece as a sequence of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from softlabels.core.rows import Row
from softlabels.errors import TeacherError
from softlabels.teachers import Teacher

Int64 = npt.NDArray[np.int64]

PROBE = np.array([[0, 1]], np.int64)
"""Ids that every vocabulary has."""


class Segment(NamedTuple):
    """One document's piece of a row."""

    input_ids: Int64
    """`[L] int64`."""
    positions: Int64
    """`[N] int64`: those of its positions that have a target, at least one."""

    @property
    def labels(self) -> Int64:
        """`[N] int64`: the token that follows each position."""
        return self.input_ids[self.positions + 1]


class Rectangle(NamedTuple):
    """B segments side by side, padded on the right."""

    input_ids: Int64
    """`[B, S] int64`; padding is id 0."""
    attention_mask: Int64
    """`[B, S] int64`: 1, and 0 where padded."""
    flat_positions: Int64
    """`[N]`: indices into the flattened `[B * S]`, segment by segment."""


OfIds = TypeVar("OfIds", Segment, Row)


def segments_of(rows: Sequence[Row]) -> list[Segment]:
    """The segments of all rows that have a target, in order: so are their positions those of the rows."""
    found = []
    for row in rows:
        stops = np.cumsum(row.segment_lengths)
        for length, stop in zip(row.segment_lengths, stops, strict=True):
            here = slice(int(stop - length), int(stop))
            positions = np.flatnonzero(row.label_mask[here])
            if len(positions):
                found.append(Segment(row.input_ids[here].astype(np.int64), positions))
    return found


def rectangles(segments: Sequence[Segment], cells: int) -> Iterator[Rectangle]:
    """Consecutive segments, padded to rectangles of at most `cells` tokens (one segment, if it alone is longer)."""
    yield from map(_pad, grouped(segments, cells))


def grouped(sequences: Iterable[OfIds], cells: int) -> Iterator[list[OfIds]]:
    """Consecutive sequences, as many as make a rectangle of at most `cells` tokens (one, if it alone is longer)."""
    group: list[OfIds] = []
    width = 0
    for sequence in sequences:
        wider = max(width, len(sequence.input_ids))
        if group and wider * (len(group) + 1) > cells:
            yield group
            group, wider = [], len(sequence.input_ids)
        group.append(sequence)
        width = wider
    if group:
        yield group


def _pad(group: Sequence[Segment]) -> Rectangle:
    width = max(len(s.input_ids) for s in group)
    ids = np.zeros((len(group), width), np.int64)
    mask = np.zeros_like(ids)
    for b, segment in enumerate(group):
        n = len(segment.input_ids)
        ids[b, :n], mask[b, :n] = segment.input_ids, 1
    flat = np.concatenate([s.positions + b * width for b, s in enumerate(group)])
    return Rectangle(ids, mask, flat)


class SegmentTeacher(Teacher):
    """A causal LM that is asked for whole rectangles of segments: a back-end defines `forward`."""

    spec: str
    """Of the teacher, for messages."""
    budget: int
    """Bytes of a chunk of logits, and of what `forward` is asked for at once; a segment that
    alone is wider is asked for all the same."""

    @abstractmethod
    def forward(self, rectangle: Rectangle) -> Tensor:
        """Logits `[B, S, V]`, all of which exist at once."""

    def probe(self) -> Tensor:
        """Logits `[1, 2, V]` of two ids: what the model gives, and how wide it is; `TeacherError` if none."""
        logits = self.forward(Rectangle(PROBE, np.ones_like(PROBE), np.zeros(1, np.int64)))
        if logits.dim() != 3 or tuple(logits.shape[:2]) != PROBE.shape or logits.shape[2] < 2:
            raise TeacherError(
                f"{self.spec}: gave a tensor of shape {list(logits.shape)} for ids [1, 2]; expected logits [1, 2, V], "
                "one for each id of the vocabulary at each token"
            )
        if not logits.is_floating_point():
            raise TeacherError(
                f"{self.spec}: gave logits of {logits.dtype}; expected floating point"
            )
        return logits

    @torch.no_grad()
    def logits(self, rows: Sequence[Row]) -> Iterator[Tensor]:
        """Chunks `[n, V] float32` of the positions of all rows, in order; `TeacherError` if one has another shape."""
        v = self.record.vocab_size
        each = max(1, self.budget // (4 * v))
        for rectangle in rectangles(segments_of(rows), each):
            logits = self.forward(rectangle)
            expected = (*rectangle.input_ids.shape, v)
            if tuple(logits.shape) != expected:
                raise TeacherError(
                    f"{self.spec}: gave logits of shape {list(logits.shape)}, expected {list(expected)}"
                )
            at = torch.from_numpy(rectangle.flat_positions).to(logits.device)
            chosen = logits.flatten(0, 1).index_select(0, at).float()
            del logits
            yield from torch.split(chosen, each)
