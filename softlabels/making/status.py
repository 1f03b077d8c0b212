"""How far a store is that builders are at work on, from outside: its plan, one listing of records, and its claims.

Nothing is written, and no shard is read. Ages are seen by this host's clock, or by the newest file's where that is
ahead, in a folder by less than an hour: a copy may bring any times. What becomes of a claim is decided by builders, who
look more closely (`claims.py`). `place/status.py` looks at a store in a bucket.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

from softlabels.core.durable import explained
from softlabels.errors import FormatError
from softlabels.format.files import Address
from softlabels.format.manifest import MANIFEST, Plan
from softlabels.format.pages import column
from softlabels.making.claims import EXPIRY, Sighting, sightings
from softlabels.making.leases import cut
from softlabels.making.place import Place, exists
from softlabels.making.place.status import plan_in, recorded_times, sightings_in
from softlabels.making.plan import read_plan

WINDOW = 1800.0
"""Seconds before the newest record from which the rate is taken."""


AHEAD = 3600.0
"""Seconds by which the clock of a folder may be ahead of this host's."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A lease in a builder's hands."""

    shard: int
    """The first of the lease; as many as the store has: the manifest, or the plan while there is none."""
    shards: int
    """Of the lease; 0: the manifest, or the plan while there is none."""
    host: str | None
    """None: the claim does not say."""
    pid: int | None
    silent: float
    """Seconds since its last sign of life; below 0: its time lies in the future, which says nothing."""
    state: str
    """`working`; `dead`: the process is gone; `stale`: silent for so long that another builder may take over, or its
    time lies in the future."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a store is."""

    store: str
    planned: bool
    """Whether there is a plan; else a builder is making it, and nothing is counted yet."""
    complete: bool
    shards: int
    shards_done: int
    positions: int
    positions_done: int
    positions_per_second: float | None
    """Of all builders together, lately; None: too few shards are done to say."""
    seconds_left: float | None
    """At that rate; None: it is not known, or nobody is at work."""
    held: tuple[Held, ...]

    @property
    def working(self) -> int:
        """Leases that a living builder holds."""
        return sum(h.state == "working" for h in self.held)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was found of a store that has a plan."""

    plan: Plan
    times: dict[int, float]
    """When each shard was recorded."""
    claims: Sequence[Sighting]
    """Those in force; the one on shard number `len(plan.shards)` is the one on the manifest."""
    complete: bool
    now: float
    """The present, by the clock that its times are of."""


def status_of(store: Path | str) -> Status:
    """Look at a store once.

    Args:
        store: its folder, or its address in a bucket.

    Raises:
        ConfigError: no address of a bucket.
        FormatError: it is none, not even one that was begun.
        StoreError: its plan is damaged, or it cannot be read.
    """
    if "://" not in str(store):
        return _status_of_folder(Path(store))
    from softlabels.store.remote.bucket import BucketPlace

    return status_in(BucketPlace(str(store)))


def status_in(place: Place) -> Status:
    """As `status_of`, of a store that is made in a place (`place/status.py` says how many requests it takes)."""
    plan = plan_in(place)
    if plan is None:
        claims = sightings_in(place, 0, lambda _: False)
        return _planning(place.root, claims, _newest(c.renewed for c in claims))
    shards = len(plan.shards)
    times, complete = recorded_times(place, shards), exists(place, MANIFEST)
    leases = _leases(plan)

    def made(first: int) -> bool:
        return first not in leases or _made(leases[first], times)

    claims = [] if complete else sightings_in(place, shards, made)
    now = _newest([*times.values(), *(c.renewed for c in claims)])
    seen = Seen(plan=plan, times=times, claims=claims, complete=complete, now=now)
    return _counted(place.root, seen)


def _status_of_folder(store: Path) -> Status:
    try:
        plan = read_plan(store)
    except (FileNotFoundError, NotADirectoryError):
        with explained(store):
            claims = sightings(store) if store.is_dir() else []
        planning = [c for c in claims if c.index == 0]
        return _planning(store, planning, _newest((c.renewed for c in claims), AHEAD))
    with explained(store):
        times, claims = _recorded(store / "commits", len(plan.shards)), sightings(store)
    complete = (store / MANIFEST).exists()
    now = _newest([*times.values(), *(c.renewed for c in claims)], AHEAD)
    seen = Seen(plan=plan, times=times, claims=claims, complete=complete, now=now)
    return _counted(store, seen)


def _newest(times: Iterable[float], most: float = inf) -> float:
    """This host's present, or the newest of these times that is ahead of it by no more than this."""
    here = time.time()
    return max([here, *(t for t in times if t <= here + most)])


