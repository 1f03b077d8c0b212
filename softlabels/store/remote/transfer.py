"""What push and pull share: which files a store has besides its shards, and what travelled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import msgspec

from softlabels.core.records import parse_record
from softlabels.errors import IntegrityError
from softlabels.format.files import StoreFiles
from softlabels.format.manifest import PLAN, Commit, Manifest, Plan
from softlabels.format.part import Part, part_digest
from softlabels.making.plan import opened_plan

AT_ONCE = 8
"""Files that travel at the same time."""
SUBMITTED = 4096
"""Files that are waited for together: each takes a kB of memory."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What a push or pull did."""

    digest: str
    """Names the content that is there now: the store's, or a part's own."""
    shards: int
    """Shards of the store, or of the part of it that is there now."""
    of: int
    """Shards of the whole store."""
    shards_moved: int
    """Shards that travelled; the others were there."""
    files_moved: int
    """All files that travelled, records and the shards included."""
    bytes_moved: int
    rows: int


def transferred(manifest: Manifest, moved: Mapping[str, int], part: Part | None = None) -> Transfer:
    """What was done, of the bytes of each file that travelled; of a part which shards are there now."""
    return Transfer(
        digest=part_digest(manifest, part),
        shards=len(manifest.shards if part is None else part.shards),
        of=len(manifest.shards),
        shards_moved=sum(shard.name in moved for shard in manifest.shards),
        files_moved=len(moved),
        bytes_moved=sum(moved.values()),
        rows=manifest.rows if part is None else part.corpus.rows,
    )


def commit_name(index: int) -> str:
    """Where a shard's commit record lies."""
    return f"commits/{index:05d}.json"


def check_grown(old: Manifest, new: Manifest, where: object) -> None:
    """Refuse to put a store in the place of one that it does not contain, naming a shard that would be lost."""
    kept = {s.name: s.sha256 for s in new.shards}
    for shard in old.shards:
        if kept.get(shard.name) != shard.sha256:
            raise IntegrityError(
                f"{where}: holds another store, whose shard {shard.name} this one has not; its readers would lose it. "
                "Choose another place, or delete what is there first"
            )


def claimed_digest(manifest: bytes) -> object:
    """The digest that a manifest's bytes say they have."""
    try:
        return msgspec.json.decode(manifest).get("digest")
    except (msgspec.DecodeError, AttributeError):
        return None


def read_beside(source: StoreFiles, name: str) -> bytes:
    """The bytes of a record that every finished store has beside its shards; `IntegrityError` if it is missing."""
    try:
        return source.record(name)
    except FileNotFoundError as e:
        where = source.root / name
        raise IntegrityError(f"{where}: missing; copy it again from the store's source") from e


def read_plan_record(source: StoreFiles) -> Plan:
    """The plan of a finished store; `IntegrityError` if it is missing or altered."""
    plan = parse_record(read_beside(source, PLAN), Plan, where=source.root / PLAN)
    return opened_plan(plan, source)


def check_commit(data: bytes, plan: Plan | None, sha256: str, where: object) -> None:
    """Refuse (`IntegrityError`) a commit record that is not of this shard, and of this plan, if that is known."""
    commit = parse_record(data, Commit, where=where)
    if commit.sha256 != sha256 or (plan is not None and commit.plan_digest != plan.digest):
        raise IntegrityError(f"{where}: is of another build than the manifest")


def several(
    work: Callable[[T], None], items: Iterable[T], advance: Callable[[int], None] | None = None
) -> None:
    """Do work on items, some at a time; `advance` hears of each that is done. After an error no other is begun."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="softlabels-transfer") as pool:
        source = iter(items)
        try:
            while some := list(islice(source, SUBMITTED)):
                for future in as_completed([pool.submit(work, item) for item in some]):
                    future.result()
                    if advance is not None:
                        advance(1)
        finally:
            pool.shutdown(cancel_futures=True)
