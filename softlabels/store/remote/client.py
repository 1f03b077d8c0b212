"""Requests to where a remote store lies, made again while that may help.

The library is obstore, for web servers urllib3 (`web.py`). What fails for a reason that may pass (no connection, a
silence, 429, 5xx) is tried again with growing pauses until nothing has come for `patience` seconds; a transfer goes on
where it broke off. What will not pass (no permission, no such bucket) fails at once. Either ends in one sentence.

No more is held of what comes than was asked for, whatever a server says of its length.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from softlabels.core.records import RECORD_LIMIT
from softlabels.errors import IntegrityError, RemoteError, SoftLabelsError, first_line
from softlabels.format.files import Address
from softlabels.store.remote.addresses import check_address, open_address, open_web
from softlabels.store.remote.cache import Cancelled
from softlabels.store.remote.markers import is_marker
from softlabels.store.remote.versions import condition_on, refuse_untold, version_of
from softlabels.store.remote.web import PASSING, RangesIgnored, Web, WebFailure

if TYPE_CHECKING:
    from obstore.store import ObjectStore

PATIENCE = 180.0
"""Seconds without a byte after which a store counts as out of reach."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
PIECE = 2**20
"""Bytes handed on at a time."""
PROGRESS = 2**16
"""Bytes beyond all that came before, of the same file, that count as progress."""
PAGE = 1000
"""Files that one request lists."""
FILES_LIMIT = 2**20
"""Names that a listing may hold; a manifest names less than a fifth of that."""

T = TypeVar("T")

_forked_from: int | None = None
"""The process in which threads and connections were begun: a child that was forked later does not have them."""


