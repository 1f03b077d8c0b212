"""The leases of a plan in a place, and what one page of a listing of claims shows of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from operator import attrgetter, not_

from softlabels.making.leases import cut
from softlabels.making.place import HELD, PAGE, Entry, Place
from softlabels.making.place.blocks import BLOCK
from softlabels.making.place.names import AT, LEASE, claim_name, done_name, is_free

_NAME = attrgetter("name")
AT_A_LOOK = 2
"""Blocks of which one page tells, at most: as many as it shows where most leases are done."""


@dataclass(frozen=True, eq=False)
class Leases:
    """The leases of a plan, in order."""

    all: tuple[range, ...]
    starts: tuple[int, ...]
    """The first shard of each."""
    names: tuple[str, ...]
    """Of their claims."""
    records: tuple[str, ...]
    """Names of what has all records of one."""

    def __len__(self) -> int:
        return len(self.all)

    @property
    def sizes(self) -> list[int]:
        """Shards of the first lease of each block."""
        return [len(lease) for lease in self.all[::BLOCK]]

    def of_shard(self, shard: int) -> int:
        """Number of the lease that a shard is in."""
        return bisect_right(self.starts, shard) - 1

    def of_claim(self, name: str) -> int:
        """Number of the lease that a claim is on."""
        return self.of_shard(int(name[AT]))

    def look(self, place: Place, block: int) -> Shown:
        """What a listing shows that begins with a block, and has it to its end.

        That is one page, unless many files of others lie there.
        """
        after = self.names[block * BLOCK][:LEASE]
        last = self.names[min((block + 1) * BLOCK, len(self)) - 1]
        page = place.list(HELD, after=after)
        found = page
        while len(page) == PAGE and found[-1].name < last:
            page = place.list(HELD, after=found[-1].name)
            found = [*found, *page]
        return self._shown(found, len(page) == PAGE, block)

    def _shown(self, page: Sequence[Entry], more: bool, block: int) -> Shown:
        """What entries from a block on show; `more`: others come after them."""
        end = (block + AT_A_LOOK) * BLOCK
        if more:
            end = min(bisect_right(self.names, page[-1].name), end)
        numbers = range(block * BLOCK, min(end, len(self)))
        names, records = (all_[numbers.start : numbers.stop] for all_ in (self.names, self.records))
        page = page[: bisect_right(page, names[-1], key=_NAME)]
        there = dict(zip(map(_NAME, page), page, strict=True))
        claims, done = list(map(there.get, names)), list(map(there.__contains__, records))
        open_ = [claim for claim in compress(claims, map(not_, done)) if claim is not None]
        let_go = {e.name: e.version for e in open_ if is_free(e)}
        blocks = range(0, len(numbers), BLOCK)
        return Shown(
            numbers=numbers,
            undone={block + i // BLOCK for i in blocks if not all(done[i : i + BLOCK])},
            untouched=[n for n, c in zip(numbers, claims, strict=True) if c is None]
            if None in claims
            else [],
            let_go=let_go,
            held=[e for e in open_ if e.name not in let_go] if let_go else open_,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """What a page shows of consecutive leases."""

    numbers: range
    undone: set[int]
    """Blocks in which some have no records that are published."""
    untouched: list[int]
    """Those on which there is no claim."""
    let_go: dict[str, str]
    """Claims that say that they are free, and their versions."""
    held: list[Entry]
    """All other claims on leases that are not done."""


@lru_cache(maxsize=4)
def leases_of(shards: int, first: int) -> Leases:
    """The leases of a plan, of whose shards so many first ones must be committed before any other is begun."""
    leases = tuple(cut(shards, first))
    starts = tuple(lease.start for lease in leases)
    return Leases(leases, starts, tuple(map(claim_name, starts)), tuple(map(done_name, starts)))
