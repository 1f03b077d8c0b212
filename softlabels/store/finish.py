"""Finishing a store: the card and, last, the manifest, from the plan and the commit records alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

import softlabels
from softlabels.store.card import card
from softlabels.store.commit import publish
from softlabels.store.dictionaries import DICTIONARY
from softlabels.store.manifest import (
    MANIFEST,
    Commit,
    CostRecord,
    FileRecord,
    Manifest,
    Plan,
    ShardRecord,
    Statistics,
    content_digest,
    load_manifest,
)
from softlabels.store.records import FORMAT, FORMAT_VERSION, canonical, seal

__all__ = ["CARD", "finish", "make_manifest", "statistics_of", "with_card"]

CARD = "README.md"


def finish(store: Path, plan: Plan, commits: Sequence[Commit]) -> Manifest:
    """Publish the card and the manifest of a store whose shards are all committed.

    A card that is there already is kept, and recorded as it is.
    """
    manifest = make_manifest(store, plan, commits)
    publish(store / CARD, card(manifest).encode())
    manifest = with_card(manifest, (store / CARD).read_bytes())
    publish(store / MANIFEST, canonical(manifest))
    return load_manifest(store)


def make_manifest(store: Path, plan: Plan, commits: Sequence[Commit]) -> Manifest:
    """What the manifest of a plan's commits says; its card is still to be added."""
    shards = [
        ShardRecord(
            name=c.name,
            sha256=c.sha256,
            bytes=c.bytes,
            start_row=p.start_row,
            rows=c.rows,
            positions=c.positions,
        )
        for p, c in zip(plan.shards, commits, strict=True)
    ]
    seconds = sum(c.seconds for c in commits)
    return Manifest(
        format=FORMAT,
        version=FORMAT_VERSION,
        created_by=f"softlabels {softlabels.__version__}",
        identity=plan.identity,
        shards=shards,
        files=plan.files | _dictionary(store),
        statistics=statistics_of(commits),
        cost=CostRecord(
            seconds=seconds,
            tokens_per_second=plan.identity.corpus.tokens / seconds if seconds else 0.0,
        ),
        content_digest=content_digest(plan.identity, shards),
        digest="0" * 64,
    )


def statistics_of(commits: Sequence[Commit]) -> Statistics:
    """Sums over shards."""
    nll = [c.statistics.teacher_nll for c in commits]
    positions = sum(c.positions for c in commits)
    soft = sum(c.statistics.soft_of(c.positions) for c in commits)
    labelled = sum(c.statistics.labelled_of(c.positions) for c in commits)
    return Statistics(
        kept_ids=sum(c.statistics.kept_ids for c in commits),
        kept_mass=[
            float(sum(values))
            for values in zip(*(c.statistics.kept_mass for c in commits), strict=True)
        ],
        teacher_nll=None if None in nll else float(sum(n for n in nll if n is not None)),
        soft_positions=None if soft == positions else soft,
        labelled=None if labelled == positions else labelled,
    )


def _dictionary(store: Path) -> dict[str, FileRecord]:
    """The dictionary that the build trained, or was given, if there is one."""
    path = store / DICTIONARY
    return {DICTIONARY: _file_record(path.read_bytes())} if path.exists() else {}


def _file_record(data: bytes) -> FileRecord:
    return FileRecord(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def with_card(manifest: Manifest, readme: bytes) -> Manifest:
    """The manifest with its card's digest, sealed."""
    return seal(
        msgspec.structs.replace(manifest, files=manifest.files | {CARD: _file_record(readme)})
    )
