"""What of a file must be the same after a fault as without one: all but times, and what follows from them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlabels.core.folders import GOING

__all__ = [
    "File",
    "essence",
    "is_moved_away",
    "is_temporary",
    "lines_of",
    "look",
    "plain",
    "store_files",
]

TIMES = {
    *(
        "seconds",
        "tokens_per_second",
        "positions_per_second",
        "loader_wait",
        "peak_rss_mib",
        "elapsed",
    ),
    *(
        "cost",
        "created",
        "digest",
        "sig",
        "mtime",
        "seconds_per_row",
        "made",
        "versions",
        "run_sha256",
        "when",
    ),
}
"""Keys of JSON that tell a time, or a seal over one."""
MADE = ("README.md", "croissant.json")
"""Files of a store that are made from its manifest; they tell what the store cost."""
QUARANTINED = re.compile(r"(/quarantine/.+)\.[0-9a-f]{8}$")
"""A name that is a file's, and a random token."""
CLOCK = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|"
    r"\d[\d.,]* ?(?:s|ms|seconds?|minutes?|hours?|tokens/s|tokens a second|positions/s|MiB)\b|[0-9a-f]{12,64}"
)


@dataclass(frozen=True)
class File:
    """A file at one moment."""

    inode: int
    essence: str


def is_temporary(name: str) -> bool:
    """Whether the name is one of a file that is being written."""
    return any(part.startswith(".tmp-") for part in Path(name).parts)


def is_moved_away(name: str, files: Mapping[str, File]) -> bool:
    """Whether a file lies in its folder still, whose name another folder is about to take: `run --resume` goes on."""
    parts = Path(name).parts
    hidden = ([*parts[:i], GOING + parts[i], *parts[i + 1 :]] for i in range(len(parts) - 1))
    return any("/".join(path) in files for path in hidden)


def look(root: Path) -> dict[str, File]:
    """All files of a folder, by their relative names; folders that hold none, too."""
    found = {}
    for folder, folders, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            relative = plain(path.relative_to(root).as_posix())
            found[relative] = File(path.lstat().st_ino, essence(relative, path.read_bytes()))
        if not names and not folders and Path(folder) != root:
            found[Path(folder).relative_to(root).as_posix() + "/"] = File(0, "")
    return found


def plain(name: str) -> str:
    """A name without the random token of those in quarantine."""
    return QUARANTINED.sub(r"\1", name)


def essence(name: str, data: bytes) -> str:
    """A digest of what counts in a file."""
    try:
        if name.endswith(".json") or name.endswith(".sig"):
            return _hash(json.dumps(_without_times(json.loads(data)), sort_keys=True).encode())
        if name.endswith(".jsonl"):
            return " ".join(_lines(data))
        if name.endswith((".md", ".html")):
            text = data.decode()
            whole = "" if text.endswith("\n") or text.rstrip().endswith("</html>") else "torn "
            return whole + _hash(CLOCK.sub("", text).encode())
    except (ValueError, UnicodeDecodeError):
        return "torn " + _hash(data)
    return _hash(data)


TORN = "torn"


def lines_of(essence_of_log: str) -> list[str]:
    """The whole lines of a log, each by its digest."""
    return [line for line in essence_of_log.split() if line != TORN]


def _lines(data: bytes) -> list[str]:
    found = []
    for line in data.splitlines(keepends=True):
        try:
            assert line.endswith(b"\n")
            record = json.loads(line)
        except (AssertionError, ValueError):
            return [*found, TORN]
        found.append(_hash(json.dumps(_without_times(record)).encode())[:12])
    return found


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _file(k, _without_times(v)) for k, v in sorted(value.items()) if k not in TIMES}
    if isinstance(value, list):
        return [_without_times(v) for v in value]
    return value


def _file(name: str, value: Any) -> Any:
    """A record of a file that tells a time has a digest that does, too."""
    if name.rpartition("/")[2] in MADE:
        return "made"
    if name in ("payload", "manifest_digest", "whole") and isinstance(value, str):
        return "of times"
    return value


def store_files(folder: Path) -> dict[str, str]:
    """Essences by name."""
    return {name: file.essence for name, file in look(folder).items()}
