"""Rows of a store written again, all or some of them: what subset, view and convert have in common.

The flow:
 1. decode every shard of the source once (which checks it), ask which of its rows stay, and cut what stays
    into the shards of the new store;
 2. publish the plan; then decode again what each new shard needs, change it, encode it.

A new shard that is a whole old one, unchanged, is that file. Memory: a shard of the source, two of the new
store, and 8 bytes for each row that stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from softlabels.algebra.derive import derive
from softlabels.algebra.sources import files_of, provenance_of, share_of_cost
from softlabels.core.progress import Reporter
from softlabels.core.records import read_file
from softlabels.core.rows import InputRow
from softlabels.errors import ConfigError, IntegrityError
from softlabels.format.dictionaries import FOLDER
from softlabels.format.encoding import read_statistics
from softlabels.format.identity import OPEN_PARTS, Identity
from softlabels.format.manifest import Manifest, PlannedShard, ShardRecord, Statistics
from softlabels.format.shard import Shard, inputs_digest, joined, take
from softlabels.format.statistics import statistics_of
from softlabels.making.commit import Reused
from softlabels.making.job import Made
from softlabels.store.reader import Store

__all__ = ["Survey", "rewrite", "survey"]

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A shard of the new store: which rows of which shards of the source."""

    runs: list[tuple[int, Places]]
    whole: bool
    """Whether it is all rows of one shard."""
    rows: int
    positions: int
    inputs_sha256: str


@dataclass(kw_only=True)
class Survey:
    """What stays of a source."""

    store: Store
    shard_rows: int
    """Of the largest shard of the source."""
    cuts: list[Cut] = field(default_factory=list)
    fingerprint: str = ""
    rows: int = 0
    tokens: int = 0
    positions: int = 0
    soft: int = 0
    """Positions that have a soft target."""


def survey(
    store: Store,
    report: Reporter,
    choose: Callable[[Shard], npt.NDArray[np.bool_]] | None,
    *,
    most: int | None = None,
) -> Survey:
    """Decode the whole source, decide which rows stay, and cut them into shards.

    Args:
        store: perhaps seen through a view.
        report: told of progress.
        choose: which rows of a shard stay, `[R]`, in shards as long as the longest of the source; None: all, and
            shards stay as they are cut.
        most: stop when so many rows stay.

    Raises:
        IntegrityError, TargetError: a damaged source.
        ConfigError: nothing stays.
    """
    shard_rows = max(s.rows for s in store.manifest.shards)
    found, digests = Survey(store=store, shard_rows=shard_rows), hashlib.sha256()
    report.stage("check", len(store.manifest.shards), "shards")
    rows: list[InputRow] = []
    runs: list[tuple[int, Places]] = []

    def close(whole: bool) -> None:
        digests.update(b"".join(r.digest() for r in rows))
        found.cuts.append(
            Cut(
                runs=list(runs),
                whole=whole,
                rows=len(rows),
                positions=sum(r.n for r in rows),
                inputs_sha256=inputs_digest(rows),
            )
        )
        rows.clear()
        runs.clear()

    for i, record in enumerate(store.manifest.shards):
        shard = store.read_shard(i)
        shard.targets.validate(where=str(store.path / record.name))
        places = np.arange(len(shard.rows)) if choose is None else np.flatnonzero(choose(shard))
        if most is not None:
            places = places[: most - found.rows]
        found.rows += len(places)
        found.tokens += sum(shard.rows[int(r)].size for r in places)
        stay = take(shard, places)
        found.positions += stay.targets.n
        found.soft += int(stay.targets.soft.sum())
        while len(places):
            room = len(places) if choose is None else shard_rows - len(rows)
            part, places = places[:room], places[room:]
            whole = not rows and len(part) == len(shard.rows)
            runs.append((i, part))
            rows += [shard.rows[int(r)] for r in part]
            if choose is None or len(rows) == shard_rows:
                close(whole)
        report.advance(1)
        if most is not None and found.rows == most:
            break
    if rows:
        close(len(runs) == 1 and len(rows) == store.manifest.shards[runs[0][0]].rows)
    if not found.positions:
        raise ConfigError(
            f"{store.path}: nothing stays ({found.rows} rows, no position); a store holds at least one"
        )
    found.fingerprint = digests.hexdigest()
    return found


