"""What tells how far a store is that is made in a `Place`: its plan, listings, and what the claims in force say.

Nothing is written, and no shard or record is read. The requests: one for the plan and one for each page of it; one for
every thousand records, and every thousand files of claims, at least one of each; one for the manifest; one for each
claim that somebody holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from softlabels.core.processes import is_alive
from softlabels.core.records import RECORD_LIMIT, parse_record
from softlabels.format.manifest import PLAN, Plan
from softlabels.making.claims import Sighting
from softlabels.making.place import HELD, Entry, Place, everything
from softlabels.making.place.commit import COMMITS, indices
from softlabels.making.place.finish import PlacePages, in_threads
from softlabels.making.place.names import FINISH, PLANNING, in_force, shard_of
from softlabels.making.place.watch import read_claim
from softlabels.making.plan import opened_plan


def plan_in(place: Place) -> Plan | None:
    """The plan of a place, without what lies beside it; None: there is none.

    Raises:
        StoreError: it is damaged, or the place is out of reach.
    """
    try:
        data, _ = place.read(PLAN, limit=RECORD_LIMIT)
    except FileNotFoundError:
        return None
    return opened_plan(parse_record(data, Plan, where=place.root / PLAN), PlacePages(place))


def recorded_times(place: Place, shards: int) -> dict[int, float]:
    """When each shard was recorded."""
    times = {}
    for entry in everything(place, COMMITS):
        for index in indices([entry]):
            if index < shards:
                times[index] = entry.modified
    return times


def sightings_in(place: Place, shards: int, made: Callable[[int], bool]) -> list[Sighting]:
    """The claims that somebody holds, each read once; the one on the manifest as that of shard number `shards`.

    Args:
        shards: of the plan; 0: there is none yet, and only who plans is looked for.
        made: whether the lease that begins with a shard is all recorded, so that its claim says nothing more.
    """
    held = []
    for entry in in_force(list(everything(place, HELD))):
        index = _index(entry.name, shards)
        if index is not None and (index == shards or not made(index)):
            held.append((index, entry))
    return [s for s in in_threads(partial(_seen, place), _by_index(held)) if s is not None]


def _by_index(held: Iterable[tuple[int, Entry]]) -> list[tuple[int, Entry]]:
    return sorted(held, key=lambda one: one[0])


def _index(name: str, shards: int) -> int | None:
    """The shard that a claim is on; None: it is on none, or no claim at all."""
    if name == f"{HELD}/{FINISH if shards else PLANNING}.json":
        return shards
    number = shard_of(name)
    return number if number is not None and number < shards else None


def _seen(place: Place, one: tuple[int, Entry]) -> Sighting | None:
    """What a claim says; None: it was let go of this moment."""
    index, entry = one
    claim = read_claim(place, entry)
    if claim is None:
        return None
    alive = None if claim.holder is None else is_alive(claim.holder)
    return Sighting(index=index, holder=claim.holder, renewed=entry.modified, alive=alive)
