"""A server on loopback that answers as Google's XML API is documented to, as far as a store in a bucket needs it.

No emulator that installs does: fake-gcs-server 1.54 and gcp-storage-emulator 2026.7 have no conditional PUT there, and
Google's storage-testbench no listing and no ETag. All requests are obstore's own.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass
class Bucket:
    """What the server holds."""

    files: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    """Content and generation of each."""
    requests: list[str] = field(default_factory=list)
    """`METHOD NAME` of each."""
    lists_tags: bool = True
    """Whether a listing tells the ETag that a read tells."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    generations: Iterator[int] = field(default_factory=lambda: count(1_700_000_000_000_000))

    def put(self, name: str, data: bytes) -> None:
        """What somebody else does, without conditions."""
        self.files[name] = (data, next(self.generations))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: ClassVar[Bucket]
    tells_generations: ClassVar[bool] = True

    def log_message(self, *_: object) -> None:
        pass

    @property
    def _name(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/bucket").removeprefix("/")

    def _answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _about(self, data: bytes, generation: int) -> dict[str, str]:
        when = _time(generation).strftime("%a, %d %b %Y %H:%M:%S GMT")
        number = {"x_goog_generation": str(generation)} if self.tells_generations else {}
        return {"ETag": _tag(data), "Last_Modified": when, **number}

    def _note(self) -> None:
        self.bucket.requests.append(f"{self.command} {self._name}")

    def do_GET(self) -> None:
        self._note()
        if not self._name:
            self._list()
            return
        found = self.bucket.files.get(self._name)
        if found is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        self._answer(200, found[0], **self._about(*found))

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        self._note()
        data = self.rfile.read(int(self.headers["Content-Length"]))
        wanted = self.headers.get("x-goog-if-generation-match")
        with self.bucket.lock:
            present = self.bucket.files.get(self._name)
            if wanted is not None and int(wanted) != (present[1] if present else 0):
                self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            self.bucket.put(self._name, data)
            stored = self.bucket.files[self._name]
        self._answer(200, **self._about(*stored))

    def do_DELETE(self) -> None:
        self._note()
        gone = self.bucket.files.pop(self._name, None)
        self._answer(404 if gone is None else 204)

    def _list(self) -> None:
        asked = {k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()}
        after = asked.get("continuation-token") or asked.get("start-after", "")
        prefix, most = asked.get("prefix", ""), int(asked.get("max-keys", 1000))
        names = sorted(n for n in self.bucket.files if n.startswith(prefix) and n > after)
        page = "".join(map(self._listed, names[:most]))
        if len(names) > most:
            page += f"<NextContinuationToken>{escape(names[most - 1])}</NextContinuationToken>"
        head = '<?xml version="1.0" encoding="UTF-8"?>'
        xmlns = 'xmlns="http://doc.s3.amazonaws.com/2006-03-01"'
        said = f"{head}<ListBucketResult {xmlns}>{page}</ListBucketResult>"
        self._answer(200, said.encode(), Content_Type="application/xml")

    def _listed(self, name: str) -> str:
        data, generation = self.bucket.files[name]
        tag = _tag(data) if self.bucket.lists_tags else f'"{generation}"'
        return (
            f"<Contents><Key>{escape(name)}</Key><Generation>{generation}</Generation>"
            f"<MetaGeneration>1</MetaGeneration><LastModified>{_time(generation).isoformat()}</LastModified>"
            f"<ETag>{escape(tag)}</ETag><Size>{len(data)}</Size></Contents>"
        )


def _tag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def _time(generation: int) -> datetime:
    return datetime.fromtimestamp(generation / 1e6, UTC)


@contextmanager
def gcs_server() -> Iterator[tuple[str, Bucket]]:
    """The server's address, and what is in its bucket `bucket`."""
    bucket = Bucket()
    handler = type("Handler", (_Handler,), {"bucket": bucket})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bucket
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(address: str) -> dict[str, str]:
    """What tells a process to use that server."""
    return {"GOOGLE_BASE_URL": address, "GOOGLE_BEARER_TOKEN": "test"}
