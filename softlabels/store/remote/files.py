"""A store at an address: files come when they are read, or a little before, and stay in the cache."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

from softlabels.core.records import FILE_LIMIT, RECORD_LIMIT
from softlabels.errors import FormatError, IntegrityError, RemoteError
from softlabels.format.files import Address, LocalFiles, Recorded, StoreFiles
from softlabels.store.remote.cache import CacheOptions, Cancelled, FileCache
from softlabels.store.remote.client import Client

FETCHERS = 8
"""Files that come at the same time: what hides the latency of each."""


class RemoteFiles:
    """The files of a store at an address. May be shared between threads."""

    def __init__(self, url: str, cache: CacheOptions | None = None) -> None:
        self.client = Client(url)
        self.cache = FileCache(*(cache or CacheOptions()).resolved())
        self._lock = threading.Lock()
        self._coming: dict[str, _Coming] = {}
        self._awaited: set[_Coming] = set()
        """Those that a read has taken and waits for."""
        self._fetchers: _Fetchers | None = None
        self._stop = threading.Event()
        """Set: no read waits for the network."""

    @property
    def root(self) -> Address:
        """The address."""
        return self.client.root

    def record(self, name: str) -> bytes:
        """A small file that nothing vouches for yet; always the one that is there now."""
        try:
            return self.client.read(name, limit=RECORD_LIMIT)
        except IntegrityError as e:
            raise FormatError(str(e)) from e

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.client.size(name) is not None

    def check_present(self, file: Recorded) -> None:
        """Nothing: what is missing is found when it is read, or by `softlabels verify`."""

    def names(self) -> Iterable[str] | None:
        """The names of all files; a web server does not tell."""
        return self.client.list()

    def checked(self, file: Recorded) -> bytes:
        """A file whose size and sha256 were found equal to the record's."""
        where = self.root / file.name
        if file.bytes > FILE_LIMIT:
            raise IntegrityError(
                f"{where}: recorded with {file.bytes} bytes; a file of more than {FILE_LIMIT} bytes is refused unread"
            )
        data = self._read(file)
        if data is not None and hashlib.sha256(data).hexdigest() != file.sha256:
            self.cache.drop(file.sha256)  # the copy rotted
            data = self._read(file)
        if data is None:  # no room for it in the cache
            data = self._straight(file)
        if len(data) != file.bytes or (found := hashlib.sha256(data).hexdigest()) != file.sha256:
            found = f"{len(data)} bytes" if len(data) != file.bytes else f"sha256 is {found}"
            raise IntegrityError(
                f"{where}: {found}, the record says {file.bytes} bytes and {file.sha256}: altered; copy it to there "
                "again from its source"
            )
        return data

    def _read(self, file: Recorded) -> bytes | None:
        """The bytes of the copy in the cache; None: there is no room for one."""
        with self._lock:
            coming, stop = self._coming.pop(file.sha256, None), self._stop
            taken = set() if coming is None else {coming}
            self._awaited |= taken
        try:
            held = None if coming is None else coming.file.result()
        except (Cancelled, CancelledError):
            coming = None
        finally:
            with self._lock:
                self._awaited -= taken
        try:
            if coming is None:
                held = _hold(self.client, self.cache, file, stop)
        except Cancelled as e:
            raise self._given_up(file) from e
        if held is None:
            return None
        with held:
            return held.read()

    def _straight(self, file: Recorded) -> bytes:
        try:
            return self.client.read(file.name, limit=file.bytes, stop=self._stop)
        except FileNotFoundError as e:
            raise _missing(self.client, file) from e
        except Cancelled as e:
            raise self._given_up(file) from e

    def _given_up(self, file: Recorded) -> RemoteError:
        return RemoteError(f"{self.root / file.name}: reading was given up meanwhile")

    def give_up(self) -> None:
        """Wait for nothing: reads that need the network fail, those of now and, until `go_on`, those to come."""
        with self._lock:
            self._stop.set()
            for awaited in self._awaited:
                awaited.stop()
            while self._coming:
                self._coming.popitem()[1].give_up()

    def go_on(self) -> None:
        """Wait again, after `give_up`."""
        with self._lock:
            if self._stop.is_set():
                self._stop = threading.Event()

    def ahead(self, wanted: Iterable[Recorded]) -> None:
        """Fetch these on threads, at most `FETCHERS` at a time and in this order; give up all others."""
        wanted = list(wanted)
        digests = {f.sha256 for f in wanted}
        with self._lock:
            if self._stop.is_set():
                return
            for digest in self._coming.keys() - digests:
                self._coming.pop(digest).give_up()
            for file in wanted:
                if file.sha256 in self._coming or file.bytes > self.cache.limit:
                    continue
                if self._fetchers is None:
                    self._fetchers = _Fetchers(FETCHERS)
                    weakref.finalize(self, _give_up_all, self._coming, self._fetchers)
                stop = threading.Event()
                hold = partial(_hold, self.client, self.cache, file, stop)
                self._coming[file.sha256] = _Coming(self._fetchers.submit(hold), stop)


