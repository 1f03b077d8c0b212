"""Which process this is, and whether another one still lives.

A process is named by its host, the boot of that host, its pid namespace, its pid and the time it was started. A host's
name and a pid are not enough: two containers on one host may share its name and see different processes under one
pid, and a pid is used again. A process of another host, another boot or another namespace cannot be looked at from
here, and neither can one whose name does not say all of that: whoever asks must judge it by age.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_LINUX = sys.platform.startswith("linux")
_PROC = Path("/proc")
_HOST_LENGTH = 64
SPELLING = r".+?-[0-9a-f]{0,12}\.[0-9]{0,12}\.[0-9]{1,10}\.[0-9]{0,20}"
"""Matches what `str` of a process gives."""
_ENDED = {b"Z", b"X"}
"""States of /proc/PID/stat: ended, though nobody has asked for its exit status yet."""


@dataclass(frozen=True)
class Process:
    """One process, told from all others; an empty field is not known."""

    host: str
    pid: int
    boot: str = ""
    """The first hex digits of the host's boot id: another after each start of the host."""
    space: str = ""
    """Number of the pid namespace: containers on one host have each their own."""
    started: str = ""
    """When the process was started, in clock ticks since boot: a pid that is used again has another."""

    def __str__(self) -> str:
        """The spelling for a file's name; `parse` reads it."""
        return f"{self.host}-{self.boot}.{self.space}.{self.pid}.{self.started}"

    @classmethod
    def parse(cls, text: str) -> Process | None:
        """The process that `str` spelled; None: it spelled none."""
        if re.fullmatch(SPELLING, text, re.DOTALL) is None:
            return None
        host, _, rest = text.rpartition("-")
        boot, space, pid, started = rest.split(".")
        return cls(host=host, pid=int(pid), boot=boot, space=space, started=started)


def this_process() -> Process:
    """This process; after a fork the child is another."""
    return _named(os.getpid())


@lru_cache(maxsize=4)
def _named(pid: int) -> Process:
    host = re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname())[:_HOST_LENGTH] or "unnamed"
    return Process(host=host, pid=pid, boot=_boot(), space=_space(), started=_stat(pid)[1])


def is_alive(process: Process) -> bool | None:
    """Whether a process lives; None: that cannot be told from here, so that only its age counts."""
    me = this_process()
    if (process.host, process.boot, process.space) != (me.host, me.boot, me.space):
        return None
    if _LINUX and not (me.boot and me.space):
        return None  # here or there, the namespace is not known
    if process.pid <= 0:
        return None  # no process, but a group of them, to who would ask
    try:
        os.kill(process.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    state, started = _stat(process.pid)
    if state in _ENDED:
        return False
    return not (process.started and started and process.started != started)


def _boot() -> str:
    try:
        text = (_PROC / "sys/kernel/random/boot_id").read_text("ascii")
    except (OSError, ValueError):
        return ""
    return re.sub(r"[^0-9a-f]", "", text)[:12]


def _space() -> str:
    """Of this process; empty where /proc shows the processes of another namespace, or is not there."""
    try:
        if (_PROC / "self").readlink().name != str(os.getpid()):
            return ""
        match = re.fullmatch(r"pid:\[(\d{1,12})\]", str((_PROC / "self/ns/pid").readlink()))
    except OSError:
        return ""
    return match[1] if match else ""


def _stat(pid: int) -> tuple[bytes, str]:
    """State and start time of a process, fields 3 and 22 of /proc/PID/stat; empty where they are not shown."""
    try:  # the name, field 2, may hold spaces and brackets
        fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        return fields[0], str(int(fields[19]))
    except (OSError, IndexError, ValueError):
        return b"", ""
