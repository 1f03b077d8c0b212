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
from softlabels.format.identity import Identity

__all__ = ["Shard", "StoredRow", "inputs_digest", "without_targets"]


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
        counts = [r.n for r in self.rows]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def row(self, r: int) -> StoredRow:
        """Row r of this shard."""
        o = self.offsets
        return StoredRow(
            index=self.start_row + r,
            row=self.rows[r],
            targets=self.targets[int(o[r]) : int(o[r + 1])],
        )


def without_targets(
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
        summary=summary,
    )
    return Shard(start_row=start_row, rows=rows, targets=targets)


def inputs_digest(rows: Sequence[InputRow]) -> str:
    """sha256 over the rows' input digests, in order."""
    return hashlib.sha256(b"".join(r.digest() for r in rows)).hexdigest()
