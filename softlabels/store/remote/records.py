"""What proves that a file at an address is of the store that a push grows, and may be replaced."""

from __future__ import annotations

import binascii
import hashlib

import msgspec

from softlabels.core.records import RECORD_LIMIT, Record, parse_record
from softlabels.errors import StoreError
from softlabels.format.files import LocalFiles
from softlabels.format.manifest import MANIFEST, PLAN, SIGNATURE, Commit, Manifest, Plan
from softlabels.store.remote.client import Client


class Records:
    """The records of the store that is at an address, if there is one.

    Args:
        old: its manifest.
        source: the store that is to take its place.
    """

    def __init__(self, client: Client, old: Manifest | None, source: LocalFiles) -> None:
        self.old = old
        self._shards = set[str]() if old is None else {s.name for s in old.shards}
        self._manifests = [(source.root / MANIFEST).read_bytes()]
        if old is not None:
            self._manifests.append(client.read(MANIFEST, limit=RECORD_LIMIT))

    def has(self, shard: str) -> bool:
        """Whether the manifest that is there vouches for a shard."""
        return shard in self._shards

    def prove(self, name: str, found: bytes) -> bool:
        """Whether a file beside the shards is what the store's manifest records, or is sealed, or signs a manifest.

        A signature is the store's if it is of the manifest that is there, or of the one that is to come.
        """
        if self.old is None:
            return False
        if name == SIGNATURE:
            return any(_signs(found, manifest) for manifest in self._manifests)
        kind: type[Record] | None = Plan if name == PLAN else None
        kind = Commit if name.startswith("commits/") else kind
        if kind is not None:
            return _is_sealed(found, kind)
        record = self.old.files.get(name)
        return record is not None and hashlib.sha256(found).hexdigest() == record.sha256


def _is_sealed(found: bytes, kind: type[Record]) -> bool:
    try:
        parse_record(found, kind, where=kind.__name__)
    except StoreError:
        return False
    return True


def _signs(signature: bytes, manifest: bytes) -> bool:
    """Whether a signature says that it is of these bytes; whose it is nobody asks here."""
    try:
        payload = msgspec.json.decode(signature)["dsseEnvelope"]["payload"]
        statement = binascii.a2b_base64(payload)
    except (
        msgspec.DecodeError,
        UnicodeDecodeError,
        RecursionError,
        LookupError,
        TypeError,
        ValueError,
    ):
        return False
    return hashlib.sha256(manifest).hexdigest().encode() in statement
