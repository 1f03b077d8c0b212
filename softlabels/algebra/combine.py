"""Several builds as one: whether they may be, and what is then said of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from softlabels.algebra.sources import CheckedShard, files_of
from softlabels.errors import PairingError
from softlabels.format.dictionaries import FOLDER
from softlabels.format.identity import (
    OPEN_PARTS,
    CorpusRecord,
    EncodingRecord,
    Identity,
    TeacherRecord,
)
from softlabels.format.shard_records import PlannedShard
from softlabels.making.same_job import RAN_ON, differences
from softlabels.store.reader import Store

APART = (*RAN_ON, "corpus", "licence", "images")
"""What stores may differ in that go together; their profile counts as `open` if it is `open-parts`."""


def check_same(
    first: Identity, other: Identity, *, where: Path, of: Path, licence: str | None
) -> None:
    """Refuse a store that is not of the same job but for its corpus.

    Raises:
        PairingError: names what differs, or its documents cannot be numbered on.
    """
    check_renumbers(first, where=of)
    without = (*APART, "encoding dictionary_shards", "encoding dictionary_sha256")
    for found in differences(_plain(first), _plain(other), without=without):
        raise PairingError(
            f"{where}: its {found.field} is {found.second!r}, that of {of} is "
            f"{found.first!r}; only stores of one teacher, tokenizer, estimator, temperature grid and encoding go "
            "together (`softlabels convert` and `subset` change encoding, k and grid)"
        )
    if licence is None and first.licence != other.licence:
        raise PairingError(
            f"{where}: its licence is {other.licence!r}, that of {of} is {first.licence!r}; say with --licence what "
            "holds for both together"
        )


def check_renumbers(identity: Identity, *, where: Path) -> None:
    """Refuse to put anything before or after a store whose documents cannot be numbered on.

    Raises:
        PairingError: its rows are views of images, which are drawn by the image's number.
    """
    if identity.images is not None:
        raise PairingError(
            f"{where}: holds views of images, which are drawn by the number of the image, so it cannot grow; build one "
            "store of all images (--corpus repeatable), or mix stores in training (--store A=0.5 --store B=0.5)"
        )


def _plain(identity: Identity) -> Identity:
    if identity.encoding.profile != OPEN_PARTS:
        return identity
    encoding = msgspec.structs.replace(identity.encoding, profile="open")
    return msgspec.structs.replace(identity, encoding=encoding)


def joined(values: Iterable[str]) -> str:
    """Different texts, each once, in order."""
    parts = (part for value in values for part in value.split("; "))
    return "; ".join(dict.fromkeys(parts))


def combined_teacher(records: Sequence[TeacherRecord]) -> TeacherRecord:
    """The first, and on what devices and engines all of them ran."""
    return msgspec.structs.replace(
        records[0],
        device=joined(r.device for r in records),
        engine=joined(r.engine for r in records),
    )


def document_count(identity: Identity) -> int:
    """By how much the documents of what comes next are numbered on."""
    corpus = identity.corpus
    return corpus.documents + corpus.skipped_empty + corpus.skipped_short


def combined_corpus(parts: Sequence[CorpusRecord], fingerprint: str) -> CorpusRecord:
    """One corpus after the other."""
    return CorpusRecord(
        specs=[spec for part in parts for spec in part.specs],
        fingerprint=fingerprint,
        seq_len=max(part.seq_len for part in parts),
        documents=sum(part.documents for part in parts),
        rows=sum(part.rows for part in parts),
        tokens=sum(part.tokens for part in parts),
        positions=sum(part.positions for part in parts),
        skipped_empty=sum(part.skipped_empty for part in parts),
        skipped_short=sum(part.skipped_short for part in parts),
        truncated=sum(part.truncated for part in parts),
        limit_rows=None,
    )


def combined_encoding(
    first: EncodingRecord, shards: Sequence[PlannedShard], any_dictionary: bool
) -> EncodingRecord:
    """The common encoding; `open-parts` if a shard counts its rows from another number than its place gives it."""
    profile = first.profile
    if first.plain and first.has_inputs:
        own = any(s.counts_from is not None for s in shards)
        profile = OPEN_PARTS if own else "open"
    return msgspec.structs.replace(
        first,
        profile=profile,
        dictionary_shards=0 if any_dictionary else None,
        dictionary_sha256=None,
    )


def dictionaries_of(stores: Sequence[Store]) -> dict[str, bytes]:
    """The dictionaries of all sources, each once."""
    found: dict[str, bytes] = {}  # by sha256
    for store in stores:
        for name, data in files_of(store, FOLDER).items():
            found.setdefault(store.manifest.files[name].sha256, data)
    return {f"{FOLDER}/{i:05d}.bin": data for i, data in enumerate(found.values())}


def planned_again(
    checked: Sequence[CheckedShard], *, plain: bool, start_row: int, documents: int
) -> list[PlannedShard]:
    """The shards of one source as shards of a store in which its rows begin at `start_row`.

    Args:
        checked: the source's shards, in order.
        plain: whether their files count rows.
        start_row: rows before them.
        documents: numbers of documents that are taken up before them.
    """
    planned: list[PlannedShard] = []
    for shard in checked:
        record = shard.record
        planned.append(
            PlannedShard(
                index=len(planned),
                name=record.name,
                start_row=start_row,
                rows=record.rows,
                positions=record.positions,
                document=0,
                offset=0,
                inputs_sha256=hashlib.sha256(shard.digests).hexdigest(),
                counts_from=record.first_row if plain and record.first_row != start_row else None,
                documents_from=(record.documents_from or 0) + documents or None,
            )
        )
        start_row += record.rows
    return planned
