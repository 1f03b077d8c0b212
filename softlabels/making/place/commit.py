"""Committing over a `Place`: the shard, then its record, each created if it is absent.

What is there already was made by another builder of the same plan, or by this one, whose answer was lost: a record of
the plan counts as it is, and a shard without one is recorded if it is what the plan asks for. The mark of a repair, at
a shard's name or, if it died, at a record's, is swapped for the file. Anything else is nobody's that we know: it is
named and left where it is. An object of a bucket appears whole or not at all, so that no builder leaves a torn one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from softlabels.core.records import RECORD_LIMIT, canonical, parse_raw
from softlabels.errors import IntegrityError
from softlabels.format.encoding import FindDictionary
from softlabels.format.manifest import Commit, Plan, Statistics
from softlabels.format.shard_records import PlannedShard
from softlabels.making.commit import is_of, judged, record_of
from softlabels.making.place import Entry, Place
from softlabels.making.place.publishing import published, read_published, way_out
from softlabels.making.place.quarantine import WITHDRAWN, is_mark

COMMITS = "commits"


def commit_name(index: int) -> str:
    """Where the record of a shard lies."""
    return f"{COMMITS}/{index:05d}.json"


def commit_in(
    place: Place,
    plan: Plan,
    shard: PlannedShard,
    data: bytes,
    statistics: Statistics,
    seconds: float,
    find: FindDictionary,
) -> tuple[Commit, bytes, bool]:
    """Publish a shard and then its record: the record in force, the bytes that it is of, and whether it is ours.

    Args:
        find: gives the dictionary of a shard that another builder published.

    Raises:
        IntegrityError: something else has the name of the shard, or of its record.
    """
    there, _ = published(place, shard.name, data)
    if there != data:
        data, statistics, seconds = there, _judged(place, plan, shard, there, find), 0.0
    record = record_of(plan, shard, data, statistics, seconds)
    there, ours = published(place, commit_name(shard.index), canonical(record), limit=RECORD_LIMIT)
    return record if ours else _record(place, plan, shard, there), data, ours


def _judged(
    place: Place, plan: Plan, shard: PlannedShard, data: bytes, find: FindDictionary
) -> Statistics:
    where = place.root / shard.name
    statistics, unfit = judged(data, plan.identity, shard, find, where=str(where))
    if statistics is None:
        raise IntegrityError(
            f"{where}: is there already and is not the shard of this plan ({unfit}); nothing was changed: look whose "
            f"it is, and run `softlabels repair {place.root}`, which moves it aside, or choose another --out"
        )
    return statistics


def read_commit(place: Place, plan: Plan, shard: PlannedShard) -> Commit:
    """The record of a shard that is recorded.

    Raises:
        IntegrityError: it is damaged, of another plan, or gone.
    """
    data, _ = read_published(place, commit_name(shard.index), limit=RECORD_LIMIT)
    return _record(place, plan, shard, data)


def _record(place: Place, plan: Plan, shard: PlannedShard, data: bytes) -> Commit:
    where = place.root / commit_name(shard.index)
    return parsed(data, plan, shard, where, remedy=way_out(place))


def read_shard(place: Place, shard: PlannedShard) -> bytes:
    """The bytes of a shard that is published; `IntegrityError` if it is gone."""
    return read_published(place, shard.name)[0]


def parsed(
    data: bytes,
    plan: Plan,
    shard: PlannedShard,
    where: object,
    *,
    remedy: str = "run `softlabels repair` on the store, and then the same command again",
) -> Commit:
    """The record that some bytes are; `IntegrityError` if it is not that of a shard of a plan.

    Args:
        remedy: what to do about one that is damaged, or withdrawn.
    """
    if data == WITHDRAWN:
        raise IntegrityError(f"{where}: was withdrawn by a repair that did not end; {remedy}")
    record, _ = parse_raw(data, Commit, where=where, remedy=remedy)
    if not is_of(record, plan, shard):
        raise IntegrityError(
            f"{where}: belongs to another plan or shard; nothing was changed: choose another --out"
        )
    return record


def recorded_in(place: Place, shards: range) -> set[int]:
    """Which of these consecutive shards have a record: one request, two where the length of names changes."""
    found: set[int] = set()
    for part in _equally_long(shards):
        last = commit_name(part[-1])
        for entry in place.list(COMMITS, after=commit_name(part[0]).removesuffix(".json")):
            if entry.name > last:
                break
            found |= {i for i in indices([entry]) if i in part}
    return found


def indices(records: Iterable[Entry]) -> set[int]:
    """The shards whose records a listing names; one that a repair withdrew is none."""
    names = (e.name for e in records if not is_mark(e))
    numbers = (name.removeprefix(f"{COMMITS}/").removesuffix(".json") for name in names)
    return {int(n) for n in numbers if n.isdecimal()}


def _equally_long(shards: range) -> Iterator[range]:
    """Parts whose names are in the order of their numbers."""
    at = shards.start
    while at < shards.stop:
        end = min(max(10 ** len(str(at)), 10**5), shards.stop)
        yield range(at, end)
        at = end


class LeaseRecords(msgspec.Struct, frozen=True, kw_only=True):
    """All records of a lease in one file, so that who finishes the store reads a sixteenth of them."""

    records: list[str]
    """Each as its own file spells it."""
    column_bytes: dict[str, int] | None
    """Of all its shards, as `Manifest.column_bytes`."""

    @classmethod
    def of(cls, data: bytes) -> LeaseRecords | None:
        """What the bytes of such a file say; None: they are of none."""
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
