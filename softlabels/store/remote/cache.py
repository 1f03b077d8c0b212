"""Files of remote stores, kept on this machine: one folder for all stores and processes, with a size limit.

A file lies there under its sha256, so that stores which share a shard share its copy. One that is on its way is
`SHA256.BYTES.part`. Whoever writes a file holds an exclusive lock on it (flock), whoever is about to read it a
shared one, and the kernel frees both when a process dies. Room is made by removing what was used longest ago and
nobody has locked; every file of the cache, and what is still to come of parts, counts. A part that a dead process left
is gone on with, or removed like any other file.

Files of the cache are regular files with such names, in a folder with our `lock`, an empty file that comes before them.
Whatever else lies there neither counts nor goes; in a folder without a `lock`, such names are those of another's
(blobs of a hub, say), and the folder is refused.

Bytes are compared with their digest whenever they are read, by the reader: the cache is trusted with nothing.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from softlabels.core.durable import sync_folder
from softlabels.core.inside import open_part
from softlabels.errors import ConfigError, IntegrityError, StoreError

GIB = 2**30
DEFAULT_GIB = 32.0
FOLDER, LIMIT = "SOFTLABELS_CACHE", "SOFTLABELS_CACHE_GIB"
"""Environment variables."""
LOCK = "lock"
"""Name of the empty file that is locked by who makes room, and says that the folder is a cache."""
_NAME = re.compile(r"[0-9a-f]{64}(?:\.([0-9]{1,18})\.part)?")
"""Of a file, or of one that is on its way."""
POLL = 0.05
"""Seconds between two looks at a file that another thread or process is fetching."""


class Cancelled(Exception):
    """A fetch that nobody needs any more."""


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Where files of remote stores are kept."""

    folder: str | None = None
    """Default: the environment variable SOFTLABELS_CACHE, or the user's cache folder."""
    gib: float | None = None
    """GiB at most; 0 keeps nothing. Default: SOFTLABELS_CACHE_GIB, or 32."""

    def resolved(self) -> tuple[Path, int]:
        """Folder and limit in bytes; `ConfigError` if the limit is no such number."""
        folder = self.folder or os.environ.get(FOLDER)
        if not folder:
            from platformdirs import user_cache_path

            folder = str(user_cache_path("softlabels", appauthor=False) / "files")
        gib = self.gib
        if gib is None and (text := os.environ.get(LIMIT)):
            try:
                gib = float(text)
            except ValueError as e:
                raise ConfigError(f"{LIMIT}={text}: expected a number of GiB") from e
        gib = DEFAULT_GIB if gib is None else gib
        if not 0 <= gib < 2**23:
            raise ConfigError(f"--cache-gib {gib:g}: expected a number of GiB, 0 or more")
        return Path(folder), int(gib * GIB)


