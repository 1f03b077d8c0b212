"""Claims over a `Place`: how any number of builders share one plan in a bucket, in three requests a shard.

A claim is on a lease, which is consecutive shards (`leases.py`): `claims/00000032.json` for the one that begins with
shard 32.

The flow of a builder:
 1. it creates the claim of the lease that follows the one it had; of many that try, one succeeds;
 2. if that one is another's it looks, by one listing, at a block of leases, which chance gives, those of the most
    shards first, and takes one that is free there;
 3. while it works it renews the claim (another content, so another version) every `RENEWAL` seconds;
 4. when all shards of the lease are recorded it publishes the records together, `claims/00000032.done.json`, after
    which the claim says nothing more; when all leases of a block are done, whoever sees it says so
    (`claims/block-00000.json`), so that nobody looks there again.

A claim whose version stays the same for `EXPIRY` seconds, as one builder sees it by its own clock, is dead, and so is
one whose process can be looked at from here and is gone. It is swapped on condition that the version is still the one
that was seen: again one succeeds. No clock of another host matters, nor that of the place.

Safety never rests on a claim: shards and records are created if they are absent (`place_commit.py`). A builder that
stood still and was taken over from finds that what it made is there already.
"""

from __future__ import annotations

import random
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import NamedTuple

import msgspec

from softlabels.core.processes import is_alive, this_process
from softlabels.errors import StoreError
from softlabels.making.claims import EXPIRY, LIVING, Holder
from softlabels.making.leases import cut
from softlabels.making.place import HELD, Entry, Place

RENEWAL = 100.0
"""Seconds between renewals, each of which is a request; two may fail."""
BLOCK = 256
"""Leases that one listing shows, with what is left of their claims."""
LOOKS = 3
"""Blocks that are looked at before a builder waits."""
WATCHED = 256
"""Claims that one builder watches at a time; there is work for hours in so many."""
FRESH = 90.0
"""Seconds for which a block in which nothing was free is not looked at again."""
PEEKED = 4
"""Of so few claims in a block each is read once, for its process may be one of this host's."""
_NEVER = -1e18


@lru_cache(maxsize=4)
def _cut(shards: int, first: int) -> tuple[tuple[range, ...], tuple[int, ...]]:
    """The leases of a plan, and where they begin."""
    leases = tuple(cut(shards, first))
    return leases, tuple(lease.start for lease in leases)


def leases_of(shards: int, first: int) -> tuple[range, ...]:
    """The leases of a plan, of whose shards so many first ones must be committed before any other is begun."""
    return _cut(shards, first)[0]


