"""Checking a store: every file that the manifest names, and every file that it does not.

Of a part, the figures of its unsigned `part.json` are counted again from its shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from softlabels.core.durable import TEMPORARY
from softlabels.core.progress import Reporter, Silent
from softlabels.errors import SoftLabelsError
from softlabels.format.files import Recorded, StoreFiles
from softlabels.format.manifest import MANIFEST, SIGNATURE
from softlabels.format.part import PART, Counting
from softlabels.making.finish import MADE
from softlabels.making.plan import PLAN
from softlabels.making.quarantine import QUARANTINE
from softlabels.store.demand import Demand, Vouched, read_vouched
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
    known = {MANIFEST, PLAN, SIGNATURE}
    if part is not None:
        known |= {PART, *(s.name for s in manifest.shards)}  # more of them may have been pulled
        known |= {commit_name(i) for i in range(len(manifest.shards))}

    for name, record in manifest.files.items():
        known.add(name)
        again = f"; `softlabels repair {path}` makes it again" if name in MADE else ""
        with _noted(problems, again):
            source.checked(Recorded(name, record.sha256, record.bytes))
            files, size = files + 1, size + record.bytes
    plan = None
    with _noted(problems):
        plan = read_plan_record(source)

    counting, progress = Counting(), reporter or Silent()
    progress.stage("verify", len(store.manifest.shards), "shards")
    numbers = range(len(manifest.shards)) if part is None else part.shards
    for i, (number, shard) in enumerate(zip(numbers, store.manifest.shards, strict=True)):
        commit = commit_name(number)
        known |= {shard.name, commit}
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
    corpus = store.manifest.identity.corpus
    if deep and not problems:
        if part is not None:
            problems += counting.differences(part, where=root / PART)
        elif counting.fingerprint != corpus.fingerprint:
            problems.append(f"{root / MANIFEST}: the rows are not those of the corpus fingerprint")
    names = source.names()
    problems += _strangers(source, names or [], known)
    return Report(
        files=files + 1,
        bytes=size,
        rows=rows,
        positions=positions,
        problems=problems,
        quarantine=[n for n in names or [] if n.startswith(f"{QUARANTINE}/")],
        listed=names is not None,
        vouched=vouched,
    )


@contextmanager
def _noted(problems: list[str], way_out: str = "") -> Iterator[None]:
    """Add what is wrong to the problems, and go on."""
    try:
        yield
    except SoftLabelsError as e:
        problems.append(f"{e}{way_out}")


def _strangers(source: StoreFiles, names: list[str], known: set[str]) -> list[str]:
    """Files of the store that no record names."""
    found = []
    for name in names:
        file = source.root / name
        if name.rpartition("/")[2].startswith(TEMPORARY):
            found.append(
                f"{file}: left by a builder that died; run the same command again, which removes it"
            )
        elif name not in known and not name.startswith(f"{QUARANTINE}/"):
            found.append(
                f"{file}: no record of the store names it; look at it, and move it to where it belongs"
            )
    return found
