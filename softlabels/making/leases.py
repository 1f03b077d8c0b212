"""Leases: runs of consecutive shards that a builder claims at once, so that it reads its corpus in order.

Where a plan is cut follows from its number of shards alone, so every builder cuts it alike, and a claim on a lease is
the claim on its first shard (`claims.py`). Runs are of `LONGEST` shards, shorter in the second half of a plan, and of
one at its end, where who ends last is waited for no longer than a shard takes; a plan of fewer than two times `FEWEST`
shards is cut into single ones throughout.

The price of a run: who dies leaves all of it to another builder, less what is recorded.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from types import TracebackType

import numpy as np

from softlabels.core.rows import Int64
from softlabels.making.claims import Claim

LONGEST = 16
"""Shards of a lease, at most."""
FEWEST = 32
"""Leases that are to be left, at least, when one is cut that has more than one shard."""
SPREAD = 32
"""Shards of a lease, at most, times the share of the plan that is left."""

STRETCH = 4
"""Leases that a builder makes one after the other before it goes back to the first that nobody has begun."""


def cut(shards: int, singles: int = 0) -> list[range]:
    """The leases of a plan, in order; the first `singles` shards are each alone."""
    leases = [range(i, i + 1) for i in range(min(singles, shards))]
    begin = len(leases)
    while begin < shards:
        left = shards - begin
        size = max(1, min(LONGEST, left // FEWEST, SPREAD * left // shards))
        leases.append(range(begin, begin + size))
        begin += size
    return leases


class Lease:
    """A claim on consecutive shards; a context manager, whose claim is released when no shard of it is in hand."""

    def __init__(self, claim: Claim, shards: range) -> None:
        self.claim, self.shards = claim, shards
        self._lock, self._users = threading.Lock(), 0

    def part(self, index: int) -> Part:
        """One of its shards, for the writer's thread."""
        self.__enter__()
        return Part(self, index)

    def __enter__(self) -> Lease:
        with self._lock:
            self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self.claim.release()


class Part:
    """A shard of a lease while it is written; a context manager that keeps the lease in force."""

    def __init__(self, lease: Lease, index: int) -> None:
        self._lease, self.index = lease, index

    def renew(self) -> None:
        """Say that the holder lives."""
        self._lease.claim.renew()

    def __enter__(self) -> Part:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._lease.__exit__(kind, error, _)


class Ledger:
    """Which shards of a plan are still to be made, as one builder knows, and in which leases they are."""

    def __init__(self, shards: int, singles: int) -> None:
        self._leases = cut(shards, singles)
        self._starts = [lease.start for lease in self._leases]
        self._firsts = np.array(self._starts, np.int64)
        self._left = [len(lease) for lease in self._leases]
        self._open = dict.fromkeys(self._starts)
        self._stretches = frozenset(self._starts[::STRETCH])
        self._singles = singles
        self._done = np.zeros(shards, bool)
        self._undone = shards

    def __len__(self) -> int:
        """How many shards are still to be made."""
        return self._undone

    @property
    def made(self) -> Int64:
        """The shards that are not still to be made, in order."""
        return np.flatnonzero(self._done)

    def __contains__(self, shard: int) -> bool:
        """Whether a shard is still to be made."""
        return 0 <= shard < len(self._done) and not self._done[shard]

    def done(self, shard: int) -> None:
        """A shard is recorded."""
        self.all_done(np.array([shard], np.int64))

    def all_done(self, shards: Int64) -> Int64:
        """These are recorded, in any order; those of them that were not before, in order."""
        recorded = np.zeros_like(self._done)
        recorded[shards[shards < len(recorded)]] = True
        new = np.flatnonzero(recorded & ~self._done)
        self._done |= recorded
        self._undone -= len(new)
        found = np.searchsorted(self._firsts, new, side="right") - 1
        counts = np.bincount(found)
        for lease in np.flatnonzero(counts).tolist():
            self._left[lease] -= int(counts[lease])
            if not self._left[lease]:
                del self._open[self._starts[lease]]
        return new

    def _of(self, shard: int) -> int:
        """Number of the lease that a shard is in."""
        return bisect_right(self._starts, shard) - 1

    def undone(self, shard: int) -> None:
        """A shard is to be made again."""
        if self._done[shard]:
            self._done[shard] = False
            self._undone += 1
            lease = self._of(shard)
            self._left[lease] += 1
            self._open[self._starts[lease]] = None

    def lease(self, first: int) -> range:
        """The lease that begins with a shard."""
        return self._leases[self._of(first)]

    def begins_stretch(self, first: int) -> bool:
        """Whether the lease that begins with a shard is the first of a stretch."""
        return first in self._stretches

    def open(self) -> list[int]:
        """The first shards of leases of which some are to be made; the single ones at the beginning come first."""
        first = [i for i in range(self._singles) if i in self]
        return first or sorted(self._open)
