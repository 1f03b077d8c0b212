"""An S3 server on loopback, and a proxy before it that counts, delays, cuts and alters what passes."""

from __future__ import annotations

import logging
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

SOMEBODY = (
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, "
    "Signature=0"
)
"""moto asks who it is before it overwrites, and believes what it is told."""
METHODS = (b"GET ", b"PUT ", b"HEAD ", b"POST ", b"DELETE ")


@contextmanager
def s3_server() -> Iterator[str]:
    """Address of a moto server with a bucket `bucket`; it obeys preconditions."""
    moto = pytest.importorskip("moto.server", reason="needs moto[server]: pip install -e '.[dev]'")
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        _request(f"{url}/moto-api/reset", "POST", b"")
        _request(f"{url}/bucket", "PUT", b"")
        yield url
    finally:
        server.stop()


def keep_versions(endpoint: str) -> None:
    """Have the bucket keep what is replaced or deleted."""
    said = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    _request(f"{endpoint}/bucket?versioning", "PUT", said)


def environment(endpoint: str, cache: Path) -> dict[str, str]:
    """What tells a process to use that server, and a cache of its own."""
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "SOFTLABELS_CACHE": str(cache),
    }


class Proxy:
    """Passes TCP connections on to a server.

    Args:
        target: `http://HOST:PORT`.
        latency: seconds that each thing a client says takes to arrive.
    """

    def __init__(self, target: str, *, latency: float = 0.0) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self.latency = latency
        self.requests: list[str] = []
        """`METHOD PATH` of each request so far."""
        self.received = 0
        """Bytes that came from the server."""
        self.break_after: int | None = None
        """Cut each connection after so many bytes from the server; counted down to None once it happened."""
        self.without: bytes | None = None
        """A header that is renamed in what comes from the server."""
        self._open: set[socket.socket] = set()
        self._cut = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """No connection lives, and none is made, until `mend`."""
        self._cut.set()
        for s in list(self._open):
            with suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._cut.clear()

    def gets(self, part: str = "") -> list[str]:
        """Paths of the GET requests that contain `part`."""
        return [r[4:] for r in self.requests if r.startswith("GET ") and part in r]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._cut.is_set():
                client.close()
                continue
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server = socket.create_connection(self._target)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open |= {client, server}
            threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, to_server: bool) -> None:
        with suppress(OSError):
            while data := source.recv(2**16):
                if to_server:
                    self._note(data)
                    time.sleep(self.latency)
                else:
                    self.received += len(data)
                    if self.without is not None:
                        data = data.replace(self.without, b"X" * len(self.without))
                    if self.break_after is not None:
                        self.break_after -= len(data)
                        if self.break_after < 0:
                            self.break_after = None
                            sink.sendall(data[: len(data) // 2])
                            break
                sink.sendall(data)
        for s in (source, sink):
            self._open.discard(s)
            with suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()

    def _note(self, data: bytes) -> None:
        if data.startswith(METHODS):
            method, path, *_ = data.split(b" ", 2)
            self.requests.append(f"{method.decode()} {path.decode()}")


def upload(store: Path, endpoint: str, name: str = "store") -> str:
    """Copy a folder's files to the server, as any tool would; returns the address."""
    for path in sorted(p for p in store.rglob("*") if p.is_file()):
        put(endpoint, f"{name}/{path.relative_to(store).as_posix()}", path.read_bytes())
    return f"s3://bucket/{name}"


def put(endpoint: str, name: str, data: bytes) -> None:
    _request(f"{endpoint}/bucket/{name}", "PUT", data)


def delete(endpoint: str, name: str) -> None:
    _request(f"{endpoint}/bucket/{name}", "DELETE")


def get(endpoint: str, name: str) -> bytes:
    return _request(f"{endpoint}/bucket/{name}", "GET")


def _request(url: str, method: str, data: bytes | None = None) -> bytes:
    headers = {"Content-Type": "application/octet-stream", "Authorization": SOMEBODY}
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return bytes(answer.read())
