"""`push`: copy a finished store to an object store, only what is not there yet, and make it visible last.

The flow:
 1. check every byte here, the licence, and that the place obeys preconditions (`probe`);
 2. compare what is there with what is to be: what is the same is left, and what no record proves ours (`records.py`)
    is refused before anything is written;
 3. shards, then the files beside them: each is created if it is absent, or replaced on condition of the version that
    was read in 2, and read back;
 4. the manifest, on condition that nobody has written one meanwhile.

Until 4 readers there see no store, or the one of before, whose shards all stay. A push that was broken off is run
again, and goes on: what it has sent is the same. A larger store may take the place of one that it contains.

The price: there is no condition on a file that is sent in parts; it is looked for just before it is sent.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
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
from softlabels.format.shard_records import ShardRecord
from softlabels.making.licences import require_spdx
from softlabels.making.place import PROBE
from softlabels.making.plan import read_plan
from softlabels.store.remote.addresses import writable
from softlabels.store.remote.client import Client
from softlabels.store.remote.files import RemoteFiles
from softlabels.store.remote.records import Records
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
        IntegrityError: the store is damaged, or something is there that no record proves to be of it.
        ConfigError: no licence, or no place to write to.
        RemoteError: out of reach, or it ignores preconditions.
    """
    if not writable(url):
        raise ConfigError(f"{url}: cannot be written file by file; push to s3://, gs:// or hf://")
    manifest, beside = shareable(store)
    client = Client(url)
    if not alone:
        probe(client)
    old = _present(url)
    if old is not None:
        check_grown(old, manifest, url)
    sender = _Sender(LocalFiles(store), client, old, alone=alone)
    if old is not None and old.digest == manifest.digest:
        if SIGNATURE in beside and not sender.has(SIGNATURE):  # signed since
            sender.send_beside(SIGNATURE)
        return transferred(manifest, sender.sent)
    progress = reporter or Silent()
    sender.look(manifest.shards, beside, progress)
    progress.stage("push", len(manifest.shards), "shards")
    several(sender.send, manifest.shards, progress.advance)
    several(sender.send_beside, [n for n in beside if n != SIGNATURE])
    if SIGNATURE in beside:
        sender.send_beside(SIGNATURE)
    sender.publish()
    return transferred(manifest, sender.sent)


def probe(client: Client) -> None:
    """Refuse (`RemoteError`) a place that lets a file be created twice: who write there would not notice each other."""
    name = f"{PROBE}{token_hex(8)}"
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
    """Sends files that are not there yet. Shared between threads.

    Args:
        old: the manifest that is there.
        alone: nobody else writes there, so that nothing is replaced on condition.
    """

    def __init__(
        self, source: LocalFiles, client: Client, old: Manifest | None, *, alone: bool
    ) -> None:
        self._source, self._client, self._alone = source, client, alone
        self._there = client.list() or {}
        self._records = Records(client, old, source)
        self._same, self._over = set[str](), dict[str, str]()
        """Files there that are as they are here; those that are replaced, with the version that was read."""
        self.sent: dict[str, int] = {}
        """Bytes of each file that travelled."""

    def has(self, name: str) -> bool:
        """Whether a file of this name was there when this began."""
        return name in self._there

    def look(
        self, shards: Sequence[ShardRecord], beside: Sequence[str], progress: Reporter
    ) -> None:
        """Compare what is there with what is to be, before anything is written; most of it is read.

        Raises:
            IntegrityError: names what no record proves to be of this store.
        """
        if self._records.old is None:
            ours = {s.name for s in shards}.union(beside)
            for name in sorted(self._there.keys() - ours):
                if not name.startswith(PROBE):  # of a push that was killed while it tried the place
                    raise self._foreign(name)
        there = [s for s in shards if s.name in self._there]
        for shard in there:
            if self._there[shard.name] != shard.bytes:
                raise self._foreign(shard.name)
        if there:
            progress.stage("compare", len(there), "shards")
        several(self._look_at, there, progress.advance)
        several(self._look_beside, [n for n in beside if n in self._there])

    def _look_at(self, shard: ShardRecord) -> None:
        known = self._records.has(shard.name)
        if not known and self._digest_there(shard.name, shard.bytes) != shard.sha256:
            raise self._foreign(shard.name)
        self._same.add(shard.name)

    def _look_beside(self, name: str) -> None:
        data = (self._source.root / name).read_bytes()
        limit = max(len(data), RECORD_LIMIT)
        if self._there[name] > limit:
            raise self._foreign(name)
        try:
            found, version = self._client.read_version(name, limit=limit)
        except FileNotFoundError:  # gone this moment
            return
        if found == data:
            self._same.add(name)
        elif self._records.prove(name, found):
            self._over[name] = version
        else:
            raise self._foreign(name)

    def send(self, shard: ShardRecord) -> None:
        """A shard, unless it is there."""
        name, path = shard.name, self._source.root / shard.name
        if name in self._same:
            return
        if shard.bytes > IN_PARTS:
            if self._client.size(name) is not None:  # in parts there is no condition
                raise self._meanwhile(name)
            self._client.put(name, path)
        elif (
            self._client.put_new(name, path) is None
            and self._digest_there(name, shard.bytes) != shard.sha256
        ):
            raise self._meanwhile(name)
        self._check(name, shard.bytes, shard.sha256)

    def send_beside(self, name: str) -> None:
        """A file beside the shards, unless the same is there."""
        if name in self._same:
            return
        data = (self._source.root / name).read_bytes()
        sha256, version = hashlib.sha256(data).hexdigest(), self._over.get(name)
        if version is None:
            done = self._client.put_new(name, data) is not None
        elif self._alone:
            self._client.put(name, data)
            done = True
        else:
            done = self._client.put_if(name, data, version) is not None
        if not done and self._digest_there(name, len(data)) != sha256:
            raise self._meanwhile(name)
        self._check(name, len(data), sha256)

    def _foreign(self, name: str) -> IntegrityError:
        begun = self._records.old is None and PLAN in self._there
        what = (
            f"a build, or a push of another store, was begun there ({PLAN}, and no {MANIFEST}); finish it, or choose "
            "another address"
            if begun
            else "choose another address, or delete it there if nobody needs it"
        )
        return IntegrityError(
            f"{self._client.root / name}: is there, and no record says that it is of this store, so nothing was sent: "
            f"{what}"
        )

    def _meanwhile(self, name: str) -> IntegrityError:
        return IntegrityError(
            f"{self._client.root / name}: somebody has put another file there meanwhile; choose another address"
        )

    def publish(self) -> None:
        """The manifest, in the place of the old one or of none."""
        data, old = (self._source.root / MANIFEST).read_bytes(), self._records.old
        if self._alone:
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
