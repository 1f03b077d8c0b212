"""From the name of a file in a folder to a path that may be written.

A folder may come from elsewhere, links and all: its `keys` may lead into `~/.ssh`, and a link with the name of a file
that is on its way may lead to any other. So what is made, replaced, moved or removed below a folder is found by
`inside`, which goes through no link, and what is appended to is opened by `open_part`. The folder itself may be reached
through links: its user named it.

The price: a look at each folder on the way, for each file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from softlabels.core.durable import explained
from softlabels.core.folder_record import is_plain
from softlabels.errors import IntegrityError, StoreError


def inside(root: Path, name: str) -> Path:
    """The path of a file of a folder, to be made, replaced, moved or removed.

    Args:
        root: the folder.
        name: in it, with `/` between its parts.

    Raises:
        IntegrityError: it is no such name.
        StoreError: a folder on the way is a link.
    """
    if not is_plain(name):
        raise IntegrityError(f"{root}: {name!r} is not the name of a file in it; choose another")
    path = root
    *folders, last = name.split("/")
    for part in folders:
        path /= part
        if _is_link(path):
            raise StoreError(
                f"{path}: is a link, and through it nothing of {root} is written, moved or removed; put a real folder "
                "in its place, or choose another folder"
            )
    return path / last


def refuse_links(root: Path, names: Iterable[str]) -> None:
    """Refuse, as `inside`, names of which one would lead through a link: before the first is written."""
    one_of_each = {name.rpartition("/")[0]: name for name in names}
    for name in sorted(one_of_each.values()):
        inside(root, name)


def open_part(path: Path) -> BinaryIO:
    """A file that is appended to until it is whole, by one process after another; made unless it is there.

    Raises:
        StoreError: what is there is a link, no regular file, or has a second name: its bytes are somebody else's.
    """
    if _is_link(path):
        raise _foreign(path, "is a link")
    return open(path, "a+b", opener=_opened)


def _opened(name: str, flags: int) -> int:
    """Open a file by no other name than its own."""
    path = Path(name)
    try:
        handle = os.open(
            path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666
        )  # not all systems have it
    except OSError as e:
        if e.errno == errno.ELOOP:
            raise _foreign(path, "is a link") from e
        raise
    found = os.fstat(handle)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
        return handle
    os.close(handle)
    regular = stat.S_ISREG(found.st_mode)
    raise _foreign(path, "has a second name" if regular else "is no regular file")


def _foreign(path: Path, what: str) -> StoreError:
    return StoreError(
        f"{path}: {what}, so nothing is appended to it; move it away, and run the same command again"
    )


def _is_link(path: Path) -> bool:
    with explained(path):
        try:
            return stat.S_ISLNK(path.lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
