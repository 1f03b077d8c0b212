"""Blocks of leases as one builder knows them: which are done, in which nothing was free, and where to look next.

A builder cannot list all claims of a large plan, so it looks at one block of leases at a time, and what it sees there
it tells the others by a mark: that all leases of a block are done (`claims/block-00000.json`), or that all are claimed
(`claims/block-00000.full.json`).

The price: a few bytes for each block in each builder, and one listing of marks when it has none to go on with.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from softlabels.core.rows import Int64
from softlabels.making.place import HELD, Place
from softlabels.making.place.names import FULL, block_of, mark_name
from softlabels.making.place.watch import NEVER

BLOCK = 256
"""Leases that one listing shows, with what is left of their claims."""
LOOKS = 3
"""Blocks that are looked at before a builder waits."""
_NEW = 64
"""More than a size has bits."""


class Blocks:
    """What one builder knows of the blocks of a plan.

    Args:
        place: where the store is made.
        sizes: shards of the first lease of each block.
        clock: seconds, of this builder alone.
    """

    def __init__(self, place: Place, sizes: Sequence[int], clock: Callable[[], float]) -> None:
        self._place, self._clock = place, clock
        self._classes = np.array([size.bit_length() for size in sizes], np.int64)
        self._seen = np.full(len(sizes), NEVER)
        """When each was seen last with nothing free in it; `NEVER`: it was not."""
        self._done = np.zeros(len(sizes), bool)
        self.left = len(sizes)
        """Blocks that are not known to be done."""
        self._marks_read = NEVER
        self._before = 0
        """Blocks that were begun before this builder looked."""

    def is_full(self, block: int) -> bool:
        """Whether nothing was free in it when it was seen last."""
        return bool(self._seen[block] != NEVER)

    def full(self, block: int) -> None:
        """Nothing is free in it now."""
        self._seen[block] = self._clock()

    def may_have(self, block: int) -> None:
        """Something may be free in it."""
        self._seen[block] = NEVER

    def all_may_have(self) -> None:
        """Something may be free in any."""
        self._seen[:] = NEVER

    def is_done(self, block: int) -> bool:
        """Whether all its leases are known to be done."""
        return bool(self._done[block])

    def done(self, block: int) -> None:
        """All its leases are done."""
        if not self._done[block]:
            self._done[block] = True
            self.left -= 1

    def mark(self, block: int, kind: str = ".json") -> None:
        """Tell other builders that all its leases are done, or claimed (`FULL`)."""
        self._place.create(mark_name(block, kind), b"claimed\n" if kind == FULL else b"done\n")

    def read_marks(self, age: float) -> bool:
        """See what others tell of the blocks that are left, unless that was seen so many seconds ago.

        One page: it begins at the first block that is left, and blocks are done more or less in order.

        Returns:
            Whether it was new.
        """
        if self.left < 2 or self._clock() - self._marks_read < age:
            return False
        first, left, full = self._marks_read == NEVER, self.left, 0
        self._marks_read = self._clock()
        begin = mark_name(int(self._done.argmin()), "")
        done = self._done.data  # a look at one of its values is fast
        for entry in self._place.list(HELD, after=begin):
            block = block_of(entry.name)
            if block is None or block >= len(done) or done[block]:
                continue
            if not entry.name.endswith(FULL):
                self.done(block)
            elif not self.is_full(block):
                self.full(block)
                full += 1
        if first:
            self._before = self._begun()
        return full > 0 or self.left < left

    def where_to_look(self, bound: int, chance: random.Random, *, fresh: float) -> Iterator[int]:
        """Some blocks, by chance, in which something may be free: `LOOKS` of one size, one of each other.

        Those of the largest leases come first, and those that were seen before last: of these only one, for who then
        waits looks at them in its turn. What is learnt of a block meanwhile counts.

        Args:
            bound: blocks before which leases may be begun.
            fresh: seconds for which a block in which nothing was free is not looked at again.
        """
        may = self._may_have(bound, fresh)
        kinds = self._classes[may] + (self._seen[may] == NEVER) * _NEW
        looks = LOOKS
        for kind in np.unique(kinds)[::-1].tolist():
            some, new = may[kinds == kind].tolist(), kind >= _NEW
            for block in chance.sample(some, min(looks if new else 1, len(some))):
                if not self._done[block] and (not new or not self.is_full(block)):
                    yield block
                    looks = 1
            if not new:
                return

    def any_left(self, bound: int, chance: random.Random, *, fresh: float) -> int | None:
        """One block, by chance, in which something may be free; arguments as of `where_to_look`."""
        may = self._may_have(bound, fresh)
        return int(may[chance.randrange(len(may))]) if len(may) else None

    def one_in_hand(self, taken: int, chance: random.Random, *, share: float) -> int | None:
        """One block, by chance, in which nothing is free; more often None, the more builders there are.

        Args:
            taken: leases that this builder took; others are held to be as fast.
            share: of the looks at a block that all builders make together, so many times one.
        """
        full = np.flatnonzero(~self._done & (self._seen != NEVER))
        if chance.random() * self.builders(taken) >= share * len(full):
            return None
        return int(full[chance.randrange(len(full))])

    def builders(self, taken: int) -> float:
        """How many builders there are, about, if others are as fast as this one, which took so many leases."""
        return BLOCK * max(self._begun() - self._before, 1) / max(taken, 1)

    def _begun(self) -> int:
        """Blocks in which nothing is free, done or not."""
        return int(np.count_nonzero(self._done | (self._seen != NEVER)))

    def _may_have(self, bound: int, fresh: float) -> Int64:
        seen = self._seen[:bound]
        return np.flatnonzero(~self._done[:bound] & (self._clock() - seen >= fresh))
