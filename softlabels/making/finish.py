"""Finishing a store: the card and, last, the manifest, from the plan, the commit records and the shards' footers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

import softlabels
from softlabels.core.durable import publish, sync_folder
from softlabels.core.records import (
    FORMAT,
    FORMAT_VERSION,
    PAGED_VERSION,
    FileRecord,
    canonical,
    file_record,
    read_file,
    seal,
)
from softlabels.errors import IntegrityError
from softlabels.format.containers.parquet import column_bytes
from softlabels.format.dictionaries import DICTIONARY
from softlabels.format.files import LocalFiles, Recorded
from softlabels.format.identity import Identity
from softlabels.format.manifest import (
    MANIFEST,
    Commit,
    CostRecord,
    Manifest,
    Plan,
    content_digest,
    load_manifest,
)
from softlabels.format.pages import Pages
from softlabels.format.shard_records import ManifestPages, ShardRecord
from softlabels.format.statistics import total
from softlabels.making.card import card
from softlabels.making.commit import shard_record
from softlabels.making.croissant import CROISSANT, croissant
from softlabels.making.pages import clear_pages, publish_page
from softlabels.making.quarantine import retract, sighting

CARD = "README.md"
MADE: dict[str, Callable[[Manifest], str]] = {CARD: card, CROISSANT: croissant}
"""Files that are made from the manifest alone. A store has the first; the other, if `softlabels card` was run."""


def finish(
    store: Path, plan: Plan, commits: Sequence[Commit], *, before: Manifest | None = None
) -> Manifest:
    """Publish the card and the manifest of a store whose shards are all committed.

    A card that is there already is kept, and recorded as it is; so are `croissant.json`, and what the manifest
    `before` says was measured and stated of the same shards.

    Raises:
        IntegrityError: a shard is not there, or not as long as its record says: somebody withdrew it. There is no
            manifest then, or not the one of this call.
    """
    check_shards(store, commits)
    for folder in {(store / c.name).parent for c in commits} | {store / "commits"}:
        sync_folder(folder)  # a builder that died may have published without this
    manifest, pages = make_manifest(store, plan, commits, before=before)
    for name, page in pages.items():
        publish_page(store, name, page)
    publish(store / CARD, card(manifest).encode())
    made = {name: store / name for name in MADE if (store / name).exists()}
    manifest = with_files(manifest, {name: read_file(path) for name, path in made.items()})
    ours = canonical(manifest)
    publish(store / MANIFEST, ours)
    seen = sighting(store / MANIFEST)
    try:
        check_shards(store, commits)  # `repair` may have withdrawn one since
    except IntegrityError:
        retract(store, store / MANIFEST, seen, lambda aside: aside.read_bytes() == ours)
        raise
    manifest = load_manifest(store)
    clear_pages(store, plan.shards, manifest.shards)
    return manifest


def check_shards(store: Path, shards: Sequence[Commit] | Sequence[ShardRecord]) -> None:
    """Refuse a store of which a shard is missing or torn; the bytes are not read.

    Raises:
        IntegrityError: names the first, and how many there are.
        UnreadableError: one cannot be looked at.
    """
    problems = []
    for shard in shards:
        try:
            LocalFiles(store).check_present(Recorded(shard.name, shard.sha256, shard.bytes))
        except IntegrityError as e:
            problems.append(str(e).partition(";")[0])
    if problems:
        raise IntegrityError(
            f"{problems[0]} ({len(problems)} of {len(shards)} shards are not there as recorded); run the same command "
            "again, which makes them again"
        )


def make_manifest(
    store: Path,
    plan: Plan,
    commits: Sequence[Commit],
    *,
    before: Manifest | None = None,
    columns: dict[str, int] | None = None,
) -> tuple[Manifest, dict[str, bytes]]:
    """What the manifest of a plan's commits says, and its pages, if the plan has pages; the card is still to be added.

    Args:
        before: a manifest of the same shards; what was measured and stated of them is kept.
        columns: bytes of each column in all shards; None: read from their footers, if they have any.
    """
    shards = [shard_record(p, c) for p, c in zip(plan.shards, commits, strict=True)]
    seconds = sum(c.seconds for c in commits)
    manifest = Manifest(
        format=FORMAT,
        version=FORMAT_VERSION,
        created_by=f"softlabels {softlabels.__version__}",
        identity=plan.identity,
        shards=shards,
        files=plan.files | _dictionary(store),
        statistics=total([(c.positions, c.statistics) for c in commits]),
        cost=CostRecord(
            seconds=seconds,
            tokens_per_second=plan.identity.corpus.tokens / seconds if seconds else 0.0,
        ),
        content_digest=content_digest(plan.identity, shards),
        digest="0" * 64,
        fidelity=None if before is None else before.fidelity,
        stated_licence=None if before is None else before.stated_licence,
        column_bytes=_column_bytes(store, plan, shards) if columns is None else columns,
        provenance=plan.provenance,
        compared_rows=plan.compared_rows,
    )
    if not isinstance(plan.shards, Pages):
        return manifest, {}
    return _paged(manifest, plan.shards)


def _paged(manifest: Manifest, plan: Pages) -> tuple[Manifest, dict[str, bytes]]:
    """With its shards in pages like the plan's, which are still to be published."""
    shards, files = ManifestPages.written(manifest.shards, like=plan)
    paged = msgspec.structs.replace(
        manifest,
        version=PAGED_VERSION,
        shards=shards,
        content_digest=content_digest(manifest.identity, shards),
    )
    return paged, files


def has_columns(identity: Identity) -> bool:
    """Whether the bytes of each column are recorded: of Parquet's own columns alone."""
    return (identity.encoding.profile, identity.encoding.container) == ("open", "parquet")


def _column_bytes(store: Path, plan: Plan, shards: Sequence[ShardRecord]) -> dict[str, int] | None:
    if not has_columns(plan.identity):
        return None
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(column_bytes(store / shard.name))
    return dict(total)


def _dictionary(store: Path) -> dict[str, FileRecord]:
    """The dictionary that the build trained, or was given, if there is one."""
    path = store / DICTIONARY
    return {DICTIONARY: file_record(read_file(path))} if path.exists() else {}


def with_files(manifest: Manifest, files: Mapping[str, bytes]) -> Manifest:
    """The manifest with the digests of files that were made from it, sealed."""
    records = {name: file_record(data) for name, data in files.items()}
    return seal(msgspec.structs.replace(manifest, files=manifest.files | records))
