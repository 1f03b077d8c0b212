"""`merge`: several builds of one job over different texts become one store; no shard is copied or coded again.

The flow:
 1. refuse stores that are not of one teacher, tokenizer, estimator, grid and encoding;
 2. read every shard once and compare it with its record, before anything is written;
 3. give each shard a second name in the new store, in order, and say in its record from what row number
    the file itself counts.

Memory: one shard, about a kilobyte for each shard, and 32 bytes for each row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from softlabels.algebra.combine import (
    check_same,
    combined_corpus,
    combined_encoding,
    combined_teacher,
    dictionaries_of,
    document_count,
    planned_again,
)
from softlabels.algebra.derive import derive
from softlabels.algebra.sources import checked_shards, files_of, open_source, provenance_of
from softlabels.core.progress import Reporter, Silent
from softlabels.errors import ConfigError
from softlabels.format.manifest import Manifest
from softlabels.format.shard_records import PlannedShard
from softlabels.making.commit import Reused


def merge(
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    licence: str | None = None,
    reporter: Reporter | None = None,
) -> Manifest:
    """Put the rows of stores one after the other.

    Args:
        sources: two or more stores.
        licence: of the new store, where those of the sources differ.

    Raises:
        PairingError: the stores are not of one job.
        PlanError: `out` holds something else.
        StoreError: a source is damaged; the disk is full, …
    """
    if len(sources) < 2:
        raise ConfigError("merge: give at least two stores")
    report, out = reporter or Silent(), Path(out)
    stores = [open_source(Path(s), out) for s in sources]
    identities = [s.manifest.identity for s in stores]
    for store, identity in zip(stores[1:], identities[1:], strict=True):
        check_same(
            identities[0], identity, where=store.folder, of=stores[0].folder, licence=licence
        )
    report.stage("check", sum(len(s.manifest.shards) for s in stores), "shards")
    digests = bytearray()
    planned: list[PlannedShard] = []
    shards: list[Reused] = []
    rows = documents = 0
    for store, identity in zip(stores, identities, strict=True):
        checked = list(checked_shards(store, report))
        digests += b"".join(s.digests for s in checked)
        plain = identity.encoding.plain
        planned += planned_again(checked, plain=plain, start_row=rows, documents=documents)
        shards += [s.file for s in checked]
        rows += len(store)
        documents += document_count(identity)
    if twice := rows - len(np.unique(np.frombuffer(digests, np.dtype("S16")))):
        report.notice(f"{twice} of {rows} rows have the same inputs as another one; all are kept")
    files = files_of(stores[0], "tokenizer") | dictionaries_of(stores)
    merged = msgspec.structs.replace(
        identities[0],
        teacher=combined_teacher([i.teacher for i in identities]),
        corpus=combined_corpus([i.corpus for i in identities], hashlib.sha256(digests).hexdigest()),
        encoding=combined_encoding(
            identities[0].encoding,
            planned,
            any(i.encoding.dictionary_shards is not None for i in identities),
        ),
        licence=licence or identities[0].licence,
    )
    parameters = {} if licence is None else {"licence": licence}
    provenance = provenance_of("merge", parameters, stores)
    shard_rows = max(s.rows for s in planned)
    return derive(out, merged, provenance, planned, shards, files, report, shard_rows=shard_rows)
