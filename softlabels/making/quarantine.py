"""`quarantine/`: where what lies at a name of a store's, and is not what the store put there, is moved.

Nothing is deleted but what is proven to be the store's own: a damaged shard may be a good file of somebody else's, or
be judged wrongly. A file is moved only while it is still the one that was judged, in three steps:
 1. it is looked at (`sighting`) before it is read;
 2. if the same file is still there, it is renamed, to a name that nobody else has;
 3. if what was renamed is another file (published between the two looks), it gets its name back.

The price: a damaged file keeps its bytes until somebody deletes the folder. No command of ours ever does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

from softlabels.core.durable import explained, make_folder, sync_folder
from softlabels.core.inside import inside

QUARANTINE = "quarantine"


class Sighting(NamedTuple):
    """Which file it was that was looked at: published files are never written to, so that these stay."""

    device: int
    inode: int
    bytes: int
    modified: int


def sighting(path: Path) -> Sighting | None:
    """Which file lies at a name now, of a link the link; None: there is none.

    Raises:
        StoreError: it cannot be looked at.
    """
    with explained(path):
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
    return Sighting(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def move_aside(store: Path, path: Path, seen: Sighting | None) -> Path | None:
    """Move a file of a store into its quarantine, if it is still the one that was seen.

    Returns:
        Where it is now; None: nothing was seen, or something else is there, which was left alone.

    Raises:
        StoreError: it cannot be moved, or a folder on the way to it is a link.
    """
    if seen is None or sighting(path) != seen:
        return None
    inside(store, path.relative_to(store).as_posix())
    aside = inside(store, f"{QUARANTINE}/{path.name}.{token_hex(4)}")
    with explained(path):
        make_folder(aside.parent)
        try:
            path.rename(aside)
        except FileNotFoundError:
            return None  # somebody else was faster
        if sighting(aside) != seen:
            # If a third file has its name by now, this one stays here.
            with suppress(FileExistsError):
                os.link(aside, path, follow_symlinks=False)
                aside.unlink()
            return None
        sync_folder(aside.parent)
        sync_folder(path.parent)
    return aside


def make_way(store: Path, path: Path, ours: Callable[[Path], bool]) -> Path | None:
    """Move what has a name aside, unless it is proven the store's own, which may be replaced.

    Args:
        ours: given the file; True: a record has these very bytes.

    Returns:
        Where it is now; None: nothing is there, or what is the store's own.

    Raises:
        StoreError: as `move_aside`.
    """
    seen = sighting(path)
    return None if seen is None or ours(path) else move_aside(store, path, seen)


def retract(
    store: Path, path: Path, seen: Sighting | None, ours: Callable[[Path], bool]
) -> Path | None:
    """Take a file out of a store: delete it if it is proven ours, else leave it in quarantine.

    Args:
        ours: given the file where nobody else changes it any more; True: the store's own bytes.

    Returns:
        What stays in quarantine; None: nothing.

    Raises:
        StoreError: as `move_aside`.
    """
    aside = move_aside(store, path, seen)
    if aside is None or not ours(aside):
        return aside
    with explained(aside):
        aside.unlink(missing_ok=True)
        with suppress(OSError):  # it holds something
            aside.parent.rmdir()
    return None


def quarantined(store: Path) -> list[str]:
    """Names of what was moved aside, within the store."""
    return sorted(f"{QUARANTINE}/{p.name}" for p in (store / QUARANTINE).glob("*"))
