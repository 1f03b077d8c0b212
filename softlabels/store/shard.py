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

from softlabels.errors import IntegrityError
from softlabels.rows import Row
from softlabels.targets import SoftTargets

__all__ = ["Shard", "StoredRow", "inputs_digest"]


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredRow:
    """A row with its targets."""

    index: int
    """Row number in the store."""
    row: Row
    targets: SoftTargets
    """Of the row's N positions, in order."""

    @property
    def inputs(self) -> dict[str, npt.NDArray[np.generic]]:
        """What a model is fed, by name: `input_ids [S]`, `position_ids [S]`, `label_mask [S]`, `labels [N]`."""
        return {
            "input_ids": self.row.input_ids,
            "position_ids": self.row.position_ids,
            "label_mask": self.row.label_mask,
            "labels": self.row.labels,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """R consecutive rows."""

    start_row: int
    rows: Sequence[Row]
    targets: SoftTargets
    """Of all positions of all rows, in order."""
    logp: npt.NDArray[np.float32] | None = None
    """`[N, K]`: what a file of plain columns held, of which `targets` are the meaning; written again in its place,
    so that shards which are cut or joined lose nothing by a second rounding."""

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """`[R + 1]`: row r's positions are `offsets[r]` to `offsets[r + 1]`."""
        counts = [int(r.label_mask.sum()) for r in self.rows]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def row(self, r: int) -> StoredRow:
        """Row r of this shard."""
        o = self.offsets
        return StoredRow(
            index=self.start_row + r,
            row=self.rows[r],
            targets=self.targets[int(o[r]) : int(o[r + 1])],
        )


def inputs_digest(rows: Sequence[Row]) -> str:
    """sha256 over the rows' input digests, in order."""
    return hashlib.sha256(b"".join(r.digest() for r in rows)).hexdigest()


def check_row(row: Row, *, where: str) -> None:
    """Refuse a row that contradicts itself.

    Raises:
        IntegrityError: names `where` and the contradiction.
    """
    tokens = len(row.input_ids)
    if tokens == 0 or len(row.label_mask) != tokens:
        raise IntegrityError(
            f"{where}: {tokens} input_ids but {len(row.label_mask)} entries of label_mask"
        )
    lengths = row.segment_lengths
    if len(lengths) == 0 or lengths.min() < 1 or int(lengths.sum(dtype=np.int64)) != tokens:
        raise IntegrityError(f"{where}: segment_lengths do not sum to the {tokens} tokens")
    if len(row.documents) != len(lengths):
        raise IntegrityError(f"{where}: {len(lengths)} segments but {len(row.documents)} documents")
    ends = np.cumsum(lengths) - 1
    if row.label_mask[ends].any():
        raise IntegrityError(f"{where}: label_mask asks for a token beyond the end of a document")
