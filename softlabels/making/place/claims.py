"""Claims over a `Place`: how any number of builders share one plan in a bucket, in three requests a shard.

A claim is on a lease, which is consecutive shards (`making/leases.py`): `claims/00000032.json` for the one that begins
with shard 32.

The flow of a builder:
 1. it creates the claim of the lease that follows the one it had; of many that try, one succeeds;
 2. if that one is another's it looks, by one listing, at a block of leases, which chance gives, those of the most
    shards first, and takes one that is free there;
 3. while it works it renews the claim (another content, so another version) every `RENEWAL` seconds;
 4. when all shards of the lease are recorded it publishes the records together, `claims/00000032.done.json`, after
    which the claim says nothing more; when all leases of a block are done, whoever sees it says so
    (`claims/block-00000.json`), so that nobody looks there again.

A claim is never removed before the store is finished: who lets go of a lease leaves a claim that says that it is free
(`FREE`). So a claim that could be created tells that nobody had the lease before, and nothing of it is asked for.

A claim whose version stays the same for `EXPIRY` seconds, as one builder sees it by its own clock, is dead, and so is
one whose process can be looked at from here and is gone. It is swapped on condition that the version is still the one
that was seen: again one succeeds. No clock of another host matters, nor that of the place.

Safety never rests on a claim: shards and records are created if they are absent (`commit.py`). A builder that
stood still and was taken over from finds that what it made is there already.
"""

from __future__ import annotations

import random
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial

from softlabels.errors import StoreError
from softlabels.making.claims import EXPIRY, LIVING, Holder
from softlabels.making.leases import cut
from softlabels.making.place import HELD, PAGE, Entry, Place
from softlabels.making.place.blocks import BLOCK, LOOKS, Blocks
from softlabels.making.place.names import (
    AT,
    DONE,
    FREE,
    FULL,
    LAST,
    LEASE,
    claim_content,
    claim_name,
    done_name,
    is_free,
)
from softlabels.making.place.watch import NEVER, Watched

RENEWAL = 100.0
"""Seconds between renewals, each of which is a request; two may fail."""
FRESH = 20.0
"""Seconds for which who waits does not look again at what was listed; who has work looks less often (`EXPIRY`)."""


@lru_cache(maxsize=4)
def _cut(
    shards: int, first: int
) -> tuple[tuple[range, ...], tuple[int, ...], tuple[str, ...], tuple[int, ...]]:
    """The leases of a plan, where they begin, the names of their claims, and the shards of each block's first lease."""
    leases = tuple(cut(shards, first))
    starts = tuple(lease.start for lease in leases)
    names = tuple(claim_name(start) for start in starts)
    return leases, starts, names, tuple(len(lease) for lease in leases[::BLOCK])


def leases_of(shards: int, first: int) -> tuple[range, ...]:
    """The leases of a plan, of whose shards so many first ones must be committed before any other is begun."""
    return _cut(shards, first)[0]


@dataclass(eq=False)
class PlaceLease:
    """Shards in this builder's hands."""

    name: str
    shards: range
    version: str | None
    """Of the claim; None: another has taken over."""
    content: Callable[[int], bytes]
    """Of the claim, when it was renewed so many times."""
    renewed: float
    """When, by this builder's clock."""
    taken_over: bool
    """Whether another held it before."""
    renewals: int = 0