def _hold(
    client: Client, cache: FileCache, file: Recorded, stop: threading.Event
) -> BinaryIO | None:
    fetch = partial(fetch_recorded, client, file, stop)
    return cache.hold(file.sha256, file.bytes, fetch, stop, where=client.root / file.name)


def fetch_recorded(
    client: Client, file: Recorded, stop: threading.Event, sink: BinaryIO, begun: int
) -> None:
    """Append a file's bytes from `begun` on, as `Client.fetch`; one that is missing is damage."""
    try:
        client.fetch(file.name, sink, begun, file.bytes, stop)
    except FileNotFoundError as e:
        raise _missing(client, file) from e


def _missing(client: Client, file: Recorded) -> IntegrityError:
    return IntegrityError(
        f"{client.root / file.name}: missing; copy it to there again from the store's source (sha256 "
        f"{file.sha256[:12]}…)"
    )


class _Coming:
    """A file on its way to the cache, or there and held until it is read."""

    def __init__(self, file: Future[BinaryIO | None], stop: threading.Event) -> None:
        self.file, self._stop = file, stop

    def stop(self) -> None:
        """Do not wait for it; whoever reads it closes it."""
        self._stop.set()
        self.file.cancel()

    def give_up(self) -> None:
        """Nobody reads it."""
        self.stop()
        self.file.add_done_callback(_close)


def _close(file: Future[BinaryIO | None]) -> None:
    if not file.cancelled() and file.exception() is None and (held := file.result()) is not None:
        held.close()


_Work = tuple[Future[BinaryIO | None], Callable[[], BinaryIO | None]]


class _Fetchers:
    """Threads that fetch. An executor's would keep a process that ends waiting for a network that is away."""

    def __init__(self, threads: int) -> None:
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=_work_off, args=(self._work,), daemon=True)
            for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], BinaryIO | None]) -> Future[BinaryIO | None]:
        future: Future[BinaryIO | None] = Future()
        self._work.put((future, work))
        return future

    def end(self) -> None:
        """Have the threads end, which takes no longer than a request."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(0.2)


def _work_off(queue: SimpleQueue[_Work | None]) -> None:
    while (item := queue.get()) is not None:
        _run(*item)
        del item  # nothing of it is held while the next is waited for


def _run(future: Future[BinaryIO | None], work: Callable[[], BinaryIO | None]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as e:
        future.set_exception(e)


def _give_up_all(coming: dict[str, _Coming], fetchers: _Fetchers) -> None:
    """When the store is closed, or the process ends."""
    while coming:
        coming.popitem()[1].give_up()
    fetchers.end()


def files_of(url: str | Path, cache: CacheOptions | None = None) -> StoreFiles:
    """The files of the store in a folder, or at an address.

    Raises:
        ConfigError: no such kind of address.
        MissingExtraError: the libraries for it are not installed.
    """
    if "://" not in str(url):
        return LocalFiles(Path(url))
    return RemoteFiles(str(url), cache)
