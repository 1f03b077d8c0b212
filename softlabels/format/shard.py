"""One shard in memory: R rows and their targets, as flat arrays with offsets.

Containers (`parquet.py`) turn this into bytes and back; everything else works on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from softlabels.core.rows import InputRow
from softlabels.core.summary import Summary
from softlabels.core.targets import SoftTargets
from softlabels.format.columns import offsets_of
from softlabels.format.identity import Identity
from softlabels.format.shard_records import NumberedShard


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredRow:
    """A row with its targets."""

    index: int
    """Row number in the store."""
    row: InputRow
    targets: SoftTargets
    """Of the row's N positions, in order."""

    @property
    def inputs(self) -> dict[str, npt.NDArray[np.generic]]:
        """What a model is fed, by name, and `labels [N]`."""
        return self.row.inputs


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """R consecutive rows."""

    start_row: int
    rows: Sequence[InputRow]
    targets: SoftTargets
    """Of all positions of all rows, in order."""
    logp: npt.NDArray[np.float32] | None = None
    """`[N, K]`: what a file of plain columns held, of which `targets` are the meaning; written again in its place,
    so that shards which are cut or joined lose nothing by a second rounding."""

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """`[R + 1]`: row r's positions are `offsets[r]` to `offsets[r + 1]`."""
        return offsets_of([r.n for r in self.rows])

    def row(self, r: int) -> StoredRow:
        """Row r of this shard."""
        o = self.offsets
        return StoredRow(
            index=self.start_row + r,
            row=self.rows[r],
            targets=self.targets[int(o[r]) : int(o[r + 1])],
        )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is known of a shard before its bytes are decoded, and what is wanted of them."""

    identity: Identity
    where: str
    """For messages."""
    start_row: int
    """Number in the store of the first row."""
    rows: int | None = None
    """How many the manifest or the plan says there are; None: not known."""
    positions: int | None = None
    """The same of positions. With both a file that declares more is refused before it is decoded."""
    first_row: int | None = None
    """The number that the file gives its first row; None: `start_row`."""
    documents: int = 0
    """To be added to its numbers of documents."""
    keep_logp: bool = False
    """Keep what the columns hold besides what it means, for whoever writes them again."""
    targets: bool = True
    """Decode them, not only the rows and what summaries say of them."""

    @staticmethod
    def of(
        shard: NumberedShard,
        identity: Identity,
        *,
        where: str,
        keep_logp: bool = False,
        targets: bool = True,
    ) -> Reading:
        """Of a shard as the manifest or the plan says that it is."""
        return Reading(
            identity=identity,
            where=where,
            start_row=shard.start_row,
            rows=shard.rows,
            positions=shard.positions,
            first_row=shard.first_row,
            documents=shard.documents_from or 0,
            keep_logp=keep_logp,
            targets=targets,
        )


def rows_alone(
    start_row: int, rows: Sequence[InputRow], identity: Identity, summary: Summary | None
) -> Shard:
    """Rows whose targets were not decoded: in their place no position keeps anything."""
    n, grid = sum(r.n for r in rows), tuple(identity.targets.temperatures)
    targets = SoftTargets(
        ids=np.zeros((n, 0), np.int32),
        gaps=np.zeros((n, 0), np.float32),
        log_odds=np.full((n, len(grid)), np.inf, np.float32),
        temperatures=grid,
        vocab_size=identity.teacher.vocab_size,
        estimator=identity.targets.estimator,
        declared=identity.targets.declared,
        summary=summary,
    )
    return Shard(start_row=start_row, rows=rows, targets=targets)


def inputs_digest(rows: Sequence[InputRow]) -> str:
    """sha256 over the rows' input digests, in order."""
    return hashlib.sha256(b"".join(r.digest() for r in rows)).hexdigest()


def take(shard: Shard, places: npt.NDArray[np.int64]) -> Shard:
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


def joined(parts: Sequence[Shard], start_row: int) -> Shard:
    """Rows of several shards as if they were one."""
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
