"""How far a store is that builders are at work on, from outside: its plan, one listing of records, and its claims.

Nothing is written, and no shard is read. Ages are seen by this host's clock, or by the newest file's where that is
ahead; what becomes of a claim is decided by builders, who look more closely (`claims.py`).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from softlabels.core.durable import explained
from softlabels.errors import FormatError
from softlabels.format.manifest import MANIFEST, Plan
from softlabels.format.pages import column
from softlabels.making.claims import EXPIRY, Sighting, sightings
from softlabels.making.leases import cut
from softlabels.making.plan import read_plan

WINDOW = 1800.0
"""Seconds before the newest record from which the rate is taken."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A lease in a builder's hands."""

    shard: int
    """The first of the lease; as many as the store has: the manifest."""
    shards: int
    """Of the lease; 0: the manifest."""
    host: str | None
    """None: the claim does not say."""
    pid: int | None
    silent: float
    """Seconds since its last sign of life."""
    state: str
    """`working`; `dead`: the process is gone; `stale`: silent for so long that another builder may take over."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a store is."""

    store: str
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


def status_of(store: Path) -> Status:
    """Look at a store once.

    Raises:
        FormatError: it is none, not even one that was begun.
        StoreError: its plan is damaged, or it cannot be read.
    """
    try:
        plan = read_plan(store)
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(
            f"{store}: holds no plan, so no build was begun there; give the folder that was a build's --out"
        ) from None
    with explained(store):
        times = _recorded(store / "commits", len(plan.shards))
        claims = sightings(store)
    complete = (store / MANIFEST).exists()
    now = max([time.time(), *times.values(), *(c.renewed for c in claims)])
    leases = {lease.start: lease for lease in cut(len(plan.shards), _singles(plan))}
    leases[len(plan.shards)] = range(0)
    held = tuple(
        _held(c, leases[c.index], now)
        for c in claims
        if not complete and c.index in leases and not _made(leases[c.index], times)
    )
    sizes = dict(enumerate(column(plan.shards, "positions").tolist()))
    positions, done = sum(sizes.values()), sum(sizes[i] for i in times)
    rate = None if complete else _rate(times, sizes)
    left = None
    if rate and any(h.state == "working" for h in held):
        left = (positions - done) / rate
    return Status(
        store=str(store),
        complete=complete,
        shards=len(plan.shards),
        shards_done=len(times),
        positions=positions,
        positions_done=done,
        positions_per_second=rate,
        seconds_left=left,
        held=held,
    )


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
    state = "dead" if claim.alive is False else "stale" if silent > EXPIRY else "working"
    holder = claim.holder
    return Held(
        shard=claim.index,
        shards=len(lease),
        host=None if holder is None else holder.host,
        pid=None if holder is None else holder.pid,
        silent=silent,
        state=state,
    )
