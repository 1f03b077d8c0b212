"""Committing: how a shard becomes part of a store.

The flow: the shard is published by create-if-absent (`softlabels/core/durable.py`), then its commit record, by
create-if-absent too. When all shards have a commit record the manifest is published the same way. A process that dies
at any step leaves at worst a temporary file, which the next run sweeps, or a published shard without a record, which
the next run checks and adopts. Nothing that was published is ever written to again.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from softlabels.core.durable import publish, publish_link
from softlabels.core.inside import inside
from softlabels.core.records import (
    FORMAT,
    FORMAT_VERSION,
    canonical,
    check_file,
    is_record,
    read_file,
    read_record,
    seal,
)
from softlabels.core.rows import Int64
from softlabels.errors import IntegrityError, SoftLabelsError
from softlabels.format.dictionaries import Dictionaries
from softlabels.format.encoding import FindDictionary, decode_shard, dictionary_of, read_statistics
from softlabels.format.identity import Identity
from softlabels.format.manifest import Commit, Plan, Statistics
from softlabels.format.shard import Reading, inputs_digest
from softlabels.format.shard_records import PlannedShard, ShardRecord
from softlabels.making.quarantine import Sighting, move_aside, retract, sighting

_RECORDS = re.compile(r"(?:[0-9]{1,18}+\.json/)++")
"""Names of nothing but records, a slash after each."""


def commit_path(store: Path, shard: PlannedShard) -> Path:
    """Where the commit record of a shard lies."""
    return store / "commits" / f"{shard.index:05d}.json"


def recorded(store: Path) -> Int64:
    """Indices of the shards that have a commit record, from one listing; in no order."""
    with suppress(FileNotFoundError, NotADirectoryError):
        names = os.listdir(store / "commits")  # noqa: PTH208  names are wanted
        text = "/".join([*names, ""])
        if _RECORDS.fullmatch(text):  # a million names in 0.2 s, which takes 0.4 s one by one
            return np.fromstring(text.replace(".json/", " "), np.int64, sep=" ")
        known = (n for n in names if n.endswith(".json") and n[:-5].isdecimal() and len(n) < 24)
        return np.array([int(n[:-5]) for n in known], np.int64)
    return np.array([], np.int64)


@dataclass(frozen=True, kw_only=True)
class Reused:
    """A shard that stays the file that it is in another store."""

    file: Path
    sha256: str
    size: int
    """Bytes."""
    statistics: Statistics
    seconds: float
    """What it cost; see `Commit`."""

    def read(self) -> bytes:
        """Its bytes, checked."""
        return check_file(self.file, sha256=self.sha256, size=self.size)

    def publish(self, path: Path) -> bool:
        """Give it a second name, or copy it where that cannot be; False: there is something already."""
        try:
            return publish_link(path, self.file)
        except OSError:  # it cannot link; any other error is met again, and explained
            return publish(path, self.read())


def commit_shard(
    store: Path,
    plan: Plan,
    shard: PlannedShard,
    data: bytes | Reused,
    statistics: Statistics,
    seconds: float,
    *,
    notice: Callable[[str], None],
) -> Commit:
    """Publish a shard and then its record.

    If another builder published this shard first, its file stays and is adopted.
    """
    path = inside(store, shard.name)
    while not (publish(path, data) if isinstance(data, bytes) else data.publish(path)):
        adopted = adopt_shard(store, plan, shard, notice=notice)
        if adopted is not None:
            return adopted  # else something else lay there, and is moved aside
    return record_shard(store, plan, shard, data, statistics, seconds)


class Seen(NamedTuple):
    """Which files a shard was judged by."""

    record: Sighting | None
    shard: Sighting | None


def look(store: Path, shard: PlannedShard) -> Seen:
    """Which files lie at a shard's names; to be asked for before they are judged."""
    return Seen(sighting(commit_path(store, shard)), sighting(store / shard.name))


def withdraw(store: Path, shard: PlannedShard, seen: Seen) -> list[Path]:
    """Take a damaged shard and its record out of the store, so that it is built again.

    Only the files that were judged: what anybody put there since stays, and so does the shard of another record.

    Returns:
        What is now in quarantine.

    Raises:
        StoreError: one of them cannot be moved.
    """
    path = commit_path(store, shard)
    if sighting(path) != seen.record:
        return []
    # The shard first: left without its record, a damaged one could be adopted for what it says itself.
    moved = move_aside(store, store / shard.name, seen.shard)
    record = retract(store, path, seen.record, lambda aside: is_record(aside, Commit))
    return [p for p in (moved, record) if p]


