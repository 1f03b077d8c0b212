"""Files of a web server, of which nothing is taken on trust: not its lengths, not where it leads to.

The library is urllib3, since obstore reads the body of an error whole and follows wherever it is led to.

- No more is read than whoever asks takes: a body is a stream, and that of an error is not read at all.
- Silence ends a request after `SILENCE`; one that only trickles, headers and all that HTTP may put between and after
  the bytes included, ends after `WINDOW` seconds in which fewer than `LEAST` bytes of the body came.
- Where a server leads to another host, that is refused, for it would have this machine ask whatever it likes,
  in its own network too. The variable SOFTLABELS_REDIRECTS names the hosts that may be led to; the Hub may lead
  anywhere, since it keeps its files elsewhere. No other host is told who asks, and https never leads to http.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import urllib.request
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urljoin, urlsplit

from softlabels.errors import MissingExtraError, first_line

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, HTTPConnectionPool, PoolManager

ALLOWED = "SOFTLABELS_REDIRECTS"
"""Environment variable: hosts, with commas between them, that a server may lead to; HOST or HOST:PORT."""
LEADS, LEAD_STATUSES = 5, (301, 302, 303, 307, 308)
CONNECT, SILENCE = 5.0, 15.0
"""Seconds to connect, and seconds without a byte after which a request has failed."""
WINDOW, LEAST = 60.0, 2**16
"""A server that sends fewer bytes of a body in so many seconds is taken to hold us up."""
PASSING = (408, 425, 429)
"""Statuses of the 4xx that are worth another try."""


class WebFailure(Exception):
    """A request that failed for a `reason`; its `way_out` is None where another try may help."""

    def __init__(self, reason: str, way_out: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.way_out = reason, way_out


class RangesIgnored(Exception):
    """The server sends whole files only."""


class Watch:
    """Shuts the connections of one request down when it is held up; reading them then fails, or ends early."""

    def __init__(self) -> None:
        self.held_up = False
        self._socket: socket.socket | None = None
        self._came = self._before = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def over(self, connected: socket.socket) -> None:
        """The connection that is read from now on."""
        self._socket = connected

    def came(self, size: int) -> None:
        """So many bytes of the body."""
        self._came += size

    def end(self) -> None:
        """The request is over: its connection may become another's."""
        with self._lock:
            self._ended.set()

    def failure(self, error: Exception | None) -> WebFailure:
        """What to say of an error, if the watch was not the cause of it."""
        if self.held_up or error is None:
            return WebFailure(
                f"sent fewer than {LEAST:,} bytes in {WINDOW:g} seconds, without an end",
                "check the network and the server, then run the same command again",
            )
        return WebFailure(f"{type(error).__name__}: {first_line(error)}")

    def _look(self) -> None:
        while not self._ended.wait(WINDOW):
            with self._lock:
                if self._ended.is_set():
                    return
                if self._came - self._before < LEAST:
                    self.held_up = True
                    self._shut()
                self._before = self._came

    def _shut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # of TLS, too, the connection itself
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


_request = threading.local()
"""`watch`: of the request that this thread makes."""


class _Watched:
    """Of a connection: tells the watch of the request which one it is."""

    sock: socket.socket | None

    def getresponse(self) -> Any:
        watch = getattr(_request, "watch", None)
        if watch is not None and self.sock is not None:
            watch.over(self.sock)
        return super().getresponse()  # type: ignore[misc]


class Body:
    """What comes, at most `size` bytes at a time; closed, the rest is not read."""

    def __init__(self, answer: BaseHTTPResponse, size: int, watch: Watch) -> None:
        self._answer, self._size, self._watch = answer, size, watch

    def close(self) -> None:
        """Read no more."""
        self._watch.end()
        self._answer.close()

    def __iter__(self) -> Iterator[bytes]:
        from urllib3.exceptions import HTTPError

        try:
            # Not by its stream(), which reads lines without end.
            while piece := self._answer.read1(self._size, decode_content=False):
                self._watch.came(len(piece))
                yield piece
        except (HTTPError, OSError, ValueError) as e:  # a ValueError: of a length below 0
            raise self._watch.failure(e) from e
        if self._watch.held_up:
            raise self._watch.failure(None)


