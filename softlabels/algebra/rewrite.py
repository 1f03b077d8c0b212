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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from softlabels.algebra.derive import derive
from softlabels.algebra.sources import files_of, provenance_of, reused, share_of_cost
from softlabels.core.progress import Reporter
from softlabels.core.records import read_file
from softlabels.core.rows import InputRow
from softlabels.errors import ConfigError, IntegrityError
from softlabels.format.dictionaries import FOLDER
from softlabels.format.encoding import read_statistics
from softlabels.format.identity import OPEN_PARTS, CorpusRecord, Identity
from softlabels.format.manifest import Manifest, Statistics
from softlabels.format.shard import Shard, inputs_digest, joined, take
from softlabels.format.shard_records import PlannedShard, ShardRecord
from softlabels.format.statistics import statistics_of
from softlabels.making.commit import Reused
from softlabels.making.one_shard import Made
from softlabels.making.plan import planned_shard
from softlabels.store.reader import Store

Runs = Sequence[tuple[int, npt.NDArray[np.int64]]]
"""What a new shard is made of: numbers of shards of the source, and which of their rows."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What stays of a source."""

    store: Store
    corpus: CorpusRecord
    planned: list[PlannedShard]
    """Shards of the new store."""
    cuts: list[Runs]
    """Of each what it is made of."""


def survey(
    store: Store,
    report: Reporter,
    choose: Callable[[Shard], npt.NDArray[np.bool_]] | None,
    *,
    most: int | None = None,
) -> Survey:
    """Decode the whole source, decide which rows stay, and cut them into shards.

    Args:
        choose: which rows of a shard stay, `[R]`, in shards as long as the longest of the source; None: all, and
            shards stay as they are cut.
        most: stop when so many rows stay.

    Raises:
        IntegrityError, TargetError: a damaged source.
        ConfigError: nothing stays.
    """
    report.stage("check", len(store.manifest.shards), "shards")
    planned: list[PlannedShard] = []
    cuts: list[Runs] = []
    rows: list[InputRow] = []
    runs: list[tuple[int, npt.NDArray[np.int64]]] = []
    digests, tokens, stay = hashlib.sha256(), 0, 0

    def close() -> None:
        if rows:
            planned.append(planned_shard(rows, start_row=stay - len(rows)))
            cuts.append(tuple(runs))
        rows.clear()
        runs.clear()

    for i, record in enumerate(store.manifest.shards):
        shard = store.read_shard(i)
        shard.targets.validate(where=str(store.path / record.name))
        places = np.arange(len(shard.rows)) if choose is None else np.flatnonzero(choose(shard))
        if most is not None:
            places = places[: most - stay]
        while len(places):
            room = len(places) if choose is None else longest(store) - len(rows)
            part, places = places[:room], places[room:]
            runs.append((i, part))
            for row in (shard.rows[int(r)] for r in part):
                digests.update(row.digest())
                tokens += row.size
                rows.append(row)
            stay += len(part)
            if choose is None or len(rows) == longest(store):
                close()
        report.advance(1)
        if stay == most:
            break
    close()
    positions = sum(p.positions for p in planned)
    if not positions:
        raise ConfigError(
            f"{store.path}: nothing stays ({stay} rows, no position); a store holds at least one"
        )
    corpus = msgspec.structs.replace(
        store.manifest.identity.corpus,
        fingerprint=digests.hexdigest(),
        rows=stay,
        tokens=tokens,
        positions=positions,
        limit_rows=None,
    )
    return Survey(store=store, corpus=corpus, planned=planned, cuts=cuts)


def longest(store: Store) -> int:
    """Rows of the longest shard."""
    return max(s.rows for s in store.manifest.shards)


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
    """Publish what a survey found as a store of its own; its identity's corpus is made here.

    Args:
        change: what becomes of targets.
        files: beside the shards; None: those of the source, dictionaries too.
    """
    store = found.store
    old = store.manifest.identity
    identity = msgspec.structs.replace(identity, corpus=found.corpus)
    if files is None:
        files = files_of(store, "tokenizer", FOLDER)
    source = _Source(store, identity, change)
    same = change is None and store.view is None and _coding(old) == _coding(identity)
    planned: list[PlannedShard] = []
    shards: list[Reused | Callable[[PlannedShard], Made]] = []
    for shard, runs in zip(found.planned, found.cuts, strict=True):
        whole = _whole(store, runs)
        in_place = whole is not None and whole.first_row == shard.start_row
        if same and whole is not None and (in_place or not old.encoding.plain):  # which counts rows
            documents = whole.documents_from
            planned.append(msgspec.structs.replace(shard, documents_from=documents))
            shards.append(reused(store, whole, _statistics(store, whole)))
        else:
            planned.append(shard)
            shards.append(partial(source.make, runs))
    provenance = provenance_of(operation, parameters, [store])
    rows = longest(store)
    return derive(out, identity, provenance, planned, shards, files, report, shard_rows=rows)


def _whole(store: Store, runs: Runs) -> ShardRecord | None:
    """The shard of the source that these are all rows of."""
    (index, places), *more = runs
    record = store.manifest.shards[index]
    return record if not more and len(places) == record.rows else None


def _coding(identity: Identity) -> tuple[str, str, str]:
    e = identity.encoding
    return ("open" if e.profile == OPEN_PARTS else e.profile, e.container, e.values)


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

    def make(self, runs: Runs, planned: PlannedShard) -> Made:
        """A new shard.

        Raises:
            IntegrityError: its rows are not the ones that were planned.
        """
        store, whole = self.store, _whole(self.store, runs)
        parts = [take(self._shard(i), places) for i, places in runs]
        content = joined(parts, planned.start_row)
        if inputs_digest(content.rows) != planned.inputs_sha256:
            raise IntegrityError(
                f"{store.path}: changed while it was read; run the same command again"
            )
        nll = None if whole is None else _statistics(store, whole).teacher_nll
        content = content if self.change is None else self.change(content)
        return Made(
            content=content,
            statistics=statistics_of(content.targets, content.rows, self.identity, nll=nll),
            seconds=share_of_cost(store, planned.positions),
        )

    def _shard(self, index: int) -> Shard:
        if self._held is None or self._held[0] != index:
            self._held = None  # let go of it first
            self._held = (index, self.store.read_shard(index, keep_logp=self.store.view is None))
        return self._held[1]
