"""Checking a store: every file that the manifest names, and every file that it does not.

Of a part, the figures of its unsigned `part.json` are counted again from its shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from softlabels.core.durable import TEMPORARY
from softlabels.core.progress import Reporter, Silent
from softlabels.errors import SoftLabelsError
from softlabels.format.files import Recorded, StoreFiles
from softlabels.format.manifest import MANIFEST, PLAN, SIGNATURE
from softlabels.format.pages import chunks, pages_of
from softlabels.format.part import PART, Counting
from softlabels.format.shard_records import ShardRecord
from softlabels.making.finish import MADE
from softlabels.making.quarantine import QUARANTINE
from softlabels.store.demand import Demand, Vouched, read_vouched
from softlabels.store.known import KnownNames
from softlabels.store.reader import Store
from softlabels.store.remote.cache import CacheOptions
from softlabels.store.remote.files import files_of
from softlabels.store.remote.transfer import (
    check_commit,
    commit_name,
    read_beside,
    read_plan_record,
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `verify_store` found."""

    files: int
    """Files compared with their recorded digest."""
    bytes: int
    rows: int
    positions: int
    problems: list[str] = field(default_factory=list)
    """Empty: the store is whole. Each names file, row where there is one, and the way out."""
    quarantine: list[str] = field(default_factory=list)
    """Files that were moved aside since nothing proves whose they are: no part of the store, and no problem."""
    listed: bool = True
    """Whether files that belong to no store were looked for; a web server does not list its files."""
    vouched: Vouched
    """What was checked, and who signed it."""


def verify_store(
    path: Path | str,
    *,
    deep: bool = True,
    reporter: Reporter | None = None,
    demand: Demand | None = None,
) -> Report:
    """Compare every file with its digest and, if `deep`, decode every shard and check every invariant.

    Args:
        path: folder of the store, or its address, of which every byte is then fetched anew, past the cache.
        deep: decode, too.
        reporter: receives the progress, in shards.
        demand: what the manifest must be, signed for instance.

    Raises:
        StoreError: the manifest itself cannot be read, or is not what is demanded; nothing else can then be trusted.
    """
    source = files_of(path, CacheOptions(gib=0))
    root = source.root
    vouched = read_vouched(source, demand)
    manifest, part = vouched.manifest, vouched.part
    store = Store(source, manifest, part=part, cached_shards=1)
    problems: list[str] = []
    files = size = rows = positions = 0
    known = KnownNames([MANIFEST, PLAN, SIGNATURE])
    for name, record in manifest.files.items():
        known.add(name)
        again = f"; `softlabels repair {path}` makes it again" if name in MADE else ""
        with _noted(problems, again):
            source.checked(Recorded(name, record.sha256, record.bytes))
            files, size = files + 1, size + record.bytes
    plan = None
    with _noted(problems):
        plan = read_plan_record(source)
    for page in pages_of(None if plan is None else plan.shards, manifest.shards):
        known.add(page.name)
        files, size = files + 1, size + page.bytes  # and read below
    for chunk in chunks(() if plan is None else plan.shards):
        with _noted(problems):
            chunk.read()

    counting, progress = Counting(), reporter or Silent()
    progress.stage("verify", len(store.manifest.shards), "shards")
    names = KnownNames()
    if part is not None:
        known.add(PART)
        for i, shard in enumerate(manifest.shards):  # more of them may have been pulled
            known.add(shard.name)
            known.add(commit_name(i))
    for chunk in chunks(store.manifest.shards):
        shards: Sequence[ShardRecord] = ()
        with _noted(problems):
            shards = chunk.read()
        for i, shard in enumerate(shards, chunk.first):
            commit = commit_name(i if part is None else part.shards[i])
            names.add(shard.name)
            known.add(shard.name)
            known.add(commit)
            with _noted(problems):
                check_commit(read_beside(source, commit), plan, shard.sha256, root / commit)
                if deep:
                    content, statistics = store.read_counted(i)
                    content.targets.validate(where=str(root / shard.name))
                    counting.add(content, statistics)
                else:
                    source.checked(Recorded(shard.name, shard.sha256, shard.bytes))
                files, size = files + 1, size + shard.bytes
                rows, positions = rows + shard.rows, positions + shard.positions
            progress.advance(1)
    if names.repeated():
        problems.append(f"{root / MANIFEST}: {names.repeated()} shards have the name of another")
    corpus = store.manifest.identity.corpus
    if deep and not problems:
        if part is not None:
            problems += counting.differences(part, where=root / PART)
        elif counting.fingerprint != corpus.fingerprint:
            problems.append(f"{root / MANIFEST}: the rows are not those of the corpus fingerprint")
    listing = source.names()
    strangers, quarantine = _strangers(source, listing or (), known)
    problems += strangers
    return Report(
        files=files + 1,
        bytes=size,
        rows=rows,
        positions=positions,
        problems=problems,
        quarantine=quarantine,
        listed=listing is not None,
        vouched=vouched,
    )


@contextmanager
def _noted(problems: list[str], way_out: str = "") -> Iterator[None]:
    """Add what is wrong to the problems, and go on."""
    try:
        yield
    except SoftLabelsError as e:
        problems.append(f"{e}{way_out}")


def _strangers(
    source: StoreFiles, names: Iterable[str], known: KnownNames
) -> tuple[list[str], list[str]]:
    """A sentence for each file that no record names, and the names of those that were moved aside."""
    found, aside = [], []
    for name in sorted(known.strangers(names)):
        file = source.root / name
        if name.rpartition("/")[2].startswith(TEMPORARY):
            found.append(
                f"{file}: left by a builder that died; run the same command again, which removes it"
            )
        elif name.startswith(f"{QUARANTINE}/"):
            aside.append(name)
        else:
            found.append(
                f"{file}: no record of the store names it; look at it, and move it to where it belongs"
            )
    return found, aside
