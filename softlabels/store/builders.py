"""Who is at work on a store in a folder, for those who wait for it: looks at it, one after the other."""

from __future__ import annotations

import time
from pathlib import Path

from softlabels.core.progress import duration
from softlabels.errors import FormatError
from softlabels.format.manifest import PLAN
from softlabels.making.claims import EXPIRY, Holder, Sighting, sightings
from softlabels.making.status import Status, status_of
from softlabels.store.waiting import Work


class Builders:
    """Looks at the builders of a store.

    A claim tells by its age that its holder is at work, unless its time is ahead of this host's clock, as in a store
    that was unpacked or in a folder of another clock: such a holder lives here, or renewed the claim since the last
    look. Whoever did that is at work, however old the claim seems.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before: dict[tuple[int, Holder | None], float] | None = None

    def __call__(self) -> Work:
        """Look once."""
        try:
            status = status_of(self._folder)
        except FormatError:
            if (self._folder / PLAN).exists():
                raise
            return Work(False, 0, "no builder is at work, or it still loads its teacher")
        held = {h.shard for h in status.held}
        claims = [c for c in sightings(self._folder) if c.index in held]
        working = sum(map(self._at_work, claims))
        self._before = {(c.index, c.holder): c.renewed for c in claims}
        return Work(working > 0, status.shards_done, _text(status, working))

    def _at_work(self, claim: Sighting) -> bool:
        before = self._before
        if claim.alive is False:
            return False
        if before is not None and before.get((claim.index, claim.holder)) != claim.renewed:
            return True
        age = time.time() - claim.renewed
        return age <= EXPIRY if age >= 0 else claim.alive is True


def _text(status: Status, working: int) -> str:
    who = {0: "no builder is at work", 1: "1 builder is at work"}.get(
        working, f"{working} builders are at work"
    )
    if not status.planned:
        return f"{who} on it"
    left = status.seconds_left if working else None
    rest = "" if left is None else f", about {duration(left)} left"
    return f"{who}, {status.shards_done:,} of {status.shards:,} shards are done{rest}"
