"""A disk in memory: what a folder holds after each call of a trace, and what it may hold after the power has failed.

The model knows only what POSIX promises, and takes the worst of it:
- bytes of a file are safe once the file was synced; until then any of them may be missing, or zero;
- an entry of a folder (a new name, a rename, a removal) is safe once that folder was synced; until then each may have
  reached the disk or not, in any order, whatever is safe of the file that it names. A rename is one step.
So a file that was synced is lost, if the folder that was made for it was not synced into its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tests.faults.trace import Call, Kind

__all__ = ["Disk", "Loss", "write_tree"]

Tree = dict[str, bytes | None]
"""Content by relative name; None: an empty folder."""


@dataclass(eq=False)
class _File:
    data: bytes
    safe: bytes = b""


@dataclass(eq=False)
class _Folder:
    entries: dict[str, _File | _Folder] = field(default_factory=dict)
    safe: dict[str, _File | _Folder] = field(default_factory=dict)
    pending: list[_Step] = field(default_factory=list)


@dataclass(eq=False)
class _Step:
    """Entries that change together: `(folder, name, what)`; None: it goes."""

    changes: list[tuple[_Folder, str, _File | _Folder | None]]


@dataclass(frozen=True)
class Loss:
    """What the power failure takes."""

    name: str
    names: float
    """Share of the pending entries that reached the disk."""
    data: str
    """Of pending bytes: `lost`, `zero`, `half`, `kept` or `any`."""
    seed: int = 0


LOSSES = (
    Loss("everything", 0.0, "lost"),
    Loss("bytes, not names", 1.0, "lost"),
    Loss("bytes, not sizes and names", 1.0, "zero"),
    Loss("half of the bytes", 1.0, "half"),
    Loss("names, not bytes", 0.0, "kept"),
)


class Disk:
    """A folder, from its first content on."""

    def __init__(self, tree: Mapping[str, bytes | None]) -> None:
        self._root = _Folder()
        self._inodes: dict[int, str] = {}
        """Names under which files were created."""
        for name, data in tree.items():
            *parents, last = PurePosixPath(name).parts
            at = self._root
            for parent in parents:
                found = at.entries.setdefault(parent, _Folder())
                assert isinstance(found, _Folder)
                at.safe[parent] = found
                at = found
            at.entries[last] = at.safe[last] = (
                _Folder() if data is None else _File(bytes(data), bytes(data))
            )

    def play(self, call: Call) -> None:
        """Take one call of a trace into account."""
        if not call.done or call.kind is Kind.MARKED or call.path.endswith(" (deleted)"):
            return
        if call.kind in (Kind.WRITE, Kind.SYNC, Kind.ATTRIBUTES, Kind.TRUNCATE):
            self.renamed(call.path, call.inode)
        match call.kind:
            case Kind.CREATE:
                self._step((call.path, _File(b"")))
                self._inodes[call.inode] = call.path
            case Kind.MKDIR:
                self._step((call.path, _Folder()))
            case Kind.SYMLINK:
                raise AssertionError(f"{call.path}: the model knows no links")
            case Kind.TRUNCATE:
                file = self._file(call.path)
                file.data = file.data[: call.offset].ljust(call.offset, b"\0")
            case Kind.WRITE:
                file = self._file(call.path)
                end = call.offset + len(call.data)
                before = file.data[: call.offset].ljust(call.offset, b"\0")
                file.data = before + call.data + file.data[end:]
            case Kind.SYNC:
                self._sync(self._find(call.path))
            case Kind.LINK:
                self._step((call.second, self._find(call.path)))
            case Kind.RENAME:
                self._step((call.path, None), (call.second, self._find(call.path)))
            case Kind.UNLINK | Kind.RMDIR:
                self._step((call.path, None))
            case _:
                pass

    def renamed(self, name: str, inode: int) -> None:
        """A file is seen under a name; if it was not there, it was renamed behind the trace's back."""
        if name == "." or self._has(name):
            return
        before = self._inodes.get(inode)
        assert before is not None, f"{name}: nobody created it"
        self._step((before, None), (name, self._find(before)))

    def _has(self, name: str) -> bool:
        try:
            self._find(name)
        except (KeyError, AssertionError):
            return False
        return True

    def _step(self, *changes: tuple[str, _File | _Folder | None]) -> None:
        step = _Step([])
        for name, what in changes:
            if name.startswith(".."):
                continue  # out of the folder, or into it
            path = PurePosixPath(name)
            folder = self._find(path.parent.as_posix())
            assert isinstance(folder, _Folder), name
            step.changes.append((folder, path.name, what))
        for folder, name, what in step.changes:
            _put(folder.entries, name, what)
            if step not in folder.pending:
                folder.pending.append(step)

    def _sync(self, what: _File | _Folder) -> None:
        if isinstance(what, _File):
            what.safe = what.data
            return
        for step in list(what.pending):  # all of a rename is safe when one of its folders is
            for folder, name, entry in step.changes:
                _put(folder.safe, name, entry)
                if step in folder.pending:
                    folder.pending.remove(step)

    def _find(self, name: str) -> _File | _Folder:
        at: _File | _Folder = self._root
        for part in PurePosixPath(name).parts:
            assert isinstance(at, _Folder), name
            at = at.entries[part]
        return at

    def _file(self, name: str) -> _File:
        found = self._find(name)
        assert isinstance(found, _File), name
        return found

    def content(self, name: str) -> bytes | None:
        """Of a file, now; None: there is none."""
        try:
            found = self._find(name)
        except (KeyError, AssertionError):
            return None
        return found.data if isinstance(found, _File) else None

    def below(self, name: str) -> list[str]:
        """The files at or below a name, now."""
        try:
            found = self._find(name)
        except (KeyError, AssertionError):
            return []
        if isinstance(found, _File):
            return [name]
        return [PurePosixPath(name, rest).as_posix() for rest, d in _walk(found) if d is not None]

    def tree(self) -> Tree:
        """All that is there now."""
        return dict(_walk(self._root))

    def after(self, loss: Loss) -> Tree:
        """What is there when the power comes back."""
        rng = random.Random(loss.seed)
        chosen: dict[int, bool] = {}

        def reached(step: _Step) -> bool:
            return chosen.setdefault(id(step), rng.random() < loss.names)

        def content(file: _File) -> bytes:
            return _content(file, loss.data if loss.data != "any" else rng.choice(_HOW))

        def walk(folder: _Folder, prefix: str) -> Iterator[tuple[str, bytes | None]]:
            entries = dict(folder.safe)
            for step in folder.pending:
                if reached(step):
                    for changed, name, what in step.changes:
                        if changed is folder:
                            _put(entries, name, what)
            if not entries and prefix:
                yield prefix, None
            for name, what in sorted(entries.items()):
                path = f"{prefix}/{name}" if prefix else name
                if isinstance(what, _File):
                    yield path, content(what)
                else:
                    yield from walk(what, path)

        return dict(walk(self._root, ""))


