"""A part of a store: some of its whole shards beside the whole manifest, as `softlabels pull --share` leaves it.

The manifest stays byte for byte the origin's, so that whoever vouched for it vouches for the part, too; `part.json`
says which shards are there. Opened, they are a store of their own: rows are numbered from 0, and the content digest,
on which a trainer's order depends, is of the part.
"""

from __future__ import annotations

import hashlib
from itertools import accumulate
from pathlib import Path

import msgspec

from softlabels.errors import FormatError, IntegrityError
from softlabels.store.files import StoreFiles
from softlabels.store.identity import CorpusRecord, Count, Sha256
from softlabels.store.manifest import Manifest, Statistics
from softlabels.store.records import Record, canonical, parse_record

__all__ = ["PART", "Part", "part_manifest", "read_part", "refuse_part"]

PART = "part.json"


class Part(Record, frozen=True, kw_only=True):
    """Which shards of a store are in a folder, and what they hold."""

    format: str
    version: str
    whole: Sha256
    """Digest of the manifest that lies beside it."""
    shards: list[Count]
    """Numbers of the shards that are there, ascending."""
    corpus: CorpusRecord
    """The manifest's, but the counts and the fingerprint are of these shards."""
    statistics: Statistics
    digest: Sha256


def refuse_part(store: Path) -> None:
    """Refuse a folder that holds only some of a store's shards, for what would change its manifest or vouch for it.

    Raises:
        IntegrityError: it does.
    """
    if (store / PART).exists():
        raise IntegrityError(
            f"{store}: is a part of a store; pull the rest of it first (`softlabels pull URL {store}`)"
        )


def read_part(files: StoreFiles, manifest: Manifest) -> Part | None:
    """The record of a part; None: the store is whole.

    Raises:
        IntegrityError: it is of another store.
        FormatError: it names shards that do not exist, or not these rows.
    """
    try:
        data = files.record(PART)
    except (FileNotFoundError, NotADirectoryError):
        return None
    where = files.root / PART
    part = parse_record(data, Part, where=where)
    if part.whole != manifest.digest:
        raise IntegrityError(
            f"{where}: is of another store than the manifest beside it; run `softlabels pull` again"
        )
    own = part.shards
    if not own or own != sorted(set(own)) or own[-1] >= len(manifest.shards):
        raise FormatError(
            f"{where}: names the shards {own[:8]}, expected numbers below {len(manifest.shards)}, ascending"
        )
    held = [manifest.shards[i] for i in own]
    found = (sum(s.rows for s in held), sum(s.positions for s in held))
    if found != (part.corpus.rows, part.corpus.positions):
        raise FormatError(
            f"{where}: says {part.corpus.rows} rows and {part.corpus.positions} positions, its shards have {found[0]} "
            f"and {found[1]}"
        )
    if len(part.statistics.kept_mass) != len(manifest.statistics.kept_mass):
        raise FormatError(f"{where}: its kept_mass is of another grid than the manifest's")
    return part


def part_manifest(manifest: Manifest, part: Part) -> Manifest:
    """What the manifest of these shards alone would say; rows are numbered from 0."""
    held = [manifest.shards[i] for i in part.shards]
    starts = [0, *accumulate(s.rows for s in held)]
    content = canonical({"whole": manifest.content_digest, "shards": part.shards})
    return msgspec.structs.replace(
        manifest,
        identity=msgspec.structs.replace(manifest.identity, corpus=part.corpus),
        shards=[
            msgspec.structs.replace(s, start_row=start, counts_from=s.numbering.row)
            for s, start in zip(held, starts, strict=False)
        ],
        statistics=part.statistics,
        content_digest=hashlib.sha256(content).hexdigest(),
    )
