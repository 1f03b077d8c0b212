"""Web servers that lie about lengths, never end, or lead elsewhere: a sentence, little memory, nobody told who asks."""

from __future__ import annotations

import io
import shutil
import threading
import time
import tracemalloc
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from softlabels.errors import FormatError, IntegrityError, RemoteError, SoftLabelsError
from softlabels.store.reader import open_store
from softlabels.store.remote import web as web_module
from softlabels.store.remote.client import Client
from softlabels.store.remote.web import Web, WebFailure

MEGABYTE = 2**20


class Hostile(BaseHTTPRequestHandler):
    """Does what its server's `act` says; `sent` counts bytes."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        try:
            self.server.act(self)
        except OSError:
            self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None: ...

    def head(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def endless(self) -> None:
        for _ in range(200):
            self.wfile.write(b"100000\r\n" + b"x" * MEGABYTE + b"\r\n")
            self.server.sent += MEGABYTE


class Server(ThreadingHTTPServer):
    """On loopback."""

    daemon_threads = True

    def __init__(self, act: Callable[[Hostile], None]) -> None:
        super().__init__(("127.0.0.1", 0), Hostile)
        self.act, self.sent = act, 0
        self.asked: list[tuple[str, str | None]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def serve(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTLABELS_CACHE", str(tmp_path / "cache"))
    servers: list[Server] = []

    def begin(act: Callable[[Hostile], None]) -> Server:
        servers.append(Server(act))
        return servers[-1]

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def short_but_endless(it: Hostile) -> None:
    """`Transfer-Encoding` wins over `Content-Length`."""
    it.head(Content_Length="10", Transfer_Encoding="chunked")
    it.endless()


def endless(it: Hostile) -> None:
    it.head(Transfer_Encoding="chunked")
    it.endless()


def endless_error(it: Hostile) -> None:
    it.head(404, Transfer_Encoding="chunked")
    it.endless()


def endless_line(it: Hostile) -> None:
    """The line that says how long a chunk is has no end."""
    it.head(Transfer_Encoding="chunked")
    for _ in range(200):
        it.wfile.write(b"0" * MEGABYTE)
        it.server.sent += MEGABYTE


def endless_headers(it: Hostile) -> None:
    it.send_response(200)
    for i in range(10**5):
        it.wfile.write(b"X-%d: %s\r\n" % (i, b"x" * 1000))
        it.server.sent += 1000


def long_at_once(it: Hostile) -> None:
    it.head(Content_Length=str(10**12))
    it.endless()


BOMBS = [long_at_once, short_but_endless, endless, endless_error, endless_line, endless_headers]


@pytest.mark.parametrize("act", BOMBS, ids=lambda a: a.__name__)
def test_no_more_is_held_than_was_asked_for(serve, act):
    server = serve(act)
    client = Client(server.url, patience=0.0)
    tracemalloc.start()
    try:
        with pytest.raises((SoftLabelsError, FileNotFoundError)):
            client.read("manifest.json", limit=MEGABYTE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * MEGABYTE
    assert server.sent < 64 * MEGABYTE  # what fits in the sockets


@pytest.mark.parametrize("act", [short_but_endless, endless], ids=lambda a: a.__name__)
def test_a_file_that_has_no_end(serve, act, tmp_path):
    server = serve(act)
    with (tmp_path / "sink").open("w+b") as sink:
        with pytest.raises(IntegrityError, match="more than 100 bytes, the record says 100"):
            Client(server.url).fetch("data/x", sink, 0, 100, threading.Event())
        assert sink.tell() <= 100


def test_a_store_of_no_end_is_a_sentence(serve):
    with pytest.raises(FormatError, match="bytes came, whatever the server said"):
        open_store(serve(endless).url)


# -- leading elsewhere ----------------------------------------------------------------------------


def leading(to: str, status: int = 302) -> Callable[[Hostile], None]:
    return lambda it: it.head(status, Location=to, Content_Length="0")


def secret(it: Hostile) -> None:
    it.head(Content_Length="6")
    if it.command == "GET":
        it.wfile.write(b"secret")


def test_another_host_is_not_asked(serve, monkeypatch):
    inner = serve(secret)
    outer = serve(leading(f"http://localhost:{inner.server_port}/admin"))
    client = Client(outer.url)
    with pytest.raises(
        RemoteError, match=f"leads to another host, 'localhost:{inner.server_port}'"
    ):
        client.read("manifest.json", limit=100)
    with pytest.raises(RemoteError, match="SOFTLABELS_REDIRECTS"):
        client.size("manifest.json")
    assert inner.asked == []
    monkeypatch.setenv("SOFTLABELS_REDIRECTS", f"other,localhost:{inner.server_port}")
    assert client.read("manifest.json", limit=100) == b"secret"


def test_another_port_of_the_host_is_another_host(serve):
    inner = serve(secret)
    outer = serve(leading(f"{inner.url}/admin"))
    with pytest.raises(RemoteError, match="leads to another host"):
        Client(outer.url).read("x", limit=100)
    assert inner.asked == []


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "ftp://host/x", "//user@host/x", "http://", "gopher:x", ""]
)
def test_strange_places(serve, to):
    with pytest.raises(RemoteError):
        Client(serve(leading(to)).url, patience=0.0).read("x", limit=100)


def test_https_does_not_lead_to_http():
    web = Web("https://host", leads_away=True)
    with pytest.raises(WebFailure, match="leads from https"):
        web._led("https://host/x", "http://host/x")
    assert web._led("https://host/x", "/y") == "https://host/y"


def test_credentials_stay_at_home(serve):
    inner = serve(secret)
    outer = serve(leading(f"{inner.url}/x"))
    web = Web(outer.url, headers={"Authorization": "Bearer token"}, leads_away=True)
    assert b"".join(web.get("x", 0, 10)[1]) == b"secret"
    assert [who for _, who in outer.asked] == ["Bearer token"]
    assert [who for _, who in inner.asked] == [None]


def test_within_the_host_it_may_lead(serve):
    def act(it: Hostile) -> None:
        (secret if it.path == "/there" else leading("/there"))(it)

    assert Client(serve(act).url).read("x", limit=100) == b"secret"


def test_in_circles(serve):
    with pytest.raises(RemoteError, match="leads on more than 5 times"):
        Client(serve(leading("/x")).url).read("x", limit=100)


def test_ranges_that_begin_elsewhere_are_not_taken(serve, tmp_path):
    """A server that answers another range than was asked for is asked for all of it."""

    def act(it: Hostile) -> None:
        if it.headers.get("Range"):
            it.head(206, Content_Range="bytes 0-5/6", Content_Length="6")
        else:
            it.head(Content_Length="6")
        it.wfile.write(b"abcdef")

    with (tmp_path / "sink").open("w+b") as sink:
        sink.write(b"abc")
        Client(serve(act).url).fetch("x", sink, 3, 6, threading.Event())
        sink.seek(0)
        assert sink.read() == b"abcdef"


def test_statuses(serve):
    for status, error in ((404, FileNotFoundError), (403, RemoteError), (400, RemoteError)):
        server = serve(lambda it, status=status: it.head(status, Content_Length="0"))
        with pytest.raises(error):
            Client(server.url).read("x", limit=10)
        assert len(server.asked) == 1
    later = iter([503, 429])

    def act(it: Hostile) -> None:
        status = next(later, None)
        secret(it) if status is None else it.head(status, Content_Length="0")

    server = serve(act)
    assert Client(server.url).read("x", limit=10) == b"secret"
    assert len(server.asked) == 3


def test_a_signature_is_checked_at_an_address(serve, built, tmp_path):
    pytest.importorskip("model_signing", reason="needs the extra `sign`")
    from softlabels.store.signing import sign_store
    from tests.store.keys import write_pair

    private, public = write_pair(tmp_path, "maker")
    store = Path(shutil.copytree(built, tmp_path / "store"))
    sign_store(store, private, release="maker/x@1")

    def act(it: Hostile) -> None:
        path = store / it.path.lstrip("/")
        if not path.is_file():
            it.head(404, Content_Length="0")
            return
        it.head(Content_Length=str(path.stat().st_size))
        if it.command == "GET":
            it.wfile.write(path.read_bytes())

    server = serve(act)
    assert len(open_store(server.url, key=public, release="maker/x@1")) == 8
    (store / "manifest.json.sig").unlink()
    with pytest.raises(IntegrityError, match="not signed"):
        open_store(server.url, key=public)


# -- holding up -----------------------------------------------------------------------------------


def slow_headers(it: Hostile) -> None:
    it.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    drip(it, b"a")


def slow_body(it: Hostile) -> None:
    it.head(Content_Length="100000")
    drip(it, b"a")


def slow_chunks(it: Hostile) -> None:
    it.head(Transfer_Encoding="chunked")
    drip(it, b"1\r\na\r\n")


def continued(it: Hostile) -> None:
    """Every one of these says that the answer is still to come."""
    drip(it, b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def trailers(it: Hostile) -> None:
    it.head(Transfer_Encoding="chunked")
    it.wfile.write(b"5\r\nhello\r\n0\r\n")
    drip(it, b"X-A: a\r\n" * 100)


def drip(it: Hostile, piece: bytes) -> None:
    for _ in range(2000):
        it.wfile.write(piece)
        time.sleep(0.01)


SLOW = [slow_headers, slow_body, slow_chunks, continued, trailers]


@pytest.mark.parametrize("act", SLOW, ids=lambda a: a.__name__)
def test_a_server_that_only_trickles_is_given_up(serve, act, monkeypatch):
    monkeypatch.setattr(web_module, "WINDOW", 0.3)
    began = time.monotonic()
    with pytest.raises(RemoteError, match=r"sent fewer than 65,536 bytes in 0\.3 seconds"):
        Client(serve(act).url).read("manifest.json", limit=MEGABYTE)
    with pytest.raises(RemoteError, match="sent fewer than"):
        Client(serve(act).url).fetch("x", io.BytesIO(), 0, 10**6, threading.Event())
    assert time.monotonic() - began < 5


def test_a_slow_server_that_sends_enough_is_not_given_up(serve, monkeypatch):
    monkeypatch.setattr(web_module, "WINDOW", 0.2)

    def act(it: Hostile) -> None:
        it.head(Content_Length=str(MEGABYTE))
        for _ in range(8):
            it.wfile.write(b"x" * (MEGABYTE // 8))
            time.sleep(0.1)

    client = Client(serve(act).url)
    for _ in range(2):  # the second over the connection of the first
        assert client.read("x", limit=MEGABYTE) == b"x" * MEGABYTE


def test_a_server_that_begins_anew_each_time_is_given_up(serve):
    def act(it: Hostile) -> None:
        it.head(Content_Length="100")
        it.wfile.write(b"x" * 50)
        it.close_connection = True

    server = serve(act)
    with pytest.raises(RemoteError, match=r"nothing came for 0\.5 seconds"):
        Client(server.url, patience=0.5).fetch("x", io.BytesIO(), 0, 100, threading.Event())


def negative_chunk(it: Hostile) -> None:
    it.head(Transfer_Encoding="chunked")
    it.wfile.write(b"-5\r\nhello\r\n0\r\n\r\n")
    it.close_connection = True


@pytest.mark.parametrize("act", [negative_chunk, lambda it: it.head(302, Location="http://[::1")])
def test_what_is_no_http_is_a_sentence(serve, act):
    with pytest.raises(RemoteError):
        Client(serve(act).url, patience=0.0).read("x", limit=100)
