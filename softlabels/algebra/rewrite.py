"""Rows of a store written again, all or some of them: what subset, view and convert have in common.

The flow:
 1. decode every shard of the source once (which checks it), ask which of its rows stay, and cut what stays
    into the shards of the new store;
 2. publish the plan; then decode again what each new shard needs, change it, encode it.

A new shard that is a whole old one, unchanged, is that file. Memory: a shard of the source, one of the new
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

from softlabels.algebra.derive import Made, Piece, Reused, derive, make_plan, named
from softlabels.algebra.sources import files_of, provenance_of, share_of_cost
from softlabels.codecs.codebook import Codebook
from softlabels.core.progress import Reporter
from softlabels.core.records import read_file
from softlabels.core.rows import InputRow
from softlabels.core.targets import SoftTargets
from softlabels.errors import ConfigError, IntegrityError
from softlabels.format.dictionaries import FOLDER
from softlabels.format.encoding import read_statistics
from softlabels.format.identity import OPEN_PARTS, Identity
from softlabels.format.manifest import Manifest, PlannedShard
from softlabels.format.shard import Shard, inputs_digest
from softlabels.store.reader import Store

__all__ = ["Survey", "rewrite", "survey", "take"]

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
    shard_rows: int,
    most: int | None = None,
) -> Survey:
    """Decode the whole source, decide which rows stay, and cut them into shards.

    Args:
        store: perhaps seen through a view.
        report: told of progress.
        choose: which rows of a shard stay, `[R]`; None: all, and shards stay as they are cut.
        shard_rows: rows of a new shard, if some rows may go.
        most: stop when so many rows stay.

    Raises:
        IntegrityError, TargetError: a damaged source.
        ConfigError: nothing stays.
    """
    found, digests = Survey(store=store), hashlib.sha256()
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


def take(shard: Shard, places: Places) -> Shard:
    """Some rows of a shard, as if they were one."""
    if len(places) == len(shard.rows):
        return shard
    at = shard.offsets
    index = np.concatenate(
        [np.zeros(0, np.int64), *(np.arange(at[r], at[r + 1]) for r in places)]
    ).astype(np.int64)
    return Shard(
        start_row=shard.start_row,
        rows=[shard.rows[int(r)] for r in places],
        targets=shard.targets[index],
        logp=None if shard.logp is None else shard.logp[index],
    )


def _join(parts: list[Shard], start_row: int) -> Shard:
    targets = SoftTargets.concatenate([p.targets for p in parts])
    logp = None
    if all(p.logp is not None for p in parts):
        logp = np.full((targets.n, targets.k), -np.inf, np.float32)
        at = 0
        for p in parts:
            assert p.logp is not None
            logp[at : at + p.targets.n, : p.targets.k] = p.logp
            at += p.targets.n
    rows = [row for p in parts for row in p.rows]
    return Shard(start_row=start_row, rows=rows, targets=targets, logp=logp)


def rewrite(
    found: Survey,
    out: Path,
    identity: Identity,
    operation: str,
    parameters: dict[str, str],
    report: Reporter,
    *,
    shard_rows: int,
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
        shard_rows: as in the survey.
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
    source = _Source(store, change, _dictionary(store, identity, files))
    same = change is None and store.view is None
    same = same and _coding(old) == _coding(identity)
    pieces: list[Piece] = []
    start = 0
    for cut in found.cuts:
        piece = _reused(store, cut, start) if same and cut.whole else None
        if piece is None:
            planned = _planned(cut, start)
            piece = Piece(planned=planned, source=partial(source.make, cut, start))
        pieces.append(piece)
        start += cut.rows
    shards = named(pieces, identity)
    plan = make_plan(
        identity,
        provenance_of(operation, parameters, [store]),
        shards,
        files,
        shard_rows=shard_rows,
    )
    return derive(out, plan, files, pieces, report)


def _coding(identity: Identity) -> tuple[str, str, str]:
    e = identity.encoding
    return ("open" if e.profile == OPEN_PARTS else e.profile, e.container, e.values)


def _planned(cut: Cut, start: int) -> PlannedShard:
    return PlannedShard(
        index=0,
        name="unnamed",
        start_row=start,
        rows=cut.rows,
        positions=cut.positions,
        document=0,
        offset=0,
        inputs_sha256=cut.inputs_sha256,
    )


def _reused(store: Store, cut: Cut, start: int) -> Piece | None:
    """The whole shard, if its file may serve under this row number."""
    record = store.manifest.shards[cut.runs[0][0]]
    encoding, numbering = store.manifest.identity.encoding, record.numbering
    if encoding.plain and numbering.row != start:
        return None
    file = store.folder / record.name
    return Piece(
        planned=msgspec.structs.replace(
            _planned(cut, start), documents_from=numbering.documents or None
        ),
        source=Reused(
            file=file,
            sha256=record.sha256,
            bytes=record.bytes,
            statistics=read_statistics(read_file(file), store.manifest.identity, where=str(file)),
            seconds=share_of_cost(store, record.positions),
        ),
    )


def _dictionary(store: Store, identity: Identity, files: Mapping[str, bytes]) -> Codebook | None:
    """What new packed shards are coded with: the first dictionary among the files, if one is of use."""
    if identity.encoding.plain:
        return None
    for name, data in sorted(files.items()):
        if name.startswith(f"{FOLDER}/"):
            book = Codebook.from_bytes(
                data, vocab_size=identity.teacher.vocab_size, where=str(store.path / name)
            )
            return book if len(book.order) else None
    return None


class _Source:
    """Reads, for one new shard after the other, what it is made of; holds one decoded shard."""

    def __init__(
        self,
        store: Store,
        change: Callable[[Shard], Shard] | None,
        dictionary: Codebook | None,
    ) -> None:
        self._store, self._change, self._dictionary = store, change, dictionary
        self._held: tuple[int, Shard] | None = None

    def _shard(self, index: int) -> Shard:
        if self._held is None or self._held[0] != index:
            self._held = None  # let go of it first
            self._held = (index, self._store.read_shard(index, keep_logp=self._store.view is None))
        return self._held[1]

    def make(self, cut: Cut, start: int) -> Made:
        content = _join([take(self._shard(i), places) for i, places in cut.runs], start)
        if inputs_digest(content.rows) != cut.inputs_sha256:
            raise IntegrityError(
                f"{self._store.path}: changed while it was read; run the same command again"
            )
        nll = None
        if cut.whole:
            record = self._store.manifest.shards[cut.runs[0][0]]
            file = self._store.folder / record.name
            identity = self._store.manifest.identity
            nll = read_statistics(read_file(file), identity, where=str(file)).teacher_nll
        return Made(
            content=content if self._change is None else self._change(content),
            teacher_nll=nll,
            seconds=share_of_cost(self._store, cut.positions),
            dictionary=self._dictionary,
        )