def rewrite(
    found: Survey,
    out: Path,
    identity: Identity,
    operation: str,
    parameters: dict[str, str],
    report: Reporter,
    *,
    change: Callable[[Shard], Shard] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Manifest:
    """Publish what a survey found as a store of its own.

    Args:
        found: which rows.
        out: the new store's folder.
        identity: of the new store; its corpus is made here.
        operation, parameters: of the provenance.
        report: told of progress.
        change: what becomes of targets.
        files: beside the shards; None: those of the source, dictionaries too.
    """
    store = found.store
    old = store.manifest.identity
    corpus = msgspec.structs.replace(
        old.corpus,
        fingerprint=found.fingerprint,
        rows=found.rows,
        tokens=found.tokens,
        positions=found.positions,
        limit_rows=None,
    )
    identity = msgspec.structs.replace(identity, corpus=corpus)
    if files is None:
        files = files_of(store, "tokenizer", FOLDER)
    source = _Source(store, identity, change)
    same = change is None and store.view is None and _coding(old) == _coding(identity)
    planned: list[PlannedShard] = []
    shards: list[Reused | Callable[[PlannedShard], Made]] = []
    start = 0
    for cut in found.cuts:
        whole = store.manifest.shards[cut.runs[0][0]] if same and cut.whole else None
        if whole is not None and old.encoding.plain and whole.numbering.row != start:
            whole = None  # its file counts its rows from elsewhere
        planned.append(_planned(cut, start, whole))
        shards.append(partial(source.make, cut) if whole is None else _reused(store, whole))
        start += cut.rows
    provenance = provenance_of(operation, parameters, [store])
    return derive(
        out, identity, provenance, planned, shards, files, report, shard_rows=found.shard_rows
    )


def _coding(identity: Identity) -> tuple[str, str, str]:
    e = identity.encoding
    return ("open" if e.profile == OPEN_PARTS else e.profile, e.container, e.values)


def _planned(cut: Cut, start: int, whole: ShardRecord | None) -> PlannedShard:
    return PlannedShard(
        index=0,
        name="unnamed",
        start_row=start,
        rows=cut.rows,
        positions=cut.positions,
        document=0,
        offset=0,
        inputs_sha256=cut.inputs_sha256,
        documents_from=None if whole is None else whole.numbering.documents or None,
    )


def _reused(store: Store, record: ShardRecord) -> Reused:
    return Reused(
        file=store.folder / record.name,
        sha256=record.sha256,
        size=record.bytes,
        statistics=_statistics(store, record),
        seconds=share_of_cost(store, record.positions),
    )


def _statistics(store: Store, record: ShardRecord) -> Statistics:
    file = store.folder / record.name
    return read_statistics(read_file(file), store.manifest.identity, where=str(file))


@dataclass(eq=False)
class _Source:
    """Reads what new shards are made of; holds one decoded shard, so that it is read once for all that need it."""

    store: Store
    identity: Identity
    """Of the new store."""
    change: Callable[[Shard], Shard] | None
    _held: tuple[int, Shard] | None = field(default=None, init=False)

    def make(self, cut: Cut, planned: PlannedShard) -> Made:
        """A new shard.

        Raises:
            IntegrityError: its rows are not the ones that were planned.
        """
        store = self.store
        parts = [take(self._shard(i), places) for i, places in cut.runs]
        content = joined(parts, planned.start_row)
        if inputs_digest(content.rows) != planned.inputs_sha256:
            raise IntegrityError(
                f"{store.path}: changed while it was read; run the same command again"
            )
        nll = None
        if cut.whole:
            nll = _statistics(store, store.manifest.shards[cut.runs[0][0]]).teacher_nll
        content = content if self.change is None else self.change(content)
        return Made(
            content=content,
            statistics=statistics_of(content.targets, content.rows, self.identity, nll=nll),
            seconds=share_of_cost(store, cut.positions),
        )

    def _shard(self, index: int) -> Shard:
        if self._held is None or self._held[0] != index:
            self._held = None  # let go of it first
            self._held = (index, self.store.read_shard(index, keep_logp=self.store.view is None))
        return self._held[1]
