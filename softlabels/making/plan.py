"""The plan: made once from the corpus, then followed by every builder that works on the store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import msgspec

from softlabels.core.durable import is_temporary, publish, sweep
from softlabels.core.records import (
    FORMAT,
    FORMAT_VERSION,
    RECORD_LIMIT,
    canonical,
    check_file,
    read_file,
    read_record,
    seal,
)
from softlabels.core.rows import Cursor, InputRow
from softlabels.errors import FormatError, IntegrityError, PlanError
from softlabels.format.encoding import container_of
from softlabels.format.identity import Identity
from softlabels.format.manifest import FileRecord, Plan, PlannedShard
from softlabels.format.shard import inputs_digest
from softlabels.making.claims import CLAIMS

__all__ = [
    "PLAN",
    "RowDigests",
    "begun",
    "check_folder",
    "load_plan",
    "plan_shards",
    "publish_named",
    "publish_plan",
    "read_plan",
    "sweep_left",
]

PLAN = "plan.json"
BESIDE = ("tokenizer", "dictionaries")
"""Folders of what is written before the plan."""
FOLDERS = (*BESIDE, "data", "commits", CLAIMS)


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
    check_folder(store, files)
    for name, data in files.items():
        if not publish(store / name, data):
            # A builder that died before its plan left this: same job, same bytes, or another job.
            check_beside(store / name, data)
    publish(store / PLAN, content)
    return read_record(store / PLAN, Plan)


def begun(store: Path, notice: Callable[[str], None]) -> Plan | None:
    """The plan of a folder that is to become a store; None: it has none yet, and nothing of anybody else's.

    Nothing is written, and nothing removed before a plan of ours says that the folder is ours.

    Args:
        notice: told of temporary files that were removed.

    Raises:
        PlanError: the folder holds something else.
        IntegrityError: the plan, or a file beside it, is damaged.
    """
    plan = load_plan(store)
    if plan is None:
        check_folder(store)
    else:
        sweep_left(store, notice)
    return plan


def sweep_left(store: Path, notice: Callable[[str], None]) -> None:
    """Remove the temporary files of dead builders from a folder in which our plan stands."""
    for path in sweep(store):
        notice(f"removed {path.name}, left by a builder that died")


def check_folder(store: Path, files: Mapping[str, bytes] | None = None) -> None:
    """Refuse a folder without a plan that holds anything but what builders leave that have no plan yet.

    These are files beside the shards, with the bytes that we would write; temporary files; and empty folders. All
    else is foreign, whatever its name: the names of our shards are those of other datasets, too.

    Args:
        files: what we would write beside the shards; None: not known yet, so that their content is not compared.

    Raises:
        PlanError: names what was found.
    """
    if not store.is_dir():
        return
    for folder, folders, names in os.walk(store):
        at = Path(folder)
        top = [n for n in folders if at == store and n not in FOLDERS]
        links = [n for n in folders if (at / n).is_symlink()]
        for path in (at / n for n in [*names, *top, *links]):
            if _left(store, path, files):
                continue
            if (store / PLAN).exists():
                return  # another builder has just published it
            name = path.relative_to(store).as_posix()
            raise PlanError(
                f"{store}: is not empty and not a store (it holds {name!r}); choose another --out"
            )


def _left(store: Path, path: Path, files: Mapping[str, bytes] | None) -> bool:
    """Whether a file is such as a builder leaves that has no plan yet."""
    if is_temporary(path.name):
        return True
    name = path.relative_to(store).as_posix()
    if path.is_symlink() or name.partition("/")[0] not in BESIDE or "/" not in name:
        return False
    if files is None:
        return True
    try:
        return name in files and read_file(path) == files[name]
    except (IntegrityError, FileNotFoundError):
        return False


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