class Client:
    """The files under one address. Shared between threads, not with forked children.

    A request is given up after `patience` seconds without progress.
    """

    def __init__(self, url: str, *, patience: float = PATIENCE, checksums: bool = False) -> None:
        """`checksums`: an S3 service is told the sha256 of what it is sent."""
        self.root = Address(check_address(url))
        self.patience = patience
        self.repeats = 0
        """Requests that were made once more."""
        self._checksums = checksums
        self._made: ObjectStore | None = None
        self._server: Web | None = None
        self._on_web = str(self.root).startswith(("http://", "https://", "hf://"))

    @property
    def _store(self) -> ObjectStore:
        self._refuse_fork()
        if self._made is None:
            self._made = open_address(str(self.root), checksums=self._checksums)
        return self._made

    @property
    def _web(self) -> Web | None:
        """The web server; None: an object store."""
        if not self._on_web:
            return None
        self._refuse_fork()
        if self._server is None:
            self._server = open_web(str(self.root))
        return self._server

    def _refuse_fork(self) -> None:
        global _forked_from
        if _forked_from is None:
            _forked_from = os.getpid()
        if _forked_from != os.getpid():
            raise RemoteError(
                f"{self.root}: this process was forked from one that had read a remote store, and a fork loses the "
                "threads that do so; let DataLoader start its workers with multiprocessing_context='spawn' or "
                "'forkserver', or use num_workers=0"
            )

    # -- reading ----------------------------------------------------------------------------------

    def fetch(
        self, name: str, sink: BinaryIO, begun: int, size: int, stop: threading.Event
    ) -> None:
        """Append a file's bytes from `begun` on, until there are `size`.

        Raises:
            FileNotFoundError: there is no such file.
            IntegrityError: it is of another size.
            Cancelled: `stop` was set.
            RemoteError: out of reach.
        """
        done = furthest = begun
        patience = _Patience(self.root / name, self.patience, stop)
        while done < size:
            try:
                with closing(self._pieces(name, done, stop)) as pieces:
                    for piece in pieces:
                        if done + len(piece) > size:
                            raise self._other_size(name, f"more than {size}", size)
                        sink.write(piece)
                        done += len(piece)
                        if done >= furthest + PROGRESS or done == size:
                            furthest = done
                            patience.progressed()
                if done < size:
                    raise self._other_size(name, done, size)
            except RangesIgnored:
                sink.truncate(0)
                sink.seek(0)
                done = 0
            except Exception as e:
                patience.after(e)

    def _pieces(self, name: str, begun: int, stop: threading.Event) -> Generator[Any]:
        if stop.is_set():
            raise Cancelled
        with closing(self._get(name, begun)[1]) as pieces:
            for piece in pieces:
                if stop.is_set():
                    raise Cancelled
                yield piece

    def _get(self, name: str, begun: int = 0) -> tuple[int | None, Any]:
        """How many bytes are said to come, and those that do."""
        if (web := self._web) is not None:
            return web.get(name, begun, PIECE)
        options: Any = {"range": {"offset": begun}} if begun else None
        found = self._store.get(name, options=options)
        return int(found.meta["size"]), (piece for piece in found.stream(min_chunk_size=PIECE))

    def _other_size(self, name: str, found: object, size: int) -> IntegrityError:
        return IntegrityError(
            f"{self.root / name}: {found} bytes, the record says {size}: torn or altered; copy it to there again from "
            "its source"
        )

    def read(self, name: str, *, limit: int, stop: threading.Event | None = None) -> bytes:
        """A small file.

        Raises:
            FileNotFoundError: there is none.
            IntegrityError: larger than `limit`.
            Cancelled: `stop` was set.
            RemoteError: out of reach.
        """

        def get() -> bytes:
            said, pieces = self._get(name)
            with closing(pieces):
                if said is not None and said > limit:
                    raise IntegrityError(
                        f"{self.root / name}: {said} bytes, expected at most {limit}; refused unread"
                    )
                return self._bounded(pieces, name, limit)

        return self._patiently(name, get, stop)

    def _bounded(self, pieces: Iterable[Any], name: str, limit: int) -> bytes:
        """What comes, which may be more than a server said that it is: no more than `limit` is held."""
        data = bytearray()
        for piece in pieces:
            if len(data) + len(piece) > limit:
                raise IntegrityError(
                    f"{self.root / name}: more than {limit} bytes came, whatever the server said; the rest was refused"
                )
            data += piece
        return bytes(data)

    def read_version(self, name: str, *, limit: int) -> tuple[bytes, str]:
        """A small file of a bucket, and its version; raises as `read`."""

        def get() -> tuple[bytes, str]:
            found = self._store.get(name)
            if found.meta["size"] > limit:
                raise IntegrityError(
                    f"{self.root / name}: {found.meta['size']} bytes, expected at most {limit}; refused unread"
                )
            data = self._bounded(found.stream(min_chunk_size=PIECE), name, limit)
            return data, self._version(found.meta)

        return self._patiently(name, get)

    def size(self, name: str) -> int | None:
        """Bytes of a file, 0 if a web server does not say; None: there is none."""

        def head() -> int:
            if (web := self._web) is not None:
                return web.size(name) or 0
            return int(self._store.head(name)["size"])

        try:
            return self._patiently(name, head)
        except FileNotFoundError:
            return None

    def list(self) -> dict[str, int] | None:
        """Name and bytes of every file; None: a web server, which does not tell.

        Raises:
            IntegrityError: there are more than any store has.
        """
        if self._on_web:
            return None

        def collect() -> dict[str, int]:
            found: dict[str, int] = {}
            for some in self._store.list():
                sizes = {m["path"]: int(m["size"]) for m in some}
                found |= {n: size for n, size in sizes.items() if not is_marker(n, size)}
                if len(found) > FILES_LIMIT:
                    raise IntegrityError(
                        f"{self.root}: lists more than {FILES_LIMIT} files, and no store has so many; is the address "
                        "right?"
                    )
            return found

        return self._in_bucket("", collect)

    def page(self, folder: str, after: str) -> Sequence[tuple[str, str, int, float]]:
        """Name, version, bytes and time of the first files of a folder of a bucket after a name: one request."""

        def first() -> Sequence[tuple[str, str, int, float]]:
            found: list[tuple[str, str, int, float]] = []
            # object_store asks for pages of 1,000, and joins them up to `chunk_size`.
            for some in self._store.list(folder, offset=after or None, chunk_size=PAGE):
                found += [
                    (m["path"], self._version(m), int(m["size"]), m["last_modified"].timestamp())
                    for m in some
                    if not is_marker(m["path"], int(m["size"]))
                ]
                if len(found) >= PAGE:  # fewer would tell that there are no more
                    break
            return found[:PAGE]

        return self._in_bucket(folder, first)

    # -- writing ----------------------------------------------------------------------------------

    def put_new(self, name: str, content: bytes | Path) -> str | None:
        """Create a file, whole or not at all: its version. None: there is one already, and it is left as it is."""
        store = self._store  # made before its errors are named: who lacks the library is told so
        from obstore.exceptions import AlreadyExistsError

        how: Any = {"mode": "create", "use_multipart": False}
        try:
            return self._version(self._in_bucket(name, lambda: store.put(name, content, **how)))
        except AlreadyExistsError:
            return None

    def put_if(self, name: str, content: bytes, version: str) -> str | None:
        """Replace a file in one step, if it still is of a version: the new one. None: it is not, or is gone."""
        store = self._store
        from obstore.exceptions import PreconditionError

        try:
            mode = condition_on(self.root, name, version, lambda: self._about(name))
            if mode is None:
                return None
            how: Any = {"mode": mode, "use_multipart": False}
            return self._version(self._patiently(name, lambda: store.put(name, content, **how)))
        except (PreconditionError, FileNotFoundError):
            return None

    def put_over(self, name: str, content: bytes, expected: Callable[[bytes], bool]) -> bool:
        """Replace a file in one step, if it still is what is `expected`; False: it is not."""
        found, version = self.read_version(name, limit=RECORD_LIMIT)
        return expected(found) and self.put_if(name, content, version) is not None

    def put(self, name: str, content: bytes | Path) -> None:
        """Write a file, whole or not at all, in place of what is there; a large one in parts, each tried again."""
        self._in_bucket(name, lambda: self._store.put(name, content))

    def delete(self, *names: str) -> None:
        """Remove files that are there; of an S3 service a thousand at a time."""
        try:
            self._patiently("", lambda: self._store.delete(list(names)))
        except (
            FileNotFoundError
        ):  # Google says so of one that is gone, and the others may still be there
            for name in names:
                with suppress(FileNotFoundError):
                    self._patiently(name, lambda: self._store.delete(name))  # noqa: B023

    def _about(self, name: str) -> Mapping[str, Any]:
        return self._patiently(name, lambda: self._store.head(name))

    def _version(self, about: Mapping[str, Any]) -> str:
        return version_of(self.root, about)

    def _in_bucket(self, name: str, action: Callable[[], T]) -> T:
        """Do what only a missing bucket can make impossible."""
        try:
            return self._patiently(name, action)
        except FileNotFoundError as e:
            raise RemoteError(
                f"{self.root}: there is no such bucket ({_reason(e)}); make it first, or check the address"
            ) from e

    def _patiently(
        self, name: str, action: Callable[[], T], stop: threading.Event | None = None
    ) -> T:
        where = self.root / name if name else self.root
        patience = _Patience(where, self.patience, stop or threading.Event())
        while True:
            try:
                return action()
            except Exception as e:
                patience.after(e)
                self.repeats += 1


