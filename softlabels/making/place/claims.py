"""Claims over a `Place`: how any number of builders share one plan in a bucket, in three requests a shard.

A claim is on a lease, which is consecutive shards (`making/leases.py`): `claims/00000032.json` for the one that begins
with shard 32.

The flow of a builder:
 1. it creates the claim of the lease that follows the one it had; of many that try, one succeeds;
 2. if that one is another's it looks, by one listing, at a page of leases, from a block on that chance gives, those
    of the most shards first, and takes one that is free there;
 3. while it works it renews the claim (another content, so another version) every `RENEWAL` seconds;
 4. when all shards of the lease are recorded it publishes the records together, `claims/00000032.done.json`, after
    which the claim says nothing more; when all leases of a block are done, whoever sees it says so
    (`claims/block-00000.json`), so that nobody looks there again;
 5. between two leases it looks, now and then and by chance, at a block that others have in hand, and at those claims
    there again that nobody has renewed, so that the dead are not found only when nothing else is left;
 6. who finds nothing free waits, and makes one request now and then: it asks what others say of blocks, or, if that is
    nothing new, looks at a block that others have in hand.

A claim is never removed before the store is finished: who lets go of a lease leaves a claim that says that it is free
(`FREE`). So a claim that could be created tells that nobody had the lease before, and nothing of it is asked for.

A claim whose version stays the same for `EXPIRY` seconds, as one builder sees it by its own clock, is dead, and so is
one whose process can be looked at from here and is gone. It is swapped on condition that the version is still the one
that was seen: again one succeeds. No clock of another host matters, nor does that of the place, but for which claims
who has work looks at again.

Safety never rests on a claim: shards and records are created if they are absent (`commit.py`). A builder that
stood still and was taken over from finds that what it made is there already.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Set

from softlabels.making.claims import EXPIRY, LIVING, Holder
from softlabels.making.place import HELD, Entry, Place
from softlabels.making.place.blocks import BLOCK, LOOKS, Blocks
from softlabels.making.place.holding import Claimant, PlaceLease
from softlabels.making.place.leases import Shown, leases_of
from softlabels.making.place.names import FULL, is_free
from softlabels.making.place.watch import Watched

FRESH = 20.0
"""Seconds for which who waits does not look again at what was listed."""
FEW = 16
"""Of so few claims on a page who has work watches all, of more those that were not renewed for some time."""
WATCHERS = 64
"""Builders at work that watch what may be dead where they look for work, about; if there are more, chance says who."""
LOOKERS = 2
"""Builders at work that look at each block in which nothing is free, while a claim lasts, about."""


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
        self._leases = leases_of(shards, first)
        self._chance = random.Random() if chance is None else chance
        self._me = Holder.here() if me is None else me
        LIVING.add(self._me.token)
        self._claimant = Claimant(place, self._me, clock, self._chance)
        self._next = None if begin is None else self._leases.of_shard(begin)
        self._held: int | None = None
        """A lease that was another's when this builder took one before it; so it is not asked for."""
        self._watched = Watched(place, clock, self._me)
        self._blocks = Blocks(place, self._leases.sizes, clock)
        self._dead_looked_for = clock()
        self._taken = 0
        """Leases that this builder took."""
        self._idle = False
        """Whether there was nothing to take."""
        self._tells = True
        """Whether who waits asks next time what others tell, too."""
        self.cleared = False
        """Whether claims are gone that were there, as they are when the store is finished; for the caller to look."""
        self._first = min(first, len(self._leases))
        """So many leases must be done before any other is begun."""

    @property
    def done(self) -> bool:
        """Whether all leases are known to be done."""
        return not self._blocks.left

    def take(self) -> PlaceLease | None:
        """A lease that is free, or whose holder is dead. None: there is none now, or all are done (`done`).

        The caller must then look which of its shards were committed meanwhile.

        Raises:
            StoreError: the place refuses.
        """
        number, self._next = self._next, None
        lease = self._idle_look() if self._idle else self._of_one_dead()
        if lease is None and self.cleared:
            return None
        if lease is None and number is not None and number < self._bound and number != self._held:
            lease = self._took(number, self._create(number))
        if lease is None and not self._idle:
            lease = self._jump()
        self._idle = lease is None
        return lease

    def take_end(self, name: str) -> PlaceLease | None:
        """What one builder alone does, under a claim of its own, such as finishing the store; None: another does it."""
        entry = self._end(name)
        name = _end_name(name)
        if entry is None:
            return self._claimant.create(name, range(0))
        if is_free(entry):
            return self._claimant.swap(name, range(0), entry.version)
        return self._take_over(name, range(0)) if self._watched.expired(name) else None

    def end_is_held(self, name: str) -> bool:
        """Whether another, who lives as far as is known here, does what one builder alone does: one request."""
        entry = self._end(name)
        return not (entry is None or is_free(entry) or self._watched.expired(entry.name))

    def _end(self, name: str) -> Entry | None:
        """The claim on what one builder alone does, watched if somebody holds it."""
        name = _end_name(name)
        found = [e for e in self._place.list(HELD, after=name[:-1]) if e.name == name]
        if not found:
            return None
        if not is_free(found[0]):
            self._watched.keep({name})  # nothing else matters now
            self._watched.peek(found)
            self._watched.watch(found)
        return found[0]

    def finish(self, lease: PlaceLease, records: bytes) -> None:
        """All shards of a lease are recorded: publish their records together; the claim then says nothing more."""
        number = self._leases.of_shard(lease.shards.start)
        self._place.create(self._leases.records[number], records)
        if self._idle:  # it may have been the last of its block
            self._blocks.may_have(number // BLOCK)

    def spread(self, pause: float) -> float:
        """Seconds of a pause, by chance up to half of it less, so that of many who wait not all ask at once."""
        return pause * self._chance.uniform(0.5, 1.0)

    def close(self) -> None:
        """Whatever was taken here and not let go of is dead from now on."""
        LIVING.discard(self._me.token)

    # -- finding one ------------------------------------------------------------------------------

    @property
    def _bound(self) -> int:
        """Leases that may be begun now."""
        return self._first or len(self._leases)

    def open_rest(self) -> None:
        """The first leases are done: all others may be begun."""
        self._first = 0
        self._blocks.all_may_have()

    def _took(self, number: int, lease: PlaceLease | None) -> PlaceLease | None:
        if lease is not None:
            self._next = number + 1
            self._taken += 1
        return lease

    def _jump(self) -> PlaceLease | None:
        """Look at some blocks in which something may be free."""
        self._blocks.read_marks(EXPIRY)
        for block in self._blocks.where_to_look(self._bound_blocks, self._chance, fresh=FRESH):
            if lease := self._look(block):
                return lease
            self._blocks.read_marks(FRESH)
        return None

    def _idle_look(self) -> PlaceLease | None:
        """What who waits asks: a block that others have in hand, and, every second time, what others tell.

        The block is that of the claim that may be dead for longest, if one is known; else any. It is not looked at
        if others, who have just looked, tell news.
        """
        told, self._tells = self._tells and self._blocks.read_marks(FRESH), not self._tells
        block = self._where_one_died()
        if block is None and not told:
            block = self._blocks.any_left(self._bound_blocks, self._chance, fresh=FRESH)
        return None if block is None else self._look(block)

    @property
    def _bound_blocks(self) -> int:
        """Blocks in which leases may be begun now."""
        return -(-self._bound // BLOCK)

    def _look(self, block: int, *, new: bool = True) -> PlaceLease | None:
        """Take one of the leases that a page of claims shows, from a block on; mark blocks with nothing left to do.

        Args:
            new: also one that nobody had before.
        """
        shown, bound = self._leases.look(self._place, block), self._bound
        gaps = [n for n in shown.untouched if n < bound]
        if again := [b for b in {n // BLOCK for n in gaps} if self._blocks.is_full(b)]:
            for b in again:
                self._blocks.may_have(b)
            self.cleared = True
            return None
        let_go = [self._leases.of_claim(name) for name in shown.let_go]
        self._tell(shown, {n // BLOCK for n in gaps + let_go})
        names, numbers = self._leases.names, shown.numbers
        waits = self._idle or (new and not (gaps or let_go))
        watched = self._watched.quiet(shown.held)
        if waits or len(shown.held) <= FEW:
            watched = shown.held
        elif new and self._taken and not self._watches():
            watched = [e for e in watched if e.name in self._watched]
        first, last = names[numbers[0]], names[numbers[-1]]
        self._watched.watch_all(watched, first, last)
        if not (gaps or let_go):
            self._watched.peek(shown.held)
        if lease := self._of_the_dead(first, last):
            return lease
        gaps = gaps + let_go if new else let_go
        if not gaps or (lease := self._of_gaps(gaps, shown.let_go)) is None:
            return None
        free, after = set(gaps), self._leases.of_claim(lease.name) + 1
        after += _run(after, free)
        self._held = after if new and after in numbers else None
        return lease

    def _watches(self) -> bool:
        """Whether it falls to this builder, of all at work, to watch what may be dead where it looks for work."""
        return self._chance.random() * self._blocks.builders(self._taken) < WATCHERS

    def _tell(self, shown: Shown, may_have: Set[int]) -> None:
        """Remember what was seen of blocks; tell others of the first, which chance gave.

        Args:
            may_have: blocks in which something is free.
        """
        leases, bound = len(self._leases), self._bound
        first, end = shown.numbers.start // BLOCK, shown.numbers.stop
        for block in range(first, end // BLOCK + (end == leases and end % BLOCK > 0)):
            if block in may_have:
                continue
            if block not in shown.undone:
                if block == first and not self._blocks.is_done(block):
                    self._blocks.mark(block)
                self._blocks.done(block)
            else:
                if block == first and BLOCK < leases == bound and not self._blocks.is_full(block):
                    self._blocks.mark(block, FULL)
                self._blocks.full(block)

    def _of_gaps(self, gaps: list[int], let_go: Mapping[str, str]) -> PlaceLease | None:
        """Take one of the leases that nobody holds, of the long ones, before which most are free.

        Args:
            let_go: claims that say so, and their versions.
        """
        most = max(len(self._leases.all[n]) for n in gaps)
        gaps = [n for n in gaps if 2 * len(self._leases.all[n]) >= most]
        free = set(gaps)
        some = self._chance.sample(gaps, min(LOOKS, len(gaps)))
        for number in sorted(some, key=lambda n: _run(n, free), reverse=True):
            name, shards = self._leases.names[number], self._leases.all[number]
            version = let_go.get(name)
            if version is None:
                lease = self._claimant.create(name, shards)
            else:
                lease = self._claimant.swap(name, shards, version)
            if lease is not None:
                return self._took(number, lease)
        return None

    # -- the dead ---------------------------------------------------------------------------------

    def _of_one_dead(self) -> PlaceLease | None:
        """Look, now and then, at a claim that may be dead, or for one: at the end it would be waited for."""
        since = self._clock() - self._dead_looked_for
        if since < EXPIRY:
            return None
        self._dead_looked_for = self._clock()
        block = self._where_one_died()
        if block is None:
            share = LOOKERS * since / EXPIRY
            block = self._blocks.one_in_hand(self._taken, self._chance, share=share)
        return None if block is None else self._look(block, new=False)

    def _where_one_died(self) -> int | None:
        """The block of the claim that was seen longest ago, if that is so long ago that its holder may be dead."""
        name = self._watched.oldest_expired()
        return None if name is None else self._leases.of_claim(name) // BLOCK

    def _of_the_dead(self, first: str, last: str) -> PlaceLease | None:
        """Take over from a claim that has not changed for long, of those from one name to another."""
        dead = [n for n in self._watched if first <= n <= last and self._watched.expired(n)]
        for name in self._chance.sample(dead, len(dead)):
            number = self._leases.of_claim(name)
            if lease := self._take_over(name, self._leases.all[number]):
                return self._took(number, lease)
        return None

    def _take_over(self, name: str, shards: range) -> PlaceLease | None:
        return self._claimant.swap(name, shards, self._watched.pop(name).version)

    def _create(self, number: int) -> PlaceLease | None:
        return self._claimant.create(self._leases.names[number], self._leases.all[number])


def _end_name(name: str) -> str:
    """Of the claim on what one builder alone does."""
    return f"{HELD}/{name}.json"


def _run(number: int, free: set[int]) -> int:
    """How many leases one after the other are free, from one on."""
    end = number
    while end in free:
        end += 1
    return end - number
