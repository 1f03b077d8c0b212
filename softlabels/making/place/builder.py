"""A builder at work on a plan in a `Place`, whatever others do meanwhile.

The flow, until all leases are done:
 1. take a lease (`claims.py`), those of the shards that a dictionary is trained on first;
 2. list which of its shards were recorded meanwhile; have the job make the others, in order, and, on a thread of its
    own and while the job is at the next, encode, check by decoding, publish, record (`commit.py`);
 3. when all are recorded, publish their records together and let go of the lease.

It holds two shards at most, and two leases: the one that it makes, and the one whose last shard is being written.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import msgspec

from softlabels.core.progress import Reporter
from softlabels.core.records import canonical
from softlabels.format.containers.parquet import column_bytes
from softlabels.format.encoding import FindDictionary
from softlabels.format.manifest import MANIFEST, Commit, Plan, Statistics
from softlabels.format.shard_records import PlannedShard
from softlabels.making.finish import has_columns
from softlabels.making.place import Place, exists
from softlabels.making.place.claims import PlaceClaims
from softlabels.making.place.commit import (
    LeaseRecords,
    commit_in,
    read_commit,
    read_shard,
    recorded_in,
)
from softlabels.making.place.holding import PlaceLease
from softlabels.making.writer import Writer

SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds between two looks for a lease that is free, or whose holder is dead."""
OF_SHARD = 0.25
"""The first of these pauses, at least, as a share of what a shard takes: before that there is little to see."""


class Written(NamedTuple):
    """A shard that was published and recorded."""

    record: Commit
    columns: dict[str, int] | None
    """Bytes of each column; None: they are not recorded of this plan."""
    ours: bool
    """Whether this builder made the record; else another was faster."""


class Work(Protocol):
    """How the shards of a plan come about; `first` is as in `PlaceClaims`."""

    first: int
    find: FindDictionary

    def make(
        self, shard: PlannedShard, advance: Callable[[int], None]
    ) -> Callable[[], tuple[bytes, Statistics, float]]:
        """Do what needs a device; the rest, which gives the bytes, what was counted, and the seconds that it took."""


@dataclass(eq=False)
class _Open:
    """A lease of which shards are still to be recorded."""

    lease: PlaceLease
    left: set[int]
    written: dict[int, Written] = field(default_factory=dict)
    """What this builder has published of it."""