class FileCache:
    """A folder of files by their sha256, `limit` bytes at most. Shared between threads and processes."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    def hold(
        self,
        sha256: str,
        size: int,
        fetch: Callable[[BinaryIO, int], None],
        stop: threading.Event,
        *,
        where: object,
    ) -> BinaryIO | None:
        """A file, open at its beginning; until it is closed it is not removed. None: there is no room for it.

        Args:
            fetch: called with a file and how many bytes are there; it appends the others.
            stop: when it is set, waiting ends.

        Raises:
            IntegrityError: what was fetched is not what was asked for.
            Cancelled: `stop` was set.
            StoreError: the folder cannot be written, or is another's.
        """
        if size > self.limit:
            return None
        with self._explained():
            self._refuse_others()
            while True:
                held = self._open(sha256, size)
                if held is not None:
                    return held
                with self._alone():
                    if self._path(sha256).exists():  # finished meanwhile
                        continue
                    part = self._begin(sha256, size)
                if part is None:
                    return None
                try:
                    if _locked(part, stop):
                        complete(part, sha256, size, fetch, where)
                        with self._alone():  # who counts sees it under one name
                            Path(part.name).rename(self._path(sha256))
                        fcntl.flock(part, fcntl.LOCK_SH)
                        part.seek(0)
                        return part
                except BaseException:
                    part.close()
                    raise
                part.close()  # another one has finished or removed it

    def drop(self, sha256: str) -> None:
        """Remove a file that was found damaged."""
        with self._explained():
            self._refuse_others()
            self._path(sha256).unlink(missing_ok=True)

    def bytes(self) -> int:
        """Of all files, with what is still to come of those on their way."""
        return sum(size for _, size, _ in self._entries())

    # -- one file ---------------------------------------------------------------------------------

    def _path(self, sha256: str) -> Path:
        return self.folder / sha256

    def _open(self, sha256: str, size: int) -> BinaryIO | None:
        path = self._path(sha256)
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise StoreError(
                    f"{path}: is no file of the cache's; move it away, or choose another folder with --cache"
                )
            file = path.open("rb")
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        found = os.fstat(file.fileno())
        if found.st_nlink and found.st_size == size:
            os.utime(path)  # used last now
            return file
        if found.st_nlink:  # torn by a crash of the machine
            path.unlink(missing_ok=True)
        file.close()
        return None

    def _begin(self, sha256: str, size: int) -> BinaryIO | None:
        """A new part, or the one begun earlier; None: there is no room for it. The cache is locked."""
        path = self.folder / f"{sha256}.{size}.part"
        if not path.exists() and not self._make_room(size):
            return None
        return open_part(path)

    # -- all files --------------------------------------------------------------------------------

    def _make_room(self, size: int) -> bool:
        """Remove files until `size` bytes more fit; the cache is locked."""
        entries = sorted(self._entries())
        total = sum(entry[1] for entry in entries)
        for _, bytes_, path in entries:
            if total + size <= self.limit:
                break
            total -= bytes_ if _remove_unused(path) else 0
        return total + size <= self.limit

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """When it was last used, its bytes, and the file: of each that is the cache's."""
        with os.scandir(self.folder) as found:
            for entry in found:
                if (name := _NAME.fullmatch(entry.name)) is None:
                    continue
                try:
                    about = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(about.st_mode):
                    size = about.st_size if name[1] is None else int(name[1])
                    yield about.st_mtime, size, Path(entry.path)

    def _begun(self) -> bool:
        """Whether our lock says that the folder is a cache."""
        path = self.folder / LOCK
        try:
            found = path.lstat()
        except FileNotFoundError:
            return False
        if stat.S_ISREG(found.st_mode) and not found.st_size:
            return True
        raise StoreError(
            f"{path}: is not the empty file of that name which a cache has; choose another folder with --cache"
        )

    def _refuse_others(self) -> None:
        """Refuse a folder of files that are named like the cache's, and of which nothing says that they are."""
        if self._begun() or not self.folder.exists():
            return
        other = next(self._entries(), None)
        if other is not None and not self._begun():  # unless another process has begun it meanwhile
            raise StoreError(
                f"{other[2]}: is named like a file of the cache, and the folder has no `{LOCK}`, so it may be another "
                f"program's; choose another folder with --cache (if it was a cache, make an empty file `{LOCK}` in it)"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else makes room meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        begun = self._begun()
        with (self.folder / LOCK).open("ab") as lock:
            if not begun:
                sync_folder(self.folder)  # no file is to be there without it
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn a failing system call into a sentence."""
        try:
            yield
        except OSError as e:
            if isinstance(e, StoreError):
                raise
            full = e.errno in (errno.ENOSPC, errno.EDQUOT)
            way_out = (
                "the disk is full: free space, or set --cache-gib lower"
                if full
                else f"{e.strerror or e}: choose another folder with --cache"
            )
            raise StoreError(f"{self.folder}: the cache cannot be used; {way_out}") from e


def complete(
    part: BinaryIO,
    sha256: str,
    size: int,
    fetch: Callable[[BinaryIO, int], None],
    where: object,
) -> None:
    """Fetch what is missing of a file that may have been begun, by an earlier process too, and check all of it.

    Raises:
        IntegrityError: it is not what was asked for, and is gone.
    """
    for attempt in range(2):
        begun = part.seek(0, os.SEEK_END)
        if begun > size or attempt:
            part.truncate(0)
            begun = 0
        fetch(part, begun)
        part.flush()
        part.seek(0)
        found = hashlib.file_digest(part, "sha256").hexdigest()  # type: ignore[arg-type]
        if found == sha256:
            return
        if not begun:  # not the fault of what an earlier process left
            break
    Path(part.name).unlink(missing_ok=True)
    raise IntegrityError(
        f"{where}: sha256 is {found}, the record says {sha256}: altered there, or on its way, so it was not kept; copy "
        "it to there again from its source"
    )


def _locked(part: BinaryIO, stop: threading.Event) -> bool:
    """Lock a part, if need be after another thread or process; False: it has another name by now, or none."""
    path = Path(part.name)
    while True:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            locked = False
        try:
            # Looked at with or without the lock: who finished it may hold it for reading as long as it likes.
            if not os.path.samestat(path.stat(), os.fstat(part.fileno())):
                return False
        except FileNotFoundError:
            return False
        if locked:
            return True
        if stop.wait(POLL):
            raise Cancelled


def _remove_unused(path: Path) -> bool:
    """Remove a file unless somebody has it locked."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (BlockingIOError, FileNotFoundError):
        return False
    return True
