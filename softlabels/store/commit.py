"""Publishing: how a file appears in a store whole, or not at all.

The flow of one shard: temporary file on the same file system -> fsync -> read back and compare ->
publish by create-if-absent (a hard link) -> commit record, by create-if-absent too. When all shards
have a commit record the manifest is published the same way. A process that dies at any step leaves at
worst a temporary file, which the next run sweeps, or a published shard without a record, which the next
run checks and adopts. Nothing that was published is ever written to again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

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
    "alive",
    "commit_path",
    "commit_shard",
    "committed",
    "leftovers",
    "need_dictionary",
    "publish",
    "publish_link",
    "record_shard",
    "recorded",
    "remove",
    "replace",
    "sweep",
    "withdraw",
]

TEMPORARY = ".tmp-"
_WRITER = re.compile(re.escape(TEMPORARY) + r"(.+?)-(\d{1,7})-[0-9a-f]{8}-", re.DOTALL)
"""Host and pid in a temporary file's name; a host's own name may end in `-` and digits."""
STALE_SECONDS = 24 * 3600.0
"""A temporary file of another host is swept after this long."""


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn a failing system call into a sentence."""
    try:
        yield
    except OSError as e:
        if isinstance(e, StoreError):
            raise
        ways_out = {
            errno.ENOSPC: "the disk is full: free space",
            errno.EDQUOT: "your quota is used up: free space",
            errno.EROFS: "the file system is read-only: choose another --out",
            errno.EACCES: "permission denied: check the owner of the folder",
            errno.EPERM: "not permitted here (does the file system support hard links?): choose another --out",
            errno.EOPNOTSUPP: "the file system has no hard links: choose another --out",
        }
        way_out = ways_out.get(e.errno or 0, e.strerror or str(e))
        raise StoreError(
            f"{path}: {way_out}, then run the same command again; finished shards are kept"
        ) from e


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(path: Path, data: bytes) -> bool:
    """Make `path` hold `data`, whole and durable, unless it exists already.

    Returns:
        False if something is there already; it is left as it is.

    Raises:
        StoreError: the disk is full, read-only, …: says which, and that nothing is lost.
        IntegrityError: what was read back is not what was written.
    """
    with _explained(path), _written(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        _sync_folder(path.parent)
    return True


def replace(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, in one step and durable, whatever was there; of a link the link is replaced.

    Only for what is not content: a manifest whose content stays, and the card that is made from it.

    Raises:
        StoreError: the disk is full, read-only, …: says which, and that nothing is lost.
        IntegrityError: what was read back is not what was written.
    """
    with _explained(path), _written(path, data) as temporary:
        temporary.replace(path)
        _sync_folder(path.parent)


@contextmanager
def _written(path: Path, data: bytes) -> Iterator[Path]:
    """A temporary file beside `path` that holds `data`, durable and read back; it is gone afterwards."""
    temporary = (
        path.parent / f"{TEMPORARY}{socket.gethostname()}-{os.getpid()}-{token_hex(4)}-{path.name}"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        if temporary.read_bytes() != data:
            raise IntegrityError(
                f"{temporary}: what was read back differs from what was written; check the disk"
            )
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def publish_link(path: Path, source: Path) -> bool:
    """Make `path` another name of a file that exists, unless it exists already.

    Returns:
        False if something is there already; it is left as it is.

    Raises:
        OSError: the file system cannot link the two.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), path)  # of a link its target: the name must be of a regular file
    except FileExistsError:
        return False
    _sync_folder(path.parent)
    return True


def sweep(folder: Path) -> list[Path]:
    """Remove temporary files whose writer is gone; returns what was removed."""
    swept = leftovers(folder)
    for path in swept:
        path.unlink(missing_ok=True)
    return swept


def leftovers(folder: Path) -> list[Path]:
    """Temporary files whose writer is gone."""
    found = []
    host = socket.gethostname()
    # os.walk and not rglob: another builder may remove a folder while it is read.
    for path in sorted(Path(root, n) for root, _, names in os.walk(folder) for n in names):
        if not path.name.startswith(TEMPORARY):
            continue
        writer = _WRITER.match(path.name)
        try:
            if writer is not None and writer[1] == host:
                dead = not alive(int(writer[2]))
            else:
                dead = time.time() - path.lstat().st_mtime > STALE_SECONDS
        except FileNotFoundError:
            continue  # its writer has just removed it
        if dead:
            found.append(path)
    return found


def alive(pid: int) -> bool:
    """Whether another process of this host lives."""
    if pid == os.getpid():
        return False  # our own earlier life: a container restarts with the same pid
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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
    with _explained(path):
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
