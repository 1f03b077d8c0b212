"""An exclusive lock on a folder, held for as long as its process lives: two runs in one folder would mix."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from softlabels.core.durable import explained, make_folder
from softlabels.core.processes import Process, this_process
from softlabels.errors import RunError

LOCK = ".softtrain.lock"
"""Stays in the folder: whoever removed it could remove it from under another process."""
_TORN = re.compile(r"[\w.\-\0]{1,199}")
"""What a power failure may leave of a line of ours: it locks, too, and is not written to, for it may be another's."""
_TAKEN = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK}


class FolderLock:
    """The lock of one folder; the kernel gives it back when the process ends, however it ends.

    Args:
        folder: to be locked; is made if it is not there.
        notice: told where the file system has no locks.
    """

    def __init__(self, folder: Path, notice: Callable[[str], None]) -> None:
        self._folder, self._notice = folder, notice
        self._file: int | None = None
        self._ours = False
        """Whether the file says what we write there, or nothing."""
        self._named = False
        """Whether it says that this process has it."""

    def acquire(self) -> None:
        """Take it.

        Raises:
            RunError: another process has it.
            StoreError: the folder cannot be written to.
        """
        path = self._folder / LOCK
        with explained(path):
            make_folder(self._folder)
            self._file = self._open(path)
        try:
            import fcntl

            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (ImportError, OSError) as e:
            if getattr(e, "errno", None) in _TAKEN:
                owner = os.read(self._file, 200).decode(errors="replace").strip() or "unknown"
                self.release()
                raise RunError(
                    f"{self._folder}: another run is writing there (process {owner}); wait for its end, stop it, or "
                    "choose another --out"
                ) from e
            self._notice(
                f"{self._folder}: cannot be locked here ({e}); see to it that no other run writes there"
            )
            return
        if not self._ours:
            return
        with explained(path):
            os.ftruncate(self._file, 0)
            os.write(self._file, f"{this_process()}\n".encode())
            self._named = True

    def _open(self, path: Path) -> int:
        """The lock's file, made if it is not there; `RunError` for what is not ours, and is not written to."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            file = os.open(path, flags, 0o644)
        except OSError as e:
            if e.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise
            raise _foreign(path) from e
        regular = stat.S_ISREG(os.fstat(file).st_mode)
        content = os.pread(file, 200, 0).decode(errors="replace") if regular else "?"
        self._ours = not content or Process.parse(content.removesuffix("\n")) is not None
        if not self._ours and not _TORN.fullmatch(content):
            os.close(file)
            raise _foreign(path)
        return file

    def release(self) -> None:
        """Give it back, if it is held: a process may live on after its run, and then must not be taken for it."""
        if self._file is not None:
            if self._named:
                with suppress(OSError):  # whoever watches the run then waits for this process's end
                    os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file, self._named = None, False

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _foreign(path: Path) -> RunError:
    return RunError(
        f"{path}: is not a lock of ours, but a link or another file, and is left as it is; move it away"
    )
