"""Where a store is made: six verbs, over a folder (here), a bucket (`store/remote/bucket.py`) or a simulated one.

A place holds two kinds of files. What is published (shards, records, the plan) is created once and never written to
again. What is held (`claims/`) changes hands: its content tells the holder, its version changes whenever the holder
renews it, and it is swapped only by somebody who has seen the version that is in force. That is all that any number of
builders need to share a store: `create` and `swap` have one winner.

A folder has no swap on condition, but it has one on creation, a hard link: so what is held lies there as generations,
`claims/00000007-0.json`, of which the highest is in force. Who swaps creates the next one, and a late one meets a name
that exists. Renewing sets the file's time. So in a folder a version that was renewed after it was seen can still be
swapped, which costs a shard's work and nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from softlabels.core.durable import explained, publish
from softlabels.core.inside import inside
from softlabels.core.records import read_file
from softlabels.errors import IntegrityError
from softlabels.format.files import Address

HELD = "claims"
"""The folder of what changes hands."""
PROBE = ".probe-"
"""How names begin that are there for a moment, to try a place out."""
TRIED = f"{HELD}/{PROBE[1:]}again.json"
"""The file by which a place is tried out in which a store was begun; it stays until the store is finished."""
PAGE = 1000
"""Files that one listing names, at most."""
_GENERATION = re.compile(r"(.+)-(\d{1,9})(\.[a-z]+)")


class Entry(NamedTuple):
    """A file, as a listing has it."""

    name: str
    """Within the place, `claims/00000007.json`."""
    version: str
    """Another after each change; nothing else is to be read from it."""
    bytes: int
    modified: float
    """When it was written or renewed, in seconds of the place's own clock: to be shown, and never decided by."""


class Place(Protocol):
    """Where a store is made."""

    @property
    def root(self) -> Path | Address:
        """`root / name` is what messages call a file."""

    def create(self, name: str, data: bytes) -> str | None:
        """Make a file, whole and durable or not at all: its version. None: there is one, which stays as it is."""

    def read(self, name: str, *, limit: int) -> tuple[bytes, str]:
        """A file and its version.

        Raises:
            FileNotFoundError: there is none.
            IntegrityError: it has more than `limit` bytes.
        """

    def list(self, folder: str, *, after: str = "") -> Sequence[Entry]:
        """The first `PAGE` files of a folder whose names come after a name, in order; fewer: there are no more.

        Args:
            folder: empty: all files of the place.
            after: need not be the name of a file.
        """

    def renew(self, name: str, data: bytes, version: str) -> str | None:
        """Show that the holder of a file lives: the new version. None: it is not of this version any more.

        Args:
            data: what it holds from now on, where content alone makes a version.
        """

    def swap(self, name: str, data: bytes, version: str) -> str | None:
        """Put another content into a held file, if it is still of a version: the new one. None: it is not."""

    def remove(self, *names: str) -> None:
        """Remove files; one that is not there is none to remove."""


def everything(place: Place, folder: str) -> Iterator[Entry]:
    """All files of a folder: a request for each page."""
    after = ""
    while page := place.list(folder, after=after):
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].name


def exists(place: Place, name: str) -> bool:
    """Whether there is a file, without its bytes: one listing."""
    folder = name.rpartition("/")[0]
    return any(e.name == name for e in place.list(folder, after=name[:-1]))


class FolderPlace:
    """A folder of this host, or one that several hosts share."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def root(self) -> Path:
        """The folder."""
        return self._root

    def create(self, name: str, data: bytes) -> str | None:
        """Make a file by a hard link."""
        inside(self._root, name)
        path = self._generation(name, 0) if _is_held(name) else self._root / name
        return _version(0, path) if publish(path, data) else None

    def read(self, name: str, *, limit: int) -> tuple[bytes, str]:
        """A file and its version."""
        path, generation = self._root / name, 0
        if _is_held(name):
            generation = self._in_force(name)
            path = self._generation(name, generation)
        version = _version(generation, path)
        if (size := path.stat().st_size) > limit:
            raise IntegrityError(f"{path}: {size} bytes, expected at most {limit}; refused unread")
        return read_file(path), version

    def list(self, folder: str, *, after: str = "") -> list[Entry]:
        """The first files of a folder whose names come after a name; of a held one its last generation."""
        found: dict[str, int] = {}
        with explained(self._root / folder):
            for name, generation in self._names(folder):
                if name > after:
                    found[name] = max(generation, found.get(name, 0))
            page = []
            for name, generation in sorted(found.items())[:PAGE]:
                path = self._generation(name, generation) if _is_held(name) else self._root / name
                with suppress(FileNotFoundError):  # removed this moment
                    seen = path.stat()
                    version = _version(generation, path)
                    page.append(Entry(name, version, seen.st_size, seen.st_mtime))
            return page

    def renew(self, name: str, data: bytes, version: str) -> str | None:
        """Set the file's time to the file system's present."""
        generation = _generation_of(version)
        path = self._generation(name, generation)
        with explained(path), suppress(FileNotFoundError):
            if self._in_force(name) == generation:
                os.utime(path)
                return _version(generation, path)
        return None

    def swap(self, name: str, data: bytes, version: str) -> str | None:
        """Create the next generation."""
        inside(self._root, name)
        path = self._generation(name, _generation_of(version) + 1)
        return _version(_generation_of(version) + 1, path) if publish(path, data) else None

    def remove(self, *names: str) -> None:
        """Remove files, of what is held the last generation last: it is in force until it is gone."""
        for name in names:
            paths = [inside(self._root, name)]
            if _is_held(name):
                held = (g for n, g in self._names(HELD) if n == name)
                paths = [self._generation(name, g) for g in sorted(held)]
            for path in paths:
                with explained(path):
                    path.unlink(missing_ok=True)

    def _generation(self, name: str, generation: int) -> Path:
        stem, dot, suffix = name.rpartition(".")
        return self._root / f"{stem}-{generation}{dot}{suffix}"

    def _in_force(self, name: str) -> int:
        """The last generation of what is held; `FileNotFoundError`: there is none."""
        held = [g for n, g in self._names(HELD) if n == name]
        if not held:
            raise FileNotFoundError(self._root / name)
        return max(held)

    def _names(self, folder: str) -> Sequence[tuple[str, int]]:
        if not folder:
            files = (p for p in self._root.rglob("*") if p.is_file())
            return [(p.relative_to(self._root).as_posix(), 0) for p in files]
        try:
            names = os.listdir(self._root / folder)  # noqa: PTH208  Path.iterdir gives paths; names are wanted
        except FileNotFoundError:
            return []
        if folder != HELD:
            return [(f"{folder}/{name}", 0) for name in names if not name.startswith(".")]
        matches = (_GENERATION.fullmatch(name) for name in names)
        return [(f"{HELD}/{m[1]}{m[3]}", int(m[2])) for m in matches if m is not None]


def _is_held(name: str) -> bool:
    return name.startswith(f"{HELD}/")


def _version(generation: int, path: Path) -> str:
    return f"{generation}.{path.stat().st_mtime_ns}"


def _generation_of(version: str) -> int:
    return int(version.partition(".")[0])
