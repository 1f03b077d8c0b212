"""The plan: made once from the corpus, then followed by every builder that works on the store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import msgspec

from softlabels.durable import TEMPORARY, publish
from softlabels.errors import FormatError, IntegrityError, PlanError
from softlabels.rows import Cursor, InputRow
from softlabels.store.claims import CLAIMS
from softlabels.store.encoding import container_of
from softlabels.store.identity import Identity
from softlabels.store.manifest import FileRecord, Plan, PlannedShard
from softlabels.store.records import (
    FORMAT,
    FORMAT_VERSION,
    RECORD_LIMIT,
    canonical,
    check_file,
    read_record,
    seal,
)
from softlabels.store.shard import inputs_digest

__all__ = [
    "PLAN",
    "RowDigests",
    "check_folder",
    "load_plan",
    "plan_shards",
    "publish_named",
    "publish_plan",
    "read_plan",
]

PLAN = "plan.json"


class RowDigests:
    """A running fingerprint of rows, in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, row: InputRow) -> None:
        """Take one more row."""
        self._hash.update(row.digest())

    def add_digests(self, digests: bytes) -> None:
        """Take rows by their input digests, 16 bytes each."""
        self._hash.update(digests)

    def hexdigest(self) -> str:
        """The fingerprint so far."""
        return self._hash.hexdigest()


def plan_shards(
    placed: Iterable[tuple[Cursor, InputRow]], shard_rows: int
) -> Iterator[PlannedShard]:
    """Cut rows into shards of `shard_rows`; holds one shard's rows at a time.

    Names are final only when the number of shards is known: see `publish_plan`.
    """
    source = iter(placed)
    index = start = 0
    while chunk := list(islice(source, shard_rows)):
        cursor, rows = chunk[0][0], [row for _, row in chunk]
        yield PlannedShard(
            index=index,
            name="unnamed",
            start_row=start,
            rows=len(rows),
            positions=sum(r.n for r in rows),
            document=cursor.document,
            offset=cursor.offset,
            inputs_sha256=inputs_digest(rows),
        )
        index += 1
        start += len(rows)


def publish_plan(
    store: Path,
    identity: Identity,
    shards: list[PlannedShard],
    files: Mapping[str, bytes],
    *,
    shard_rows: int,
) -> Plan:
    """Write the files that lie beside the shards, then the plan; returns what is then in force.

    Raises:
        PlanError: the folder holds files of another job, or there are too many shards for one record.
    """
    suffix = container_of(identity).suffix
    named = [
        msgspec.structs.replace(s, name=f"data/train-{s.index:05d}-of-{len(shards):05d}.{suffix}")
        for s in shards
    ]
    return publish_named(
        store,
        Plan(
            format=FORMAT,
            version=FORMAT_VERSION,
            identity=identity,
            shard_rows=shard_rows,
            files={
                name: FileRecord(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
                for name, data in files.items()
            },
            shards=named,
            digest="0" * 64,
        ),
        files,
    )


def publish_named(store: Path, plan: Plan, files: Mapping[str, bytes]) -> Plan:
    """The same for a plan whose shards have their names; it is sealed here."""
    content = canonical(seal(plan))
    if len(content) > RECORD_LIMIT:
        raise PlanError(
            f"{store / PLAN}: {len(plan.shards)} shards make a plan of {len(content)} bytes, and readers refuse one of "
            f"more than {RECORD_LIMIT}; raise --shard-rows (now {plan.shard_rows})"
        )
    for name, data in files.items():
        if not publish(store / name, data):
            # A builder that died before its plan left this: same job, same bytes, or another job.
            check_beside(store / name, data)
    publish(store / PLAN, content)
    return read_record(store / PLAN, Plan)


def check_folder(store: Path) -> None:
    """Refuse a folder that holds something else than a build that has not published its plan.

    It died before, or it is another builder at work this moment.

    Raises:
        PlanError: names what was found.
    """
    ours = {"tokenizer", "data", "commits", "dictionaries", CLAIMS}
    foreign = sorted(
        p.name for p in store.iterdir() if p.name not in ours and not p.name.startswith(TEMPORARY)
    )
    if foreign and not (store / PLAN).exists():  # else another builder has just published it
        raise PlanError(
            f"{store}: is not empty and not a store (it holds {foreign[0]!r}); choose another --out"
        )


def check_beside(path: Path, data: bytes) -> None:
    """Refuse a file that is there with other content.

    Raises:
        PlanError: it differs.
    """
    try:
        check_file(path, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    except IntegrityError as e:
        raise PlanError(
            f"{path}: is there already with other content; the folder holds another job: choose another --out"
        ) from e


def read_plan(store: Path) -> Plan:
    """The plan of a folder; the files beside it are not looked at.

    Raises:
        StoreError: it is damaged, or of a newer version.
        FileNotFoundError, NotADirectoryError: there is none.
    """
    plan = read_record(store / PLAN, Plan)
    start = 0
    for i, shard in enumerate(plan.shards):
        if shard.index != i or shard.start_row != start:
            raise FormatError(f"{store / PLAN}: shard {i} is out of order")
        start += shard.rows
    return plan


def load_plan(store: Path) -> Plan | None:
    """The plan of a folder; None if it has none.

    Raises:
        PlanError: the folder holds something else.
        IntegrityError: the plan, or a file beside it, is damaged.
    """
    try:
        plan = read_plan(store)
    except (FileNotFoundError, NotADirectoryError):
        if store.exists() and not store.is_dir():
            raise PlanError(f"{store}: is a file, not a folder; choose another --out") from None
        return None
    for name, record in plan.files.items():
        check_file(store / name, sha256=record.sha256, size=record.bytes)
    return plan
