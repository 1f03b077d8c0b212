"""How a file appears whole and durable, or not at all.

The flow: a temporary file beside the final name -> fsync -> read back and compare -> the final name, by
create-if-absent (a hard link) or in the place of what is there -> fsync of the folder. A process that dies at any step
leaves at worst a temporary file, whose name says which process that was: the next run removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from softlabels.core.processes import SPELLING, Process, is_alive, this_process
from softlabels.errors import IntegrityError, SoftLabelsError, StoreError

TEMPORARY = ".tmp-"
_OURS = re.compile(
    re.escape(TEMPORARY)
    + rf"(?:(?P<process>{SPELLING})|(?P<host>.+?)-(?P<pid>[0-9]{{1,7}}))-[0-9a-f]{{8}}-.",
    re.DOTALL,
)
"""Host and pid alone are what names held before they told boots and namespaces apart. A host's own name may end in `-`
and digits."""
_OS_ERROR = re.compile(r"\(os error ([0-9]{1,4})\)|unable to (?:open|mmap|stat) .*\(([0-9]{1,4})\)")
_WAYS_OUT = {
    errno.ENOSPC: "the disk is full: free space",
    errno.EDQUOT: "your quota is used up: free space",
    errno.EFBIG: "a file may not be as large here: raise the limit (ulimit -f), or choose another --out",
    errno.EROFS: "the file system is read-only: choose another --out",
    errno.EACCES: "permission denied: check the owner of the folder",
    errno.EPERM: "not permitted here (does the file system support hard links?): choose another --out",
    errno.EOPNOTSUPP: "the file system has no hard links: choose another --out",
    errno.EEXIST: "what has this name already is no folder (a link to nowhere?): choose another --out",
    errno.ENOTDIR: "a folder of this path is a file: choose another --out",
    errno.EISDIR: "is a folder, where a file belongs: move it away",
    errno.ENAMETOOLONG: "the name is too long here: choose another --out",
}
_NAME_LENGTH = 32
"""Characters of the final name that the temporary one shows: names have an end."""
STALE_SECONDS = 24 * 3600.0
"""A temporary file whose process cannot be looked at from here is swept after this long."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a failing system call into a `StoreError` that is a sentence about `path`."""
    try:
        yield
    except Exception as e:
        if isinstance(e, SoftLabelsError) or (number := error_number(e)) is None:
            raise
        raise StoreError(sentence(str(path), number, e)) from e


def sentence(what: str, number: int, error: BaseException) -> str:
    """What a system call that failed on `what` means, and the way out; `number` is the error's `error_number`."""
    way_out = _WAYS_OUT.get(number, os.strerror(number) if number else str(error))
    again = "then run the same command again (a training run: with --resume)"
    return f"{what}: {way_out}, {again}; what is finished is kept"


def error_number(error: BaseException) -> int | None:
    """The errno of a failed system call, 0 where it is not told; None: the error is of another kind.

    Libraries written in Rust (safetensors, tokenizers, obstore), and torch, raise errors of their own that tell it in
    words.
    """
    if isinstance(error, OSError):
        return error.errno or 0
    match = _OS_ERROR.search(str(error)) if isinstance(error, Exception) else None
    return None if match is None else int(match[1] or match[2])


# -- folders --------------------------------------------------------------------------------------


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless they are there; each new one is durable in its parent."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


@contextmanager
def alone(folder: Path, *, taken: str | None = None) -> Iterator[None]:
    """Hold a folder's lock; where another process or thread has it, wait for it, or say that it is `taken`.

    The lock is on the folder itself, so that no file is left. Some network file systems have none on folders; there
    whoever is alone must make sure of it otherwise.

    Raises:
        StoreError: the folder cannot be opened, or its lock is taken.
    """
    with explained(folder):
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if taken else 0))
        except BlockingIOError as e:
            raise StoreError(f"{folder}: {taken}") from e
        except OSError:
            pass  # not lockable there
        yield
    finally:
        os.close(handle)


# -- files ----------------------------------------------------------------------------------------


def publish(path: Path, data: bytes) -> bool:
    """Make `path` hold `data`, whole and durable, unless it exists already.

    Returns:
        False if something is there already; it is left as it is.

    Raises:
        StoreError: the disk is full, read-only, …: says which, and that nothing is lost.
        IntegrityError: what was read back is not what was written.
    """
    with explained(path), _written(path, data) as temporary:
        return _linked(path, temporary)