class PlaceClaims:
    """One builder's side of the claims of a store.

    Args:
        place: where the store is made.
        shards: of its plan.
        first: shards that must be committed before any other is begun, each a lease of its own.
        begin: shard whose lease it tries first; None: chance decides.
        me: this process, if None.
        clock: seconds, of this builder alone.
        chance: of this builder.
    """

    def __init__(
        self,
        place: Place,
        shards: int,
        *,
        first: int = 0,
        begin: int | None = None,
        me: Holder | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
    ) -> None:
        self._place, self._clock = place, clock
        self._leases, self._starts, self._names, sizes = _cut(shards, first)
        self._chance = random.Random() if chance is None else chance
        self._me = Holder.here() if me is None else me
        LIVING.add(self._me.token)
        self._next = None if begin is None else bisect_right(self._starts, begin) - 1
        self._watched = Watched(place, clock, self._me)
        self._blocks = Blocks(place, sizes, clock)
        self._dead_looked_for = NEVER
        self._idle = False
        """Whether there was nothing to take."""
        self.cleared = False
        """Whether claims are gone that were there, as they are when the store is finished; for the caller to look."""
        self._first = first
        """So many leases must be done before any other is begun."""

    @property
    def done(self) -> bool:
        """Whether all leases are known to be done."""
        return not self._blocks.left

    @property
    def _fresh(self) -> float:
        """Seconds for which what was listed is not listed again."""
        return FRESH if self._idle else EXPIRY

    def take(self) -> PlaceLease | None:
        """A lease that is free, or whose holder is dead. None: there is none now, or all are done (`done`).

        The caller must then look which of its shards were committed meanwhile.

        Raises:
            StoreError: the place refuses.
        """
        number, self._next = self._next, None
        lease = self._of_one_dead()  # before what is free: it would be waited for at the end
        if lease is None and number is not None and number < self._bound:
            lease = self._took(number, self._create(number))
        lease = lease or self._jump()
        self._idle = lease is None
        return lease

    def take_end(self, name: str) -> PlaceLease | None:
        """What one builder alone does, under a claim of its own, such as finishing the store."""
        name = f"{HELD}/{name}.json"
        found = [e for e in self._place.list(HELD, after=name[:-1]) if e.name == name]
        if not found:
            return self._claim(name, range(0))
        if is_free(found[0]):
            return self._swap(name, range(0), found[0].version)
        self._watched.keep({name})  # nothing else matters now
        self._watched.peek(found)
        self._watched.watch(found)
        return self._take_over(name, range(0)) if self._watched.expired(name) else None

    def renew(self, lease: PlaceLease) -> None:
        """Say that the holder lives; cheap enough for every chunk of logits."""
        if self._clock() - lease.renewed >= RENEWAL:
            with suppress(StoreError):  # if it fails for long the claim expires, which is safe
                self.holds(lease)

    def holds(self, lease: PlaceLease) -> bool:
        """Renew now; whether the lease is still this builder's: one that stood still may have been taken over from.

        Raises:
            StoreError: the place refuses.
        """
        if lease.version is not None:
            lease.renewed, lease.renewals = self._clock(), lease.renewals + 1
            content = lease.content(lease.renewals)
            lease.version = self._place.renew(lease.name, content, lease.version)
        return lease.version is not None

    def finish(self, lease: PlaceLease, records: bytes) -> None:
        """All shards of a lease are recorded: publish their records together; the claim then says nothing more."""
        self._place.create(done_name(lease.shards.start), records)
        if self._idle:  # it may have been the last of its block
            number = bisect_right(self._starts, lease.shards.start) - 1
            self._blocks.may_have(number // BLOCK)

    def release(self, lease: PlaceLease) -> None:
        """Let go of a lease that is not finished, unless another has taken over.

        Its claim stays, and says that it is free: so a lease whose claim is made anew was never anybody's.
        """
        if lease.version is not None:
            with suppress(StoreError):  # what stays expires
                self._place.swap(lease.name, FREE, lease.version)

    def close(self) -> None:
        """Whatever was taken here and not let go of is dead from now on."""
        LIVING.discard(self._me.token)

    # -- finding one ------------------------------------------------------------------------------

    @property
    def _bound(self) -> int:
        """Leases that may be begun now."""
        return self._first or len(self._starts)

    def open_rest(self) -> None:
        """The first leases are done: all others may be begun."""
        self._first = 0
        self._blocks.all_may_have()

    def _took(self, number: int, lease: PlaceLease | None) -> PlaceLease | None:
        if lease is not None:
            self._next = number + 1
        return lease

    def _jump(self) -> PlaceLease | None:
        """Look at some blocks in which something may be free; who waits anyway looks at fewer."""
        self._blocks.read_marks(self._fresh)
        bound, again = -(-self._bound // BLOCK), 1 if self._idle else LOOKS
        for block in self._blocks.where_to_look(bound, self._chance, fresh=FRESH, again=again):
            if lease := self._look(block):
                return lease
            self._blocks.read_marks(FRESH)
        return None

    def _look(self, block: int) -> PlaceLease | None:
        """Take a lease of a block; mark the block if there is nothing left to do in it."""
        numbers = range(block * BLOCK, min((block + 1) * BLOCK, len(self._starts)))
        done, standing = self._listed(numbers)
        if len(done) == len(numbers):
            self._blocks.done(block)
            self._blocks.mark(block)
            return None
        held = [e for name, e in standing.items() if name not in done]
        let_go = {e.name: e.version for e in held if is_free(e)}
        may = range(numbers.start, min(numbers.stop, self._bound))
        gaps = [n for n in may if self._names[n] not in standing]
        if gaps and self._blocks.is_full(block):
            self._blocks.may_have(block)
            self.cleared = True
            return None
        gaps += [self._number(name) for name in let_go]
        held = [e for e in held if e.name not in let_go]
        if not gaps:
            if not self._blocks.is_full(block) and BLOCK < len(self._starts) == self._bound:
                self._blocks.mark(block, FULL)
            self._blocks.full(block)
            self._watched.peek(held)
        self._watched.watch(held)
        if lease := self._of_the_dead(held):
            return lease
        return self._of_gaps(gaps, let_go) if gaps else None

    def _listed(self, numbers: range) -> tuple[set[str], dict[str, Entry]]:
        """Claims of consecutive leases: the names of those that are done, and all that there are."""
        done, standing = set(), {}
        last = self._names[numbers[-1]]
        claims = set(self._names[numbers.start : numbers.stop])
        for entry in self._place.list(HELD, after=self._names[numbers[0]][:LEASE]):
            name = entry.name
            if name > last:
                break
            if name in claims:
                standing[name] = entry
            elif name[LEASE:] == DONE and (claim := f"{name[:LEASE]}.json") in claims:
                done.add(claim)
        return done, standing

    def _of_gaps(self, gaps: list[int], let_go: Mapping[str, str]) -> PlaceLease | None:
        """Take one of the leases that nobody holds, of the long ones, before which most are free.

        Args:
            let_go: claims that say so, and their versions.
        """
        most = max(len(self._leases[n]) for n in gaps)
        gaps = [n for n in gaps if 2 * len(self._leases[n]) >= most]
        free = set(gaps)
        some = self._chance.sample(gaps, min(LOOKS, len(gaps)))
        for number in sorted(some, key=lambda n: _run(n, free), reverse=True):
            name, shards = self._names[number], self._leases[number]
            version = let_go.get(name)
            lease = (
                self._claim(name, shards) if version is None else self._swap(name, shards, version)
            )
            if lease is not None:
                return self._took(number, lease)
        return None

    def _number(self, name: str) -> int:
        """Of the lease that a claim is on."""
        return bisect_right(self._starts, int(name[AT])) - 1

    # -- the dead ---------------------------------------------------------------------------------

    def _of_one_dead(self) -> PlaceLease | None:
        """Look again at the claims that were seen, and have not been looked at for long: at a page of them."""
        now = self._clock()
        if now - self._dead_looked_for < self._fresh:
            return None
        first = self._watched.first_expired()
        if first is None:
            return None
        self._dead_looked_for = now
        begin = first[:LEASE]
        listed = self._place.list(HELD, after=begin)
        page = {e.name: e for e in listed}
        last = listed[-1].name if len(listed) == PAGE else LAST
        self._watched.keep(
            {
                name
                for name in self._watched
                if not begin < name <= last or (name in page and name[:LEASE] + DONE not in page)
            }
        )
        seen = [page[name] for name in sorted(self._watched) if name in page]
        let_go = {e.name: e.version for e in seen if is_free(e)}
        if let_go:
            return self._of_gaps([self._number(name) for name in let_go], let_go)
        self._watched.watch(seen)
        return self._of_the_dead(seen)

    def _of_the_dead(self, held: Sequence[Entry]) -> PlaceLease | None:
        """Take over from one of these claims that has not changed for long."""
        dead = [e.name for e in held if e.name in self._watched and self._watched.expired(e.name)]
        for name in self._chance.sample(dead, len(dead)):
            number = self._number(name)
            if lease := self._take_over(name, self._leases[number]):
                return self._took(number, lease)
        return None

    def _take_over(self, name: str, shards: range) -> PlaceLease | None:
        return self._swap(name, shards, self._watched.pop(name).version)

    def _swap(self, name: str, shards: range, seen: str) -> PlaceLease | None:
        content = self._content()
        version = self._place.swap(name, content(0), seen)
        return None if version is None else self._lease(name, shards, version, content, True)

    def _create(self, number: int) -> PlaceLease | None:
        return self._claim(self._names[number], self._leases[number])

    def _claim(self, name: str, shards: range) -> PlaceLease | None:
        content = self._content()
        version = self._place.create(name, content(0))
        return None if version is None else self._lease(name, shards, version, content, False)

    def _lease(
        self,
        name: str,
        shards: range,
        version: str,
        content: Callable[[int], bytes],
        taken_over: bool,
    ) -> PlaceLease:
        return PlaceLease(name, shards, version, content, self._clock(), taken_over)

    def _content(self) -> Callable[[int], bytes]:
        """What a claim says; a version is of the content, so that no two claims say the same."""
        return partial(claim_content, self._me, f"{self._chance.getrandbits(64):016x}")


def _run(number: int, free: set[int]) -> int:
    """How many leases one after the other are free, from one on."""
    end = number
    while end in free:
        end += 1
    return end - number