def adopt_shard(
    store: Path, plan: Plan, shard: PlannedShard, *, notice: Callable[[str], None]
) -> Commit | None:
    """Record a shard that was published by a builder that died before recording it.

    Returns:
        None if there is no such file, or it does not hold what the plan asks for: it is then moved into quarantine,
        since nothing says whose it is, and the shard is built again.

    Raises:
        IntegrityError: the dictionary that it was coded with is missing.
        UnreadableError: it cannot be read, which is no reason to move it.
    """
    path = store / shard.name
    seen = sighting(path)
    try:
        data = read_file(path)
    except FileNotFoundError:
        return None
    find = Dictionaries(store, plan.identity.teacher.vocab_size)
    statistics, unfit = judged(data, plan.identity, shard, find, where=str(path))
    if statistics is None:
        if (aside := move_aside(store, path, seen)) is not None:
            notice(f"moved {path} to {aside}, since no record of the store names it ({unfit})")
        return None
    return record_shard(store, plan, shard, data, statistics, 0.0)


def judged(
    data: bytes, identity: Identity, planned: PlannedShard, find: FindDictionary, *, where: str
) -> tuple[Statistics | None, str | None]:
    """What was counted of a shard, or why it is not the planned one: it is decoded, and its inputs compared.

    Raises:
        IntegrityError: the dictionary that it was coded with is missing or altered: the shard may be intact.
    """
    wanted = None
    with suppress(IntegrityError):  # not a shard, with any dictionary
        wanted = dictionary_of(data, identity, where=where)
    try:
        if wanted is not None:
            find(wanted)
    except IntegrityError as e:
        raise IntegrityError(f"{e} (nothing was changed)") from e
    try:
        shard = decode_shard(data, Reading.of(planned, identity, where=where), dictionary=find)
        if len(shard.rows) != planned.rows or inputs_digest(shard.rows) != planned.inputs_sha256:
            return None, f"{where}: its rows are not the ones that the plan lists"
        return read_statistics(data, identity, where=where), None
    except (IntegrityError, ValueError) as e:
        ours = isinstance(e, SoftLabelsError)
        return None, str(e) if ours else f"{where}: cannot be decoded ({e})"


def record_shard(
    store: Path,
    plan: Plan,
    shard: PlannedShard,
    data: bytes | Reused,
    statistics: Statistics,
    seconds: float,
) -> Commit:
    """Publish the commit record of a shard that was published; returns the one in force."""
    path = inside(store, commit_path(store, shard).relative_to(store).as_posix())
    publish(path, canonical(record_of(plan, shard, data, statistics, seconds)))
    return read_record(path, Commit)


def record_of(
    plan: Plan, shard: PlannedShard, data: bytes | Reused, statistics: Statistics, seconds: float
) -> Commit:
    """What the commit record of a shard says."""
    return seal(
        Commit(
            format=FORMAT,
            version=FORMAT_VERSION,
            plan_digest=plan.digest,
            index=shard.index,
            name=shard.name,
            sha256=hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else data.sha256,
            bytes=len(data) if isinstance(data, bytes) else data.size,
            rows=shard.rows,
            positions=shard.positions,
            statistics=statistics,
            seconds=seconds,
            digest="0" * 64,
        )
    )


def shard_record(planned: PlannedShard, commit: Commit) -> ShardRecord:
    """What the manifest says of a shard."""
    return ShardRecord(
        name=commit.name,
        sha256=commit.sha256,
        bytes=commit.bytes,
        start_row=planned.start_row,
        rows=commit.rows,
        positions=commit.positions,
        counts_from=planned.counts_from,
        documents_from=planned.documents_from,
    )


def is_of(record: Commit, plan: Plan, shard: PlannedShard) -> bool:
    """Whether a record says that it is this plan's, of this shard."""
    asked = (plan.digest, shard.name, shard.index)
    return (record.plan_digest, record.name, record.index) == asked


def committed(store: Path, plan: Plan, shard: PlannedShard, *, whole: bool = True) -> Commit | None:
    """The shard's commit record, if the shard is done, is this plan's, and its bytes are intact.

    Args:
        whole: read the shard and compare its bytes; False trusts a record that was made this moment.

    Raises:
        IntegrityError: there is a record, but it or the shard is damaged.
    """
    path = commit_path(store, shard)
    try:
        record = read_record(path, Commit)
    except FileNotFoundError:
        return None
    if not is_of(record, plan, shard):
        raise IntegrityError(f"{path}: belongs to another plan or shard")
    if whole:
        check_file(store / shard.name, sha256=record.sha256, size=record.bytes)
    return record
