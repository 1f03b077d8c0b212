"""Sealed folders: one that appears whole and durable, says of each file what it must be, and is removed only as ours.

The flow of publishing: a temporary folder beside the final name is filled -> its record is written, with size and
sha256 of each file -> fsync of every file and folder -> what lies under the final name already is moved to a hidden one
-> the new folder takes the final name, by one rename -> the old one is removed if its record proves every byte of it
ours, else it gets a name of its own, `NAME.kept-1`, and stays. A process that dies in between leaves the old folder
under its hidden name, and `mend_folders` puts it back.

A record proves a folder ours if each file in it is one that the record lists, with the recorded bytes. It is looked at
after the folder was moved, so that nobody changes it meanwhile, and then only the listed files are removed, each by its
name: never a tree.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from softlabels.core.durable import (
    earlier_attempts,
    explained,
    is_left,
    make_folder,
    sync_folder,
    temporary_beside,
)
from softlabels.core.folder_record import (
    FOLDER,
    RECORD,
    check_folder,
    compare,
    entries,
    is_folder,
    is_plain,
    read_record,
)
from softlabels.core.records import FileRecord
from softlabels.errors import FormatError, IntegrityError

GOING = ".going-"
"""Before the name of a folder that was moved out of the way and is removed next."""

Notice = Callable[[str], None]


@contextmanager
def filling(final: Path) -> Iterator[Path]:
    """A new folder beside `final`, to be filled and published; it is gone at the end unless it was.

    Raises:
        StoreError: the disk is full, read-only, …
    """
    with explained(final):
        make_folder(final.parent)
        for path in earlier_attempts(final):
            if is_folder(path):
                shutil.rmtree(path)
        temporary = temporary_beside(final)
        temporary.mkdir()
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def publish_folder(temporary: Path, final: Path, notice: Notice) -> None:
    """Make a filled folder appear under its final name, whole and durable.

    What is there is replaced if its record proves it ours, else moved aside.

    Raises:
        StoreError: the disk is full, read-only, …
    """
    with explained(final):
        _sync_tree(temporary)
        going = _move_away(final, notice)
        try:
            temporary.rename(final)
        except OSError:
            if _is_there(going):
                going.rename(final)  # it keeps its name, as nothing takes it
            raise
        sync_folder(final.parent)
        if _is_there(going):
            _remove(going, final.name, notice)


def remove_folder(folder: Path, notice: Notice) -> None:
    """Remove a folder if its record proves it ours, else move it aside; done again after a kill, it goes on."""
    with explained(folder):
        _remove(_move_away(folder, notice), folder.name, notice)


def mend_folders(parent: Path, notice: Notice) -> None:
    """Bring to an end what a process was doing with the folders in `parent` when it died.

    Only for whoever alone writes there, such as a run that holds its folder's lock.
    """
    with explained(parent):
        for going in sorted(parent.glob(f"{GOING}*")):
            final = parent / going.name.removeprefix(GOING)
            if not _is_there(final) and (_is_whole(going) or _proven(going) is None):
                going.rename(final)
                sync_folder(parent)
            else:
                _remove(going, final.name, notice)


def sweep_folders(parent: Path) -> None:
    """Remove the temporary folders in `parent` whose process is gone; only for a folder that is known to be ours."""
    with explained(parent):
        for path in sorted(parent.iterdir()):
            if is_folder(path) and is_left(path):
                shutil.rmtree(path)


def _move_away(folder: Path, notice: Notice) -> Path:
    """Give what lies under a name, if anything does, the hidden name that is returned."""
    going = folder.with_name(GOING + folder.name)
    if _is_there(going):
        _remove(going, folder.name, notice)
    if _is_there(folder):
        folder.rename(going)
        sync_folder(folder.parent)  # before another folder has its name
    return going


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _is_whole(folder: Path) -> bool:
    try:
        check_folder(folder)
    except (FileNotFoundError, FormatError, IntegrityError):
        return False
    return True


def _proven(folder: Path) -> list[str] | None:
    """The files of a folder, if each that is there is one that its record lists, with those bytes; else None.

    Raises:
        StoreError: that cannot be told now.
    """
    if not is_folder(folder):
        return None
    there = entries(folder)
    if not there:
        return []
    try:
        files = read_record(folder).files
    except (FileNotFoundError, FormatError, IntegrityError):
        return None
    if not all(map(is_plain, files)):
        return None
    others = ((name, path) for name, path in there.items() if name != RECORD)
    return list(files) if all(_is_listed(*other, files) for other in others) else None


def _is_listed(name: str, path: Path, files: Mapping[str, FileRecord]) -> bool:
    if is_folder(path):
        return any(listed.startswith(f"{name}/") for listed in files)
    if path.is_symlink() or name not in files:
        return False
    try:
        compare(path, files[name], FOLDER, contents=True)
    except IntegrityError:
        return False
    return True


def _remove(going: Path, name: str, notice: Notice) -> None:
    """Remove a folder that was moved out of the way: the listed files, the folders below, then the record.

    As long as anything is in it, its record says that it is ours.
    """
    files = _proven(going)
    if files is None:
        _keep_aside(going, name, notice)
        return
    for inner in files:
        (going / inner).unlink(missing_ok=True)
    inner_folders = {p for inner in files for p in (going / inner).parents if going in p.parents}
    try:
        for path in sorted(inner_folders, reverse=True):
            if path.exists():
                path.rmdir()
        sync_folder(going)  # or a power failure takes the record and gives a file back
        (going / RECORD).unlink(missing_ok=True)
        going.rmdir()
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _keep_aside(going, name, notice)  # a file has come meanwhile
        return
    sync_folder(going.parent)


def _keep_aside(folder: Path, name: str, notice: Notice) -> None:
    """Give a folder that is not proven ours a name of its own, beside that which it had."""
    n = 1
    while not _renamed(folder, kept := folder.with_name(f"{name}.kept-{n}")):
        n += 1
    sync_folder(folder.parent)
    notice(
        f"{folder.with_name(name)}: holds files that are not as they were written here; nothing of it was removed, "
        f"it is now {kept}"
    )


def _renamed(path: Path, to: Path) -> bool:
    """Give it a name that is free, or of an empty folder if it is a folder; False if the name is taken."""
    if not is_folder(path) and _is_there(to):
        return False
    try:
        path.rename(to)
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            with Path(root, name).open("rb") as f:
                os.fsync(f.fileno())
        sync_folder(Path(root))