class Web:
    """The files under an address of a web server. Shared between threads.

    Args:
        headers: sent to its host, and to no other.
        leads_away: whether it may lead to any other host.
    """

    def __init__(
        self, url: str, *, headers: Mapping[str, str] | None = None, leads_away: bool = False
    ) -> None:
        self._url = url
        self._home = urlsplit(url)
        self._headers = dict(headers or {})
        self._leads_away = leads_away
        self._pool = _pool_of(url)
        weakref.finalize(self, self._pool.clear)  # closes its connections

    def size(self, name: str) -> int | None:
        """Bytes of a file as the server gives them; None: it does not. Raises as `get`."""
        answer, watch = self._ask("HEAD", name, {})
        watch.end()
        answer.close()
        return _length(answer)

    def get(self, name: str, begun: int, piece: int) -> tuple[int | None, Body]:
        """The bytes that the server says will come (None: it does not say), and those that do, `piece` at a time.

        Raises:
            FileNotFoundError: there is none.
            RangesIgnored: it does not go on from `begun`.
            WebFailure: out of reach, also while pieces are taken.
        """
        answer, watch = self._ask("GET", name, {"Range": f"bytes={begun}-"} if begun else {})
        body = Body(answer, piece, watch)
        if begun and not _begins_at(answer, begun):
            body.close()
            raise RangesIgnored
        return _length(answer), body

    def _ask(
        self, method: str, name: str, more: Mapping[str, str]
    ) -> tuple[BaseHTTPResponse, Watch]:
        watch = _request.watch = Watch()
        try:
            return self._answered(method, name, more, watch), watch
        except BaseException:
            watch.end()
            raise
        finally:
            _request.watch = None

    def _answered(
        self, method: str, name: str, more: Mapping[str, str], watch: Watch
    ) -> BaseHTTPResponse:
        from urllib3.exceptions import HTTPError

        url = f"{self._url}/{name}"
        for _ in range(LEADS + 1):
            headers = {"Accept-Encoding": "identity", **more}
            if _place(urlsplit(url)) == _place(self._home):
                headers |= self._headers
            try:
                answer = self._pool.request(
                    method, url, headers=headers, redirect=False, preload_content=False
                )
            except (HTTPError, OSError) as e:
                raise watch.failure(e) from e
            if answer.status not in LEAD_STATUSES:
                return self._accepted(answer, name)
            answer.close()
            url = self._led(url, answer.headers.get("Location", ""))
        raise WebFailure(f"leads on more than {LEADS} times", "check the address")

    def _led(self, url: str, location: str) -> str:
        """Where a server leads to, if it may."""
        try:
            target = urljoin(url, location)
            now, then = urlsplit(url), urlsplit(target)
        except ValueError as e:
            raise WebFailure(f"leads to {location[:200]!r}", "that is no address of a file") from e
        if then.scheme not in ("http", "https") or not then.hostname or "@" in then.netloc:
            raise WebFailure(f"leads to {target[:200]!r}", "that is no address of a file")
        if (now.scheme, then.scheme) == ("https", "http"):
            raise WebFailure(f"leads from https to {target[:200]!r}", "nothing is read there")
        hosts = {h.strip().lower() for h in os.environ.get(ALLOWED, "").split(",")}
        allowed = self._leads_away or (
            then.hostname == self._home.hostname
            and (_place(then)[1] == _place(self._home)[1] or then.scheme != now.scheme)
        )
        if not allowed and hosts.isdisjoint({then.hostname, then.netloc.lower()}):
            raise WebFailure(
                f"leads to another host, {then.netloc[:200]!r}",
                f"give that address if you trust it, or allow it with {ALLOWED}={then.netloc[:200]}",
            )
        return target

    def _accepted(self, answer: BaseHTTPResponse, name: str) -> BaseHTTPResponse:
        status = answer.status
        if 200 <= status < 300:
            return answer
        answer.close()  # its body is not read: it may have no end
        if status in (404, 410):
            raise FileNotFoundError(f"{self._url}/{name}: {status}")
        reason = f"the server answered {status}"
        if status in (401, 403):
            raise WebFailure(
                reason, "check the credentials in the environment (HF_TOKEN) and their permissions"
            )
        passing = status >= 500 or status in PASSING
        raise WebFailure(reason, None if passing else "check the address")


def _place(url: SplitResult) -> tuple[str | None, int]:
    """Host and port."""
    try:
        port = url.port
    except ValueError as e:
        raise WebFailure(f"{url.netloc[:200]!r} is no host", "check the address") from e
    return url.hostname, port or (443 if url.scheme == "https" else 80)


def _pool_of(url: str) -> PoolManager:
    try:
        import urllib3
    except ImportError as e:
        raise MissingExtraError("urllib3", "remote", "a store on a web server") from e
    host = urlsplit(url).hostname or ""
    proxy = urllib.request.getproxies().get(urlsplit(url).scheme)
    options = {
        "timeout": urllib3.Timeout(connect=CONNECT, read=SILENCE),
        "retries": False,
        "maxsize": 8,
    }
    pool: PoolManager
    if proxy and not urllib.request.proxy_bypass(host):
        pool = urllib3.ProxyManager(proxy, **options)  # type: ignore[arg-type]
    else:
        pool = urllib3.PoolManager(**options)  # type: ignore[arg-type]
    pool.pool_classes_by_scheme = {
        "http": _watched(urllib3.HTTPConnectionPool),
        "https": _watched(urllib3.HTTPSConnectionPool),
    }
    return pool


def _watched(pool: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
    """The same kind of pool, whose connections tell the watch."""
    connection = type("WatchedConnection", (_Watched, pool.ConnectionCls), {})
    return type("WatchedPool", (pool,), {"ConnectionCls": connection})


def _length(answer: BaseHTTPResponse) -> int | None:
    text = answer.headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"\d{1,18}", text) else None


def _begins_at(answer: BaseHTTPResponse, begun: int) -> bool:
    said = re.match(r"bytes (\d{1,18})-", answer.headers.get("Content-Range", ""))
    return answer.status == 206 and said is not None and int(said[1]) == begun
