"""Committing: how a shard becomes part of a store.

The flow: the shard is published by create-if-absent (`softlabels/durable.py`), then its commit record, by
create-if-absent too. When all shards have a commit record the manifest is published the same way. A process that dies
at any step leaves at worst a temporary file, which the next run sweeps, or a published shard without a record, which
the next run checks and adopts. Nothing that was published is ever written to again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from softlabels.durable import explained, publish
from softlabels.errors import IntegrityError, StoreError
from softlabels.store.dictionaries import Dictionaries
from softlabels.store.encoding import FindDictionary, decode_shard, dictionary_of, read_statistics
from softlabels.store.identity import Identity
from softlabels.store.manifest import Commit, Plan, PlannedShard, Statistics
from softlabels.store.records import (
    FORMAT,
    FORMAT_VERSION,
    canonical,
    check_file,
    read_file,
    read_record,
    seal,
)
from softlabels.store.shard import inputs_digest

__all__ = [
    "adopt_shard",
    "commit_path",
    "commit_shard",
    "committed",
    "need_dictionary",
    "record_shard",
    "recorded",
    "remove",
    "withdraw",
]


def commit_path(store: Path, shard: PlannedShard) -> Path:
    """Where the commit record of a shard lies."""
    return store / "commits" / f"{shard.index:05d}.json"


def recorded(store: Path) -> set[int]:
    """Indices of the shards that have a commit record, from one listing."""
    names = (path.stem for path in (store / "commits").glob("*.json"))
    return {int(n) for n in names if n.isdecimal()}


def commit_shard(
    store: Path,
    plan: Plan,
    shard: PlannedShard,
    data: bytes,
    statistics: Statistics,
    seconds: float,
) -> Commit:
    """Publish a shard and then its record.

    If another builder published this shard first, its file stays and is adopted.
    """
    while not publish(store / shard.name, data):
        adopted = adopt_shard(store, plan, shard)
        if adopted is not None:
            return adopted  # else something else lay there, and is removed
    return record_shard(store, plan, shard, _digest(data), len(data), statistics, seconds)


def withdraw(store: Path, shard: PlannedShard) -> None:
    """Remove a damaged shard and its record, so that it is built again.

    Raises:
        StoreError: one of them cannot be removed.
    """
    for path in (commit_path(store, shard), store / shard.name):
        remove(store, path)


def remove(store: Path, path: Path) -> None:
    """Remove a file of a store, if it is there; of a link the link, not what it leads to.

    Raises:
        StoreError: it cannot be removed, or its folder is a link that leads out of the store.
    """
    with explained(path):
        if not path.parent.resolve().is_relative_to(store.resolve()):
            raise StoreError(
                f"{path}: its folder is a link that leads out of {store}, where nothing is ever removed; "
                "put a real folder in the link's place"
            )
        path.unlink(missing_ok=True)


def adopt_shard(store: Path, plan: Plan, shard: PlannedShard) -> Commit | None:
    """Record a shard that was published by a builder that died before recording it.

    Returns:
        None if there is no such file, or it does not hold what the plan asks for (it is then removed,
        to be built again).

    Raises:
        IntegrityError: the dictionary that it was coded with is missing.
    """
    path = store / shard.name
    try:
        data = read_file(path)  # what cannot be read is no reason to remove it
    except FileNotFoundError:
        return None
    find = Dictionaries(store, plan.identity.teacher.vocab_size)
    need_dictionary(data, plan.identity, find, where=str(path))
    try:
        check_planned(data, plan.identity, shard, find, where=str(path))
        statistics = read_statistics(data, plan.identity, where=str(path))
    except (IntegrityError, ValueError):
        remove(store, path)
        return None
    return record_shard(store, plan, shard, _digest(data), len(data), statistics, 0.0)


def need_dictionary(data: bytes, identity: Identity, find: FindDictionary, *, where: str) -> None:
    """Refuse to judge a shard without its dictionary: the shard may be intact.

    Raises:
        IntegrityError: the dictionary is missing or altered.
    """
    try:
        wanted = dictionary_of(data, identity, where=where)
    except IntegrityError:
        return  # not a shard, with any dictionary
    if wanted is not None:
        try:
            find(wanted)
        except IntegrityError as e:
            raise IntegrityError(f"{e} (nothing was changed)") from e


def check_planned(
    data: bytes, identity: Identity, planned: PlannedShard, find: FindDictionary, *, where: str
) -> None:
    """Decode a shard and compare its inputs with the plan's.

    Raises:
        IntegrityError: they differ.
    """
    shard = decode_shard(
        data,
        identity,
        start_row=planned.start_row,
        where=where,
        rows=planned.rows,
        positions=planned.positions,
        dictionary=find,
        numbering=planned.numbering,
    )
    if len(shard.rows) != planned.rows or inputs_digest(shard.rows) != planned.inputs_sha256:
        raise IntegrityError(f"{where}: its rows are not the ones that the plan lists")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def record_shard(
    store: Path,
    plan: Plan,
    shard: PlannedShard,
    sha256: str,
    size: int,
    statistics: Statistics,
    seconds: float,
) -> Commit:
    """Publish the commit record of a shard that was published; returns the one in force."""
    record = seal(
        Commit(
            format=FORMAT,
            version=FORMAT_VERSION,
            plan_digest=plan.digest,
            index=shard.index,
            name=shard.name,
            sha256=sha256,
            bytes=size,
            rows=shard.rows,
            positions=shard.positions,
            statistics=statistics,
            seconds=seconds,
            digest="0" * 64,
        )
    )
    path = commit_path(store, shard)
    publish(path, canonical(record))
    return read_record(path, Commit)


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
    if (
        record.plan_digest != plan.digest
        or record.name != shard.name
        or record.index != shard.index
    ):
        raise IntegrityError(f"{path}: belongs to another plan or shard")
    if whole:
        check_file(store / shard.name, sha256=record.sha256, size=record.bytes)
    return record