def publish_link(path: Path, source: Path) -> bool:
    """Make `path` another name of a file that exists, unless it exists already.

    Returns:
        False if something is there already; it is left as it is.

    Raises:
        OSError: the file system cannot link the two.
    """
    make_folder(path.parent)
    return _linked(
        path, source.resolve()
    )  # of a link its target: the name must be of a regular file


def _linked(path: Path, source: Path) -> bool:
    try:
        os.link(source, path)
        made = True
    except FileExistsError:
        made = False  # but it may not be durable yet, and is built upon from now on
    sync_folder(path.parent)
    return made


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A temporary file to be written piece by piece; it becomes `path`, durable, unless an error is raised within.

    Raises:
        StoreError: the disk is full, read-only, …; or `path` is there, and stays as it is.
    """
    with explained(path):
        make_folder(path.parent)
        forget_attempts(path)
        temporary = temporary_beside(path)
        try:
            yield temporary
            with temporary.open("rb") as f:
                os.fsync(f.fileno())
            if not _linked(path, temporary):
                raise StoreError(f"{path}: is there already; choose another")
        finally:
            temporary.unlink(missing_ok=True)


def replace(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, in one step and durable, whatever was there; of a link the link is replaced.

    Only for a file that a record of ours says is ours, looked at just before: the manifest whose content stays, what
    is made from it (card, `croissant.json`), its signature, and the files of a run that holds its folder's lock.
    Never for a shard, a plan or a commit record, which are never written again, and never for a path that only a
    user named: `publish` leaves that alone.

    Raises:
        StoreError: the disk is full, read-only, …: says which, and that nothing is lost.
        IntegrityError: what was read back is not what was written.
    """
    with explained(path):
        forget_attempts(path)
    with explained(path), _written(path, data) as temporary:
        temporary.replace(path)
        sync_folder(path.parent)


@contextmanager
def _written(path: Path, data: bytes) -> Iterator[Path]:
    """A temporary file beside `path` that holds `data`, durable and read back; it is gone afterwards."""
    make_folder(path.parent)
    temporary = temporary_beside(path)
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


# -- temporary files ------------------------------------------------------------------------------


def temporary_beside(path: Path) -> Path:
    """A name in the folder of `path` that no other file has, and that says which process makes it."""
    return path.parent / f"{TEMPORARY}{this_process()}-{token_hex(4)}-{_shown(path)}"


def is_temporary(name: str) -> bool:
    """Whether a file's name is one that `temporary_beside` gives; other programs have temporary files, too."""
    return _OURS.match(name) is not None


def sweep(folder: Path) -> list[Path]:
    """Remove our temporary files whose process is gone, here and below; returns what was removed.

    Only for a folder that is known to be ours.
    """
    swept = leftovers(folder)
    for path in swept:
        path.unlink(missing_ok=True)
    return swept


def leftovers(folder: Path) -> list[Path]:
    """Our temporary files whose process is gone, here and below; `StoreError` if a folder cannot be listed."""
    with explained(folder):
        ours = (Path(at, n) for at, _, names in walk(folder) for n in names if is_temporary(n))
        paths = sorted(ours)
    return [path for path in paths if is_left(path)]


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk`, to which what cannot be listed is an error and not empty."""

    def unlisted(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # another builder may remove it meanwhile
            raise error

    return os.walk(folder, onerror=unlisted)


def earlier_attempts(path: Path) -> list[Path]:
    """What processes of ours left of `path` when they died: their temporary files or folders for this very name."""
    beside = path.parent.glob(f"{TEMPORARY}*")
    return [p for p in beside if p.name.endswith(f"-{_shown(path)}") and is_left(p)]


def forget_attempts(path: Path) -> None:
    """Remove the files of `earlier_attempts`."""
    for attempt in earlier_attempts(path):
        if attempt.is_file():
            attempt.unlink(missing_ok=True)


def _shown(path: Path) -> str:
    return path.name[-_NAME_LENGTH:]


def is_left(path: Path) -> bool:
    """Whether a file or folder has a temporary name of ours whose process is gone."""
    process = _process_of(path.name)
    if process is None:
        return False
    alive = is_alive(process)
    try:
        if alive is None:
            # A time far in the future says as little of a living process as one long ago.
            alive = abs(time.time() - path.lstat().st_mtime) <= STALE_SECONDS
    except FileNotFoundError:
        return False  # its writer has just removed it
    return not alive


def _process_of(name: str) -> Process | None:
    """The process that a temporary file's name says; None: the name is not of ours."""
    if (match := _OURS.match(name)) is None:
        return None
    if match["process"] is not None:
        return Process.parse(match["process"])
    return Process(host=match["host"], pid=int(match["pid"]))
