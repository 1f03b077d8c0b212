"""The rows of planned shards, a shard at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Generic, TypeVar

from softlabels.core.rows import InputRow
from softlabels.errors import CorpusError
from softlabels.format.manifest import PlannedShard
from softlabels.format.shard import inputs_digest

T = TypeVar("T")


class Passes(Generic[T]):
    """What the rows of planned shards are made of; shards that are taken in order are one pass over it."""

    def __init__(self, begin: Callable[[PlannedShard], Iterator[T]]) -> None:
        """`begin` begins a pass at the first row of a shard."""
        self._begin, self._next = begin, -1
        self._rest: Iterator[T] = iter(())

    def take(self, shard: PlannedShard) -> list[T]:
        """As many as a shard has rows, or fewer, if there are no more."""
        if self._next != shard.start_row:
            self._rest = self._begin(shard)
        self._next = -1  # an error in the midst of a shard leaves nothing to go on from
        found = list(islice(self._rest, shard.rows))
        self._next = shard.start_row + len(found)
        return found


def check_rows(shard: PlannedShard, rows: Sequence[InputRow], *, where: str) -> None:
    """Refuse other rows than a shard's.

    Raises:
        CorpusError: they are not the ones that were planned.
    """
    if len(rows) != shard.rows or inputs_digest(rows) != shard.inputs_sha256:
        raise CorpusError(
            f"{where}: the rows of shard {shard.index} (from document {shard.document}, token {shard.offset}) are not "
            "those that were planned: the corpus changed; restore it, or choose another --out"
        )
