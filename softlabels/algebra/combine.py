"""Several builds as one: whether they may be, and what is then said of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from softlabels.algebra.derive import Piece, Reused
from softlabels.algebra.sources import Scanned, files_of
from softlabels.errors import PairingError
from softlabels.format.dictionaries import FOLDER
from softlabels.format.identity import (
    OPEN_PARTS,
    CorpusRecord,
    EncodingRecord,
    Identity,
    TeacherRecord,
)
from softlabels.format.manifest import PlannedShard
from softlabels.store.reader import Store

__all__ = [
    "check_renumbers",
    "check_same",
    "combined_corpus",
    "combined_encoding",
    "combined_teacher",
    "dictionaries_of",
    "document_count",
    "joined",
    "reused_pieces",
]

TEACHER = ("weights_sha256", "dtype", "vocab_size")
"""Of the teacher what must be the same. Where it lay, and what ran it, may differ, and is recorded."""


def check_same(
    first: Identity, other: Identity, *, where: Path, of: Path, licence: str | None
) -> None:
    """Refuse a store that is not of the same job but for its corpus.

    Raises:
        PairingError: names what differs, or its documents cannot be numbered on.
    """
    check_renumbers(first, where=of)
    for part, names in (
        ("teacher", TEACHER),
        ("tokenizer", ("sha256",)),
        ("targets", None),
        ("encoding", ("container", "values", "relative_error", "absolute_error")),
    ):
        mine, theirs = (msgspec.to_builtins(getattr(identity, part)) for identity in (first, other))
        for name in names or sorted(mine.keys() | theirs.keys()):
            _compare(f"{part} {name}", mine.get(name), theirs.get(name), where, of)
    _compare("profile", _profile(first), _profile(other), where, of)
    for name in ("domain", "label_shift", "classes", "masking", "hidden", "summary"):
        _compare(name, getattr(first, name), getattr(other, name), where, of)
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


def _profile(identity: Identity) -> str:
    return "open" if identity.encoding.profile == OPEN_PARTS else identity.encoding.profile


def _compare(what: str, mine: Any, theirs: Any, where: Path, of: Path) -> None:
    if mine != theirs:
        raise PairingError(
            f"{where}: its {what} is {theirs!r}, that of {of} is {mine!r}; only stores of one teacher, tokenizer, "
            "estimator, temperature grid and encoding go together (`softlabels convert` and `subset` change encoding, "
            "k and grid)"
        )


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


def reused_pieces(scanned: Iterable[Scanned], *, start_row: int, documents: int) -> list[Piece]:
    """The shards of one source as shards of a store in which its rows begin at `start_row`.

    Args:
        scanned: the source's shards, in order.
        start_row: rows before them.
        documents: numbers of documents that are taken up before them.
    """
    pieces: list[Piece] = []
    for shard in scanned:
        record = shard.record
        numbering = record.numbering
        plain = shard.store.manifest.identity.encoding.plain
        planned = PlannedShard(
            index=len(pieces),
            name=record.name,
            start_row=start_row,
            rows=record.rows,
            positions=record.positions,
            document=0,
            offset=0,
            inputs_sha256=shard.inputs_sha256,
            counts_from=numbering.row if plain and numbering.row != start_row else None,
            documents_from=numbering.documents + documents or None,
        )
        reused = Reused(
            file=shard.file,
            sha256=record.sha256,
            bytes=record.bytes,
            statistics=shard.statistics,
            seconds=shard.seconds,
        )
        pieces.append(Piece(planned=planned, source=reused))
        start_row += record.rows
    return pieces
