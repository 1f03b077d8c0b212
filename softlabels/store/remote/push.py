"""`push`: copy a finished store to an object store, only what is not there yet, and make it visible last.

The flow:
 1. check every byte here, the licence, and that the place obeys preconditions (`probe`);
 2. shards, then the files beside them: what is there already is read back and left, the rest is written and
    read back;
 3. the manifest, on condition that nobody has written one meanwhile.

Until 3 readers there see no store, or the one of before, whose shards all stay. A push that was broken off is run
again, and goes on. A larger store may take the place of one that it contains.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO, cast

from softlabels.core.progress import Reporter, Silent
from softlabels.core.records import RECORD_LIMIT
from softlabels.errors import ConfigError, FormatError, IntegrityError, RemoteError, StoreError
from softlabels.format.files import LocalFiles
from softlabels.format.manifest import (
    MANIFEST,
    PLAN,
    SIGNATURE,
    Manifest,
    load_manifest,
    read_manifest,
)
from softlabels.format.pages import pages_of
from softlabels.format.part import refuse_part
from softlabels.making.licences import require_spdx
from softlabels.making.plan import read_plan
from softlabels.store.remote.addresses import writable
from softlabels.store.remote.client import Client
from softlabels.store.remote.files import RemoteFiles
from softlabels.store.remote.transfer import (
    Transfer,
    check_grown,
    claimed_digest,
    commit_name,
    several,
    transferred,
)
from softlabels.store.remote.versions import Untold
from softlabels.store.verify import verify_store

IN_PARTS = 64 * 2**20
"""Bytes: a larger file goes in parts, each of which is tried again for itself."""


def shareable(store: Path) -> tuple[Manifest, list[str]]:
    """The manifest of a store that may be shared, every byte of it checked, and its other files but the shards.

    Raises:
        IntegrityError: damaged, or only a part of a store.
        ConfigError: its licence is not stated.
    """
    manifest = load_manifest(store)
    require_spdx(manifest.licence)
    refuse_part(store)
    problems = verify_store(store, deep=False).problems
    if problems:
        raise IntegrityError(f"{problems[0]} ({len(problems)} problems in all; nothing was sent)")
    pages = [p.name for p in pages_of(read_plan(store).shards, manifest.shards)]
    commits = (commit_name(i) for i in range(len(manifest.shards)))
    beside = [*manifest.files, *pages, PLAN, *commits]
    return manifest, beside + ([SIGNATURE] if (store / SIGNATURE).exists() else [])


def push(
    store: Path, url: str, *, alone: bool = False, reporter: Reporter | None = None
) -> Transfer:
    """Copy a store to `s3://…` or `gs://…`.

    Args:
        store: its folder.
        url: where it is to be; it may hold an earlier generation of the store.
        alone: the user's word that nobody else writes there, for a place that ignores preconditions.
        reporter: receives the progress, in shards.

    Raises:
        IntegrityError: the store is damaged, or another one is there.
        ConfigError: no licence, or no place to write to.
        RemoteError: out of reach, or it ignores preconditions.
    """
    if not writable(url):
        raise ConfigError(f"{url}: cannot be written file by file; push to s3://, gs:// or hf://")
    manifest, beside = shareable(store)
    client = Client(url)
    if not alone:
        probe(client)
    sender = _Sender(LocalFiles(store), client)
    old = _present(url)
    if old is not None:
        check_grown(old, manifest, url)
    if old is None or old.digest != manifest.digest:
        known = {s.name for s in old.shards} if old is not None else set()
        progress = reporter or Silent()
        progress.stage("push", len(manifest.shards), "shards")
        several(
            lambda s: sender.send(s.name, s.sha256, known=s.name in known, fresh=old is None),
            manifest.shards,
            progress.advance,
        )
        several(sender.send_small, [n for n in beside if n != SIGNATURE])
        if SIGNATURE in beside:
            sender.send_small(SIGNATURE)
        sender.publish(old, alone=alone)
    return transferred(manifest, sender.sent)


def probe(client: Client) -> None:
    """Refuse (`RemoteError`) a place that lets a file be created twice: who write there would not notice each other."""
    name = f".probe-{token_hex(8)}"
    try:
        first = client.put_new(name, b"first")
        second = client.put_new(name, b"second")
    except Untold:
        client.delete(name)
        raise
    client.delete(name)
    if first is None or second is not None:
        raise RemoteError(
            f"{client.root}: ignores preconditions (a file that was there was created once more), so several who "
            "write there at a time would overwrite each other unseen; use a service that obeys If-None-Match, or, if "
            "nobody else writes there, --alone"
        )


def _present(url: str) -> Manifest | None:
    """The manifest that is there; None: there is none."""
    try:
        return read_manifest(RemoteFiles(url))
    except FormatError as e:
        if isinstance(e.__cause__, FileNotFoundError):
            return None
        raise StoreError(f"{e}; delete what is there, or choose another address") from e


class _Sender:
    """Sends files that are not there yet. Shared between threads."""

    def __init__(self, source: LocalFiles, client: Client) -> None:
        self._source, self._client = source, client
        self._there = client.list() or {}
        self.sent: dict[str, int] = {}
        """Bytes of each file that travelled."""

    def send(self, name: str, sha256: str, *, known: bool, fresh: bool) -> None:
        """A shard, unless it is there; `known`: a manifest there vouches for it."""
        path = self._source.root / name
        size = path.stat().st_size
        if self._there.get(name) == size and (known or self._digest_there(name, size) == sha256):
            return
        if size > IN_PARTS or (fresh and name in self._there):
            self._client.put(name, path)
        elif self._client.put_new(name, path) is None and self._digest_there(name, size) != sha256:
            raise IntegrityError(
                f"{self._client.root / name}: somebody has put another file there meanwhile; choose another address"
            )
        self._check(name, size, sha256)

    def send_small(self, name: str) -> None:
        """A file beside the shards, unless the same is there."""
        data = (self._source.root / name).read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        if self._there.get(name) == len(data) and self._digest_there(name, len(data)) == sha256:
            return
        self._client.put(name, data)
        self._check(name, len(data), sha256)

    def publish(self, old: Manifest | None, *, alone: bool) -> None:
        """The manifest, in the place of `old` or of none."""
        data = (self._source.root / MANIFEST).read_bytes()
        if alone:
            self._client.put(MANIFEST, data)
        elif old is None:
            if self._client.put_new(MANIFEST, data) is None and self._now() != data:
                raise self._changed()
        elif (
            not self._client.put_over(MANIFEST, data, lambda now: claimed_digest(now) == old.digest)
            and self._now() != data
        ):
            raise self._changed()
        self._check(MANIFEST, len(data), hashlib.sha256(data).hexdigest())

    def _now(self) -> bytes:
        return self._client.read(MANIFEST, limit=RECORD_LIMIT)

    def _changed(self) -> StoreError:
        return StoreError(
            f"{self._client.root / MANIFEST}: somebody else has pushed there meanwhile; run the same command again"
        )

    def _check(self, name: str, size: int, sha256: str) -> None:
        """Read back what was sent."""
        if self._digest_there(name, size) != sha256:
            raise IntegrityError(
                f"{self._client.root / name}: what was read back is not what was sent; run the same command again"
            )
        self.sent[name] = size

    def _digest_there(self, name: str, size: int) -> str | None:
        """sha256 of a file there; None: missing, or of another size."""
        sink = _Hash()
        try:
            self._client.fetch(name, cast(BinaryIO, sink), 0, size, threading.Event())
        except (FileNotFoundError, IntegrityError):
            return None
        return sink.hexdigest()


class _Hash:
    """A sink that keeps only the digest of what is written to it."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._hash.update(data)

    def truncate(self, size: int) -> None:
        """Begin anew."""
        assert size == 0
        self._hash = hashlib.sha256()

    def seek(self, place: int) -> None:
        """Nothing: it is at its end always."""

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