class _Part:
    """A shard of a lease while it is written; what the writer's thread is given."""

    def __init__(self, lease: PlaceLease, index: int) -> None:
        self._lease, self.index = lease, index

    def renew(self) -> None:
        """Say that the holder lives."""
        self._lease.renew()

    def __enter__(self) -> _Part:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Nothing: the lease is let go of when its last shard is recorded."""


class PlaceBuilder:
    """One builder; used once.

    Args:
        claims: its own; closed at the end.
        writer: the thread that writes.
        known: shards that were recorded when it began, as far as that is known; the others are asked for where they
            may be.
        sleep: seconds.
    """

    def __init__(
        self,
        place: Place,
        plan: Plan,
        work: Work,
        report: Reporter,
        claims: PlaceClaims,
        writer: Writer[Written],
        *,
        known: AbstractSet[int] = frozenset(),
        sleep: Callable[[float], Any] = time.sleep,
    ) -> None:
        self._place, self._plan, self._work, self._report = place, plan, work, report
        self._claims, self._writer, self._sleep = claims, writer, sleep
        self._columns = has_columns(plan.identity)
        self._open: dict[int, _Open] = {}
        """By the shards that are being written."""
        self._known = known
        self._pause = self._first_pause = SHORTEST_PAUSE
        self._waited, self._over = False, False

    def run(self) -> None:
        """Go on until every shard is recorded, by whichever builders."""
        first = self._work.first
        if self._known:
            self._report.notice(
                f"resuming: {len(self._known)} of {len(self._plan.shards)} shards are done"
            )
        with closing(self._claims):
            try:
                with self._writer:
                    while not (self._claims.done or self._over):
                        if (lease := self._claims.take()) is not None:
                            self._make_lease(lease)
                            self._pause = self._first_pause
                        elif self._writer.index is not None:
                            self._settle()
                        elif first and len(recorded_in(self._place, range(first))) == first:
                            first = 0
                            self._claims.open_rest()
                        elif not self._claims.done:
                            if self._claims.cleared:
                                self._claims.cleared = False
                                self._look_for_end()
                            else:
                                self._wait()
                    self._settle()
            finally:
                for held in self._open.values():
                    held.lease.release()

    def _recorded(self, lease: PlaceLease) -> AbstractSet[int]:
        """Which shards of a lease need not be made: of one that nobody held, those alone that somebody copied there."""
        if lease.taken_over and not set(lease.shards) <= self._known:
            return recorded_in(self._place, lease.shards)
        return self._known & set(lease.shards)

    def _look_for_end(self) -> None:
        """Whether another builder has finished the store, and so removed all claims: free is not what it seems."""
        self._over = self._over or exists(self._place, MANIFEST)

    def _wait(self) -> None:
        if not self._waited:
            self._report.notice("waiting: the shards that are left are in other builders' hands")
        self._waited = True
        self._sleep(self._claims.spread(self._pause))
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _make_lease(self, lease: PlaceLease) -> None:
        there = self._recorded(lease)
        held = _Open(lease, set(lease.shards) - there)
        self._report.advance(sum(self._plan.shards[i].positions for i in there))
        if not held.left:
            if not lease.taken_over:
                self._look_for_end()  # the claims may be gone since the store is finished
            if not self._over:
                self._complete(held)
            return
        for index in sorted(held.left):
            if lease.version is None:
                return  # another has taken over, since this builder stood still for long
            self._open[index] = held
            write = self._make(self._plan.shards[index], lease)
            self._settle(_Part(lease, index))
            self._writer.start(_Part(lease, index), write)

    def _make(self, shard: PlannedShard, lease: PlaceLease) -> Callable[[], Written]:
        made = 0

        def advance(positions: int) -> None:
            nonlocal made
            made += positions
            lease.renew()
            if self._writer.has_written:
                self._settle()  # nobody renews a lease of which all is written
            else:
                self._writer.renew()
            self._report.advance(positions)

        rest = self._work.make(shard, advance)
        advance(shard.positions - made)
        return lambda: self._write(shard, *rest())

    def _write(
        self, shard: PlannedShard, data: bytes, statistics: Statistics, seconds: float
    ) -> Written:
        """Publish and record, on the writer's thread."""
        record, data, ours = commit_in(
            self._place, self._plan, shard, data, statistics, seconds, self._work.find
        )
        return Written(record, column_bytes(data) if self._columns else None, ours)

    def _settle(self, waiting: _Part | None = None) -> None:
        """Wait for the shard that is being written, if there is one; with the last of a lease the lease is done."""
        written = self._writer.finish(waiting)
        if written is None:
            return
        index, result = written
        took = OF_SHARD * result.record.seconds
        self._first_pause = min(max(SHORTEST_PAUSE, took), LONGEST_PAUSE)
        if not result.ours:
            self._look_for_end()
        held = self._open.pop(index)
        held.left.discard(index)
        held.written[index] = result
        if not held.left:
            self._complete(held)

    def _complete(self, held: _Open) -> None:
        """All shards of a lease are recorded: those of others are read."""
        records, columns = [], Counter[str]()
        for index in held.lease.shards:
            one = held.written.get(index) or self._read(self._plan.shards[index])
            records.append(canonical(one.record).decode())
            columns.update(one.columns or {})
        page = LeaseRecords(records=records, column_bytes=dict(columns) if self._columns else None)
        self._claims.finish(held.lease, msgspec.json.encode(page))

    def _read(self, shard: PlannedShard) -> Written:
        record = read_commit(self._place, self._plan, shard)
        if not self._columns:
            return Written(record, None, False)
        return Written(record, column_bytes(read_shard(self._place, shard)), False)