def _planning(root: Path | Address, claims: Sequence[Sighting], now: float) -> Status:
    """Of a store without a plan, which a builder is making."""
    if not claims:
        raise FormatError(
            f"{root}: holds no plan, so no build was begun there; give what was a build's --out"
        )
    return Status(
        store=str(root),
        planned=False,
        complete=False,
        shards=0,
        shards_done=0,
        positions=0,
        positions_done=0,
        positions_per_second=None,
        seconds_left=None,
        held=tuple(_held(c, range(0), now) for c in claims),
    )


def _counted(root: Path | Address, seen: Seen) -> Status:
    plan, times, complete = seen.plan, seen.times, seen.complete
    leases = _leases(plan)
    held = tuple(
        _held(c, leases[c.index], seen.now)
        for c in seen.claims
        if not complete and c.index in leases and not _made(leases[c.index], times)
    )
    sizes = dict(enumerate(column(plan.shards, "positions").tolist()))
    positions, done = sum(sizes.values()), sum(sizes[i] for i in times)
    rate = None if complete else _rate(times, sizes)
    left = None
    if rate and any(h.state == "working" for h in held):
        left = (positions - done) / rate
    return Status(
        store=str(root),
        planned=True,
        complete=complete,
        shards=len(plan.shards),
        shards_done=len(times),
        positions=positions,
        positions_done=done,
        positions_per_second=rate,
        seconds_left=left,
        held=held,
    )


def _leases(plan: Plan) -> dict[int, range]:
    """The leases of a plan by their first shards; that of the manifest is empty."""
    leases = {lease.start: lease for lease in cut(len(plan.shards), _singles(plan))}
    return leases | {len(plan.shards): range(0)}


def _recorded(commits: Path, shards: int) -> dict[int, float]:
    """When each shard was recorded."""
    found = {}
    try:
        with os.scandir(commits) as entries:
            for entry in entries:
                number, _, kind = entry.name.partition(".")
                if kind == "json" and number.isdecimal() and int(number) < shards:
                    found[int(number)] = entry.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:  # none was begun yet
        pass
    return found


def _rate(times: dict[int, float], sizes: dict[int, int]) -> float | None:
    """Positions a second between the first and the last record of the window; what came with the first is before it."""
    newest = max(times.values(), default=0.0)
    late = sorted((t, i) for i, t in times.items() if t >= newest - WINDOW)
    if len(late) < 2 or newest <= late[0][0]:
        return None
    return sum(sizes[i] for _, i in late[1:]) / (newest - late[0][0])


def _made(lease: range, times: dict[int, float]) -> bool:
    """Whether all of a lease is recorded, so that who still holds it has nothing to do."""
    return bool(lease) and all(i in times for i in lease)


def _singles(plan: Plan) -> int:
    """Shards that a dictionary is trained on, each of which is a lease."""
    return plan.identity.encoding.dictionary_shards or 0


def _held(claim: Sighting, lease: range, now: float) -> Held:
    silent = now - claim.renewed
    stale = silent > EXPIRY or (silent < 0 and not claim.alive)
    state = "dead" if claim.alive is False else "stale" if stale else "working"
    holder = claim.holder
    return Held(
        shard=claim.index,
        shards=len(lease),
        host=None if holder is None else holder.host,
        pid=None if holder is None else holder.pid,
        silent=silent,
        state=state,
    )
