"""The shim: compiled, given its orders, and its log read back."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

SOURCE = Path(__file__).with_name("shim.c")
MAGIC = 0x544C5546
_ENTRY = struct.Struct("<4I5q2IQ")


class Series(IntEnum):
    """What is numbered together."""

    CHANGING = 0
    LOOKING = 1
    MARK = 2


class Action(IntEnum):
    """What a call meets."""

    PASS = 0
    KILL = 1
    HALF = 2
    """Half of the bytes are written, and the process is killed."""
    SHORT = 3
    """Half of the bytes are written, and the caller is told so."""
    ONCE = 4
    FROM_NOW_ON = 5


class Kind(IntEnum):
    """What a call does; in the order of `shim.c`."""

    OPEN = 0
    CREATE = 1
    WRITE = 2
    TRUNCATE = 3
    SYNC = 4
    LINK = 5
    RENAME = 6
    UNLINK = 7
    MKDIR = 8
    RMDIR = 9
    SYMLINK = 10
    ATTRIBUTES = 11
    LOOK_OPEN = 12
    LOOK_READ = 13
    LOOK_STAT = 14
    LOOK_LIST = 15
    MARKED = 16


ROOMY = {Kind.CREATE, Kind.WRITE, Kind.LINK, Kind.RENAME, Kind.MKDIR, Kind.SYMLINK}
"""What a full disk refuses."""


@dataclass(frozen=True)
class Call:
    """One entry of the log."""

    series: Series
    kind: Kind
    fired: bool
    number: int
    """In its series, from 1; of a mark, that of the change before it."""
    result: int
    error: int
    inode: int
    offset: int
    path: str
    second: str
    data: bytes

    @property
    def done(self) -> bool:
        """Whether it did what it was asked for."""
        return self.result >= 0


@dataclass(frozen=True)
class Order:
    """What the shim is to do; as it is, only to take notes."""

    series: Series = Series.CHANGING
    at: int = 0
    action: Action = Action.PASS
    error: int = 0
    spared: str = ""
    """Folder, relative to the root, whose calls pass."""


def missing() -> str | None:
    """Why the shim cannot work here; None: it can."""
    if not sys.platform.startswith("linux"):
        return "needs Linux: LD_PRELOAD and /proc"
    if _compiler() is None:
        return "needs a C compiler: `cc` or `gcc` on PATH"
    return None


def _compiler() -> str | None:
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


@cache
def shim() -> Path:
    """The compiled library, in a folder of its own that lives as long as the process."""
    compiler = _compiler()
    assert compiler is not None, missing()
    library = Path(mkdtemp(prefix="softlabels-shim-")) / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", library, SOURCE, "-ldl", "-lpthread"], check=True)
    import atexit

    atexit.register(shutil.rmtree, library.parent, ignore_errors=True)
    return library


def arm(root: Path, log: Path, order: Order) -> None:
    """Give this process, which was started with the shim, its orders."""
    library = ctypes.CDLL(None)
    library.faults_arm.argtypes = (
        [ctypes.c_char_p] * 3 + [ctypes.c_int, ctypes.c_int64] + [ctypes.c_int] * 2
    )
    failed = library.faults_arm(
        os.fsencode(root),
        os.fsencode(root / order.spared if order.spared else ""),
        os.fsencode(log),
        *(order.series, order.at, order.action, order.error),
    )
    assert failed == 0, os.strerror(failed)


def disarm() -> None:
    """What this process does from now on is its own affair."""
    ctypes.CDLL(None).faults_disarm()


def mark(path: Path) -> None:
    """Note that `path` was said to be safe."""
    ctypes.CDLL(None).faults_mark(os.fsencode(path))


def read_log(log: Path, root: Path) -> list[Call]:
    """The calls, in the order in which they took effect; paths are relative to `root`."""
    data = log.read_bytes() if log.exists() else b""
    calls, at = [], 0
    while at < len(data):
        (magic, series, kind, fired, number, result, error, inode, offset, *sizes) = (
            _ENTRY.unpack_from(data, at)
        )
        assert magic == MAGIC, f"{log}: no entry at byte {at}"
        at += _ENTRY.size
        parts = []
        for size in sizes:
            parts.append(data[at : at + size])
            at += size
        path, second = (_relative(os.fsdecode(p), root) for p in parts[:2])
        calls.append(
            Call(
                Series(series),
                Kind(kind),
                bool(fired),
                number,
                result,
                error,
                inode,
                offset,
                path,
                second,
                parts[2],
            )
        )
    return calls


def _relative(path: str, root: Path) -> str:
    return os.path.relpath(path, root) if path else ""