class Seen(NamedTuple):
    """A claim, as it was seen first in this version."""

    version: str
    when: float
    """By this builder's clock."""


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
        self._leases, self._starts = _cut(shards, first)
        self._chance = random.Random() if chance is None else chance
        self._me = Holder.here() if me is None else me
        LIVING.add(self._me.token)
        self._next = None if begin is None else bisect_right(self._starts, begin) - 1
        self._seen: dict[str, Seen] = {}
        self._left = set(range(-(-len(self._starts) // BLOCK)))
        """Blocks that are not known to be done."""
        self._full: dict[int, float] = {}
        """When a block was seen last in which nothing was free."""
        self._marks_read = _NEVER
        self._first = first
        """So many leases must be done before any other is begun."""

    @property
    def done(self) -> bool:
        """Whether all leases are known to be done."""
        return not self._left

    def take(self) -> PlaceLease | None:
        """A lease that is free, or whose holder is dead. None: there is none now, or all are done (`done`).

        The caller must then look which of its shards were committed meanwhile.

        Raises:
            StoreError: the place refuses.
        """
        number, self._next = self._next, None
        if lease := self._of_one_dead():  # before what is free: it would be waited for at the end
            return lease
        if number is not None and number < self._bound and (lease := self._create(number)):
            return self._took(number, lease)
        return self._jump()

    def take_end(self, name: str) -> PlaceLease | None:
        """What one builder alone does, under a claim of its own, such as finishing the store."""
        name = f"{HELD}/{name}.json"
        if (lease := self._claim(name, range(0))) is not None:
            return lease
        found = [e for e in self._place.list(HELD, after=name[:-1])[:1] if e.name == name]
        self._peek(found)
        self._watch(found)
        return self._take_over(name, range(0)) if found and self._expired(name) else None

    def renew(self, lease: PlaceLease) -> None:
        """Say that the holder lives; cheap enough for every chunk of logits."""
        if lease.version is None or self._clock() - lease.renewed < RENEWAL:
            return
        lease.renewed, lease.renewals = self._clock(), lease.renewals + 1
        with suppress(StoreError):  # if it fails for long the claim expires, which is safe
            content = lease.content(lease.renewals)
            lease.version = self._place.renew(lease.name, content, lease.version)

    def finish(self, lease: PlaceLease, records: bytes) -> None:
        """All shards of a lease are recorded: publish their records together; the claim then says nothing more."""
        self._place.create(done_name(lease.shards.start), records)
        number = bisect_right(self._starts, lease.shards.start) - 1
        self._full.pop(number // BLOCK, None)  # it may have been the last of its block

    def release(self, lease: PlaceLease) -> None:
        """Let go of a lease that is not finished, unless another has taken over."""
        if lease.version is None:
            return
        try:
            if self._place.read(lease.name, limit=4096)[0] == lease.content(lease.renewals):
                self._place.remove(lease.name)
        except (StoreError, FileNotFoundError):
            pass  # what stays expires

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
        self._full.clear()

    def _took(self, number: int, lease: PlaceLease) -> PlaceLease:
        self._next = number + 1
        return lease

    def _jump(self) -> PlaceLease | None:
        """Look at some blocks, those of the largest leases first, which must not be the last that are begun."""
        self._read_marks()
        bound, now = -(-self._bound // BLOCK), self._clock()
        classes: dict[int, list[int]] = {}
        for block in sorted(b for b in self._left if b < bound):
            if now - self._full.get(block, _NEVER) >= FRESH:
                size = len(self._leases[block * BLOCK]).bit_length()
                classes.setdefault(size, []).append(block)
        for _, some in sorted(classes.items(), reverse=True):
            for block in self._chance.sample(some, min(LOOKS, len(some))):
                if lease := self._look(block):
                    return lease
        return None

    def _look(self, block: int) -> PlaceLease | None:
        """Take a lease of a block; mark the block if there is nothing left to do in it."""
        numbers = range(block * BLOCK, min((block + 1) * BLOCK, len(self._starts)))
        done, standing = set(), {}
        last = claim_name(self._starts[numbers[-1]])
        page = self._place.list(HELD, after=f"{HELD}/{self._starts[numbers[0]]:08d}")
        for entry in page:
            if entry.name > last:
                break
            start = int(entry.name[len(HELD) + 1 :][:8])
            if entry.name.endswith(_DONE):
                done.add(start)
            else:
                standing[start] = entry
        if len(done) == len(numbers):
            self._left.discard(block)
            self._place.create(_mark_name(block), b"done\n")
            return None
        held = [e for start, e in standing.items() if start not in done]
        gaps = [
            n
            for n in numbers
            if n < self._bound and self._starts[n] not in done and self._starts[n] not in standing
        ]
        if gaps:
            self._watch(held)
            most = max(len(self._leases[n]) for n in gaps)
            gaps = [n for n in gaps if 2 * len(self._leases[n]) >= most]
            free = set(gaps)
            some = self._chance.sample(gaps, min(LOOKS, len(gaps)))
            for number in sorted(some, key=lambda n: _run(n, free), reverse=True):
                if lease := self._create(number):
                    return self._took(number, lease)
            return None
        self._full[block] = self._clock()
        self._peek(held)
        self._watch(held)
        return self._of_the_dead(held)

    def _read_marks(self) -> None:
        if len(self._left) < 2 or self._clock() - self._marks_read < RENEWAL:
            return
        self._marks_read = self._clock()
        for entry in self._place.list(HELD, after=f"{HELD}/{_MARK}"):
            if entry.name.startswith(f"{HELD}/{_MARK}"):
                self._left.discard(int(entry.name[len(HELD) + 1 + len(_MARK) :][:5]))

    # -- the dead ---------------------------------------------------------------------------------

    def _watch(self, entries: Sequence[Entry]) -> None:
        """Remember since when each claim has its version, by this builder's clock."""
        now = self._clock()
        for entry in entries:
            seen = self._seen.get(entry.name)
            if seen is None and len(self._seen) >= WATCHED:
                continue
            if seen is None or seen.version != entry.version:
                self._seen[entry.name] = Seen(entry.version, now)

    def _peek(self, entries: Sequence[Entry]) -> None:
        """Read claims that were not seen before: a process of this host that is gone is dead at once."""
        new = [e for e in entries if e.name not in self._seen]
        for entry in new if len(entries) <= PEEKED else ():
            try:
                data, version = self._place.read(entry.name, limit=4096)
                holder = msgspec.json.decode(data, type=Holder)
            except (FileNotFoundError, StoreError, msgspec.DecodeError):
                continue  # released this moment, or not one of ours: only its age counts
            if _is_gone(holder):
                self._seen[entry.name] = Seen(version, _NEVER)

    def _expired(self, name: str) -> bool:
        return self._clock() - self._seen[name].when > EXPIRY

    def _of_one_dead(self) -> PlaceLease | None:
        """Look again at one of the claims that were seen, and have not been looked at for long."""
        expired = [n for n in self._seen if self._expired(n)]
        if not expired:
            return None
        name = self._chance.choice(expired)
        start = name.removesuffix(".json")
        there = {e.name: e for e in self._place.list(HELD, after=start)[:2]}
        if name not in there or start + _DONE in there:
            del self._seen[name]
            return None
        self._watch([there[name]])
        return self._of_the_dead([there[name]])

    def _of_the_dead(self, held: Sequence[Entry]) -> PlaceLease | None:
        """Take over from one of these claims that has not changed for long."""
        for name in (e.name for e in held if e.name in self._seen and self._expired(e.name)):
            number = bisect_right(self._starts, int(name[len(HELD) + 1 :][:8])) - 1
            if lease := self._take_over(name, self._leases[number]):
                return self._took(number, lease)
        return None

    def _take_over(self, name: str, shards: range) -> PlaceLease | None:
        seen = self._seen.pop(name)
        content = self._content()
        version = self._place.swap(name, content(0), seen.version)
        return None if version is None else self._lease(name, shards, version, content, True)

    def _create(self, number: int) -> PlaceLease | None:
        return self._claim(claim_name(self._starts[number]), self._leases[number])

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
        salt = f"{self._chance.getrandbits(64):016x}"
        me = asdict(self._me) | {"lease": salt}
        return lambda renewals: msgspec.json.encode(me | {"renewals": renewals})


def _run(number: int, free: set[int]) -> int:
    """How many leases one after the other are free, from one on."""
    end = number
    while end in free:
        end += 1
    return end - number


def claim_name(start: int) -> str:
    """Of the lease that begins with a shard."""
    return f"{HELD}/{start:08d}.json"


_DONE, _MARK = ".done.json", "block-"


def done_name(start: int) -> str:
    """Of the records of the lease that begins with a shard."""
    return f"{HELD}/{start:08d}{_DONE}"


def _mark_name(block: int) -> str:
    return f"{HELD}/{_MARK}{block:05d}.json"


def _is_gone(holder: Holder) -> bool:
    """Whether a holder can be looked at from here, and is no more."""
    if str(holder) == str(this_process()):
        return holder.token not in LIVING
    return is_alive(holder) is False
