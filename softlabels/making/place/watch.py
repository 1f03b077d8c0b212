"""Other builders' claims as one builder sees them: since when each says the same, and whose process is gone.

No clock of another host matters, nor that of the place: an age is counted by the clock of who watches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from typing import NamedTuple

from softlabels.core.processes import is_alive, this_process
from softlabels.errors import IntegrityError, StoreError
from softlabels.making.claims import EXPIRY, LIVING, Holder, holder_of
from softlabels.making.place import Entry, Place
from softlabels.making.place.holding import RENEWAL
from softlabels.making.place.names import FREE, may_be_beside

WATCHED = 256
"""Claims that one builder watches at a time; there is work for hours in so many."""
QUIET = 2 * RENEWAL
"""Seconds without a renewal, by the place's own clock, after which who has work watches a claim, too."""
DRIFT = 0.05
"""Seconds a second for which a builder believes less of what it knew of the place's clock."""
PEEKED = 4
"""Of so few claims in a block each is read once, for its process may be one of this host's."""
LONGEST = 4096
"""Bytes of a claim that is read, at most."""
NEVER = -1e18
"""Before all times of a clock."""


class Seen(NamedTuple):
    """A claim, as it was seen first in this version."""

    version: str
    when: float
    """By this builder's clock."""


class Watched:
    """Claims that one builder watches.

    Args:
        place: where the store is made.
        clock: seconds, of this builder alone.
        me: this builder.
    """

    def __init__(self, place: Place, clock: Callable[[], float], me: Holder) -> None:
        self._place, self._clock, self._me = place, clock, me
        self._seen: dict[str, Seen] = {}
        self._read: dict[str, Holder | None] = {}
        """Whose claims are that were read; None: they do not say."""
        self._ahead, self._told = NEVER, clock()
        """By how much the place's clock is ahead of this builder's, at least, and when claims told that."""

    def __iter__(self) -> Iterator[str]:
        """Their names."""
        return iter(self._seen)

    def __contains__(self, name: str) -> bool:
        return name in self._seen

    def keep(self, names: Set[str]) -> None:
        """Forget all other claims."""
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}
        self._read = {name: holder for name, holder in self._read.items() if name in names}

    def pop(self, name: str) -> Seen:
        """Forget a claim, and say how it was seen."""
        self._read.pop(name, None)
        return self._seen.pop(name)

    def watch(self, entries: Sequence[Entry]) -> None:
        """Remember since when each claim has its version, by this builder's clock."""
        now = self._clock()
        for entry in entries:
            seen = self._seen.get(entry.name)
            if seen is None and len(self._seen) >= WATCHED:
                continue
            if seen is None or seen.version != entry.version:
                self._seen[entry.name] = Seen(entry.version, now)

    def watch_all(self, entries: Sequence[Entry], first: str, last: str) -> None:
        """Watch these claims, and of those from one name to another no more."""
        here = {e.name for e in entries}
        self.keep({name for name in self._seen if name in here or not first <= name <= last})
        self.watch(entries)

    def quiet(self, entries: Sequence[Entry]) -> list[Entry]:
        """Of claims on one page those that were not renewed for some time: where a look is worth a request.

        That is told by the place's clock, as far as claims that were listed tell what it is; of the first page nothing
        is known, so it is all of them. Whether a claim is dead is not told by it.
        """
        times = [e.modified for e in entries]
        now, newest = self._clock(), max(times, default=NEVER)
        known = self._ahead - DRIFT * (now - self._told)
        first = self._ahead == NEVER
        self._ahead, self._told = max(known, newest - now), now
        latest = now + self._ahead - QUIET
        return [e for e, time in zip(entries, times, strict=True) if first or time < latest]

    def peek(self, entries: Sequence[Entry]) -> None:
        """Read claims that may be of this host, of which a process that is gone is dead.

        Each is read once, and again when its process is gone, for it may be another's since.
        """
        if len(entries) > PEEKED:
            return
        for entry in entries:
            before = self._read.get(entry.name)
            known = entry.name in self._read and not (before is not None and is_gone(before))
            if known or not may_be_beside(entry, self._me):
                continue
            try:
                claim = read_claim(self._place, entry)
            except StoreError:
                continue  # it is read again
            self._read[entry.name] = None if claim is None else claim.holder
            if claim is not None and claim.holder is not None and is_gone(claim.holder):
                self._seen[entry.name] = Seen(claim.version, NEVER)

    def expired(self, name: str) -> bool:
        """Whether a claim that is watched has not changed for so long that its holder is dead."""
        return self._clock() - self._seen[name].when > EXPIRY

    def oldest_expired(self) -> str | None:
        """Of these claims the one that was seen first longest ago; None: there is none.

        So a look at each in its turn reaches all, however many live.
        """
        latest = self._clock() - EXPIRY
        expired = ((seen.when, name) for name, seen in self._seen.items() if seen.when < latest)
        return min(expired, default=(0.0, None))[1]


class Claim(NamedTuple):
    """What a claim says."""

    version: str
    holder: Holder | None
    """None: it does not say."""


def read_claim(place: Place, entry: Entry) -> Claim | None:
    """What a claim says that was listed; None: it was let go of this moment."""
    try:
        data, version = place.read(entry.name, limit=LONGEST)
    except FileNotFoundError:
        return None
    except IntegrityError:  # no builder writes so much
        return Claim(entry.version, None)
    return None if data == FREE else Claim(version, holder_of(data))


def is_gone(holder: Holder) -> bool:
    """Whether a holder can be looked at from here, and is no more."""
    if str(holder) == str(this_process()):
        return holder.token not in LIVING
    return is_alive(holder) is False