class _Patience:
    """Decides whether a request that failed is made again, and waits."""

    def __init__(self, where: Address, seconds: float, stop: threading.Event) -> None:
        self._where, self._seconds, self._stop = where, seconds, stop
        self.progressed()

    def progressed(self) -> None:
        self._since = time.monotonic()
        self._pause = FIRST_PAUSE

    def after(self, error: Exception) -> None:
        """Wait, or raise what cannot be mended by waiting."""
        refuse_untold(error, self._where)
        reason, way_out = _understood(error)
        if way_out is not None:
            raise RemoteError(f"{self._where}: {reason}; {way_out}") from error
        if time.monotonic() - self._since > self._seconds:
            raise RemoteError(
                f"{self._where}: nothing came for {self._seconds:g} seconds ({reason}); check the network and the "
                "address, then run the same command again: what was finished is kept"
            ) from error
        if self._stop.wait(self._pause * random.uniform(0.5, 1.0)):
            raise Cancelled from error
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


def _understood(error: Exception) -> tuple[str, str | None]:
    """What happened and, where another try cannot help, what to do; what is nobody's network is raised again."""
    if isinstance(error, WebFailure):
        return error.reason, error.way_out
    if isinstance(error, SoftLabelsError | FileNotFoundError | Cancelled):
        raise error
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    if not isinstance(error, BaseError) or isinstance(
        error, AlreadyExistsError | PreconditionError
    ):
        raise error
    reason = _reason(error)
    return reason, _way_out(error, reason)


def _reason(error: Exception) -> str:
    """What obstore says, without how long it took."""
    return re.sub(r" in [\d.]+\S?s\b", "", first_line(error)).rstrip(" :")


def _way_out(error: Exception, reason: str) -> str | None:
    """What to do where another try cannot help; None: it may."""
    from obstore.exceptions import (
        InvalidPathError,
        NotSupportedError,
        PermissionDeniedError,
        UnauthenticatedError,
    )

    if "169.254.169.254" in reason or "metadata.google" in reason:
        return (
            "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or "
            "GOOGLE_APPLICATION_CREDENTIALS), or AWS_SKIP_SIGNATURE=true for a public bucket"
        )
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return "check the credentials in the environment (AWS_…, GOOGLE_…, HF_TOKEN) and their permissions"
    if isinstance(error, InvalidPathError | NotSupportedError):
        return "check the address, and that no name there holds '//'"
    status = re.search(r"status code: (4\d\d)", reason)
    if status is not None and int(status[1]) not in PASSING:
        return "the service refuses the request; check the address and its settings (AWS_REGION, AWS_ENDPOINT_URL)"
    return None
