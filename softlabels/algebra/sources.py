"""The stores that another is made from: opened, checked to the byte, and described."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from softlabels.core.progress import Reporter
from softlabels.core.records import PAGED_VERSION, check_file
from softlabels.domains import DOMAINS
from softlabels.errors import FormatError, IntegrityError, PlanError
from softlabels.format.encoding import input_digests, read_statistics
from softlabels.format.manifest import Manifest, Provenance, SourceRecord, Statistics
from softlabels.format.shard_records import ShardRecord
from softlabels.making.commit import Reused
from softlabels.store.reader import Store, open_store

DIGEST_BYTES = 16
"""Of a row's input digest. A domain whose files hold fewer has its rows decoded."""


@dataclass(frozen=True, kw_only=True)
class CheckedShard:
    """A shard of a source whose bytes are those of its record."""

    record: ShardRecord
    digests: bytes
    """Its rows' input digests, 16 bytes each."""
    file: Reused
    """As a shard of another store."""


def open_source(path: Path, out: Path) -> Store:
    """A store to make another from; what was stated of it since it was made is part of its identity here.

    Raises:
        FormatError: it is not one, or of a later version, whose additions would be lost.
        PlanError: it is the folder that is to be written.
    """
    store = open_store(path, cached_shards=1)
    ours, theirs = (int(v.split(".")[1]) for v in (PAGED_VERSION, store.manifest.version))
    if theirs > ours:
        raise FormatError(
            f"{path}: format version {store.manifest.version}, this softlabels reads {PAGED_VERSION}, and what the "
            "later version added would be lost; upgrade softlabels"
        )
    if out.resolve() == path.resolve():
        raise PlanError(
            f"{out}: is the source itself, which is never changed; choose another --out"
        )
    store.manifest = _restated(store.manifest)
    return store


def _restated(manifest: Manifest) -> Manifest:
    """With the licence that was stated last in its identity, which the new store's is made from."""
    identity = msgspec.structs.replace(manifest.identity, licence=manifest.licence)
    return msgspec.structs.replace(manifest, identity=identity, stated_licence=None)


def checked_shards(store: Store, report: Reporter) -> Iterator[CheckedShard]:
    """Every shard of a source, one in memory at a time; nothing but its digests is decoded.

    Raises:
        IntegrityError: a shard is damaged, or the rows are not those of the manifest's fingerprint.
    """
    manifest = store.manifest
    identity, fingerprint = manifest.identity, hashlib.sha256()
    whole = DOMAINS.load(identity.domain).digest_bytes == DIGEST_BYTES
    for i, record in enumerate(manifest.shards):
        file = store.folder / record.name
        data = check_file(file, sha256=record.sha256, size=record.bytes)
        digests = (
            input_digests(data, identity, rows=record.rows, where=str(file))
            if whole
            else b"".join(r.digest() for r in store.read_shard(i).rows)
        )
        fingerprint.update(digests)
        statistics = read_statistics(data, identity, where=str(file))
        again = reused(store, record, statistics)
        yield CheckedShard(record=record, digests=digests, file=again)
        report.advance(1)
    if fingerprint.hexdigest() != identity.corpus.fingerprint:
        raise IntegrityError(
            f"{store.path}: the rows are not those of the manifest's corpus fingerprint; copy the store again from its "
            "source"
        )


def reused(store: Store, record: ShardRecord, statistics: Statistics) -> Reused:
    """A shard of a source as one of another store; it cost its share of the source."""
    return Reused(
        file=store.folder / record.name,
        sha256=record.sha256,
        size=record.bytes,
        statistics=statistics,
        seconds=share_of_cost(store, record.positions),
    )


def share_of_cost(store: Store, positions: int) -> float:
    """Seconds of the teacher that some of a store's positions cost."""
    manifest = store.manifest
    return manifest.cost.seconds * positions / manifest.identity.corpus.positions


def files_of(store: Store, *folders: str) -> dict[str, bytes]:
    """A source's files beside the shards that lie in these folders, checked."""
    return {
        name: store.file(name) for name in store.manifest.files if name.split("/")[0] in folders
    }


def provenance_of(
    operation: str, parameters: dict[str, str], stores: Sequence[Store]
) -> Provenance:
    """What a manifest says of how its store was made."""
    return Provenance(
        operation=operation,
        parameters=parameters,
        sources=[
            SourceRecord(name=s.folder.resolve().name, content_digest=s.digest, rows=len(s))
            for s in stores
        ],
    )