_HOW = ("lost", "zero", "half", "kept")


def _content(file: _File, how: str) -> bytes:
    if how == "kept" or file.data == file.safe:
        return file.data
    if how == "lost":
        return file.safe
    if how == "zero":  # sizes are safe, bytes are not
        return file.safe[: len(file.data)].ljust(len(file.data), b"\0")
    kept = len(file.safe) if file.data.startswith(file.safe) else 0  # what is appended to stays
    return file.data[: kept + (len(file.data) - kept + 1) // 2]


def _put(entries: dict[str, _File | _Folder], name: str, what: _File | _Folder | None) -> None:
    if what is None:
        entries.pop(name, None)
    else:
        entries[name] = what


def _walk(folder: _Folder, prefix: str = "") -> Iterator[tuple[str, bytes | None]]:
    if not folder.entries and prefix:
        yield prefix, None
    for name, what in sorted(folder.entries.items()):
        path = f"{prefix}/{name}" if prefix else name
        if isinstance(what, _File):
            yield path, what.data
        else:
            yield from _walk(what, path)


def read_tree(root: Path) -> Tree:
    """A folder on the real disk."""
    found: Tree = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            if not any(path.iterdir()):
                found[name] = None
        else:
            found[name] = path.read_bytes()
    return found


def write_tree(root: Path, tree: Mapping[str, bytes | None]) -> None:
    """Put it on the real disk."""
    for name, data in tree.items():
        path = root / name
        if data is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def random_losses(count: int, seed: int) -> Iterable[Loss]:
    """So many that take an arbitrary part."""
    return [Loss(f"random {seed + i}", 0.5, "any", seed + i) for i in range(count)]
