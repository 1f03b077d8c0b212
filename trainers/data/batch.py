"""Rows and their targets laid side by side: what one optimiser step, or a part of it, learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from softlabels.core.rows import UNLABELLED
from softlabels.core.targets import SoftTargets
from softlabels.format.shard import StoredRow

__all__ = ["Batch", "collate"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B rows, padded, with their N targets."""

    rows: tuple[int, ...]
    """Row numbers in the store, for messages and digests."""
    input_ids: Tensor
    """`[B, S] int64`."""
    position_ids: Tensor | None
    """`[B, S] int64` if documents share a row, else None."""
    flat_positions: Tensor
    """`[N] int64`: where the positions lie in the flattened `[B * S]`."""
    labels: Tensor
    """`[N] int64`; `UNLABELLED` (-1) where what is true is not known."""
    targets: SoftTargets
    """Of the N positions, in order."""
    position: int | None = None
    """Where the *global* batch begins in the stream's sequence of rows, the same on every rank; None: not of a
    stream."""
    lengths: Tensor | None = None
    """`[B] int64`: tokens of each row, where attention goes both ways and must stop there; else None."""
    pixels: Tensor | None = None
    """`[B, 3, H, W] float32` of images; else None."""
    sources: tuple[int, ...] | None = None
    """`[B]`: which store each row is of, in the order in which a mixture names them; None: there is one."""

    @property
    def positions(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def labelled_positions(self) -> int:
        """Those of the N positions that have a label."""
        return int((self.labels != UNLABELLED).sum())

    @property
    def soft_positions(self) -> int:
        """M: those of the N positions that have a soft target; the others are hard-label only."""
        return int(self.targets.soft.sum())

    def at_positions(self, hidden: Tensor) -> Tensor:
        """`[N, D]` of `[B, S, D]`, or what is that already."""
        if hidden.dim() == 2:
            return hidden
        return hidden.flatten(0, 1).index_select(0, self.flat_positions)

    def to(self, device: torch.device) -> Batch:
        """Tensors on a device; targets stay where they are until the loss asks for them."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            position_ids=None
            if self.position_ids is None
            else self.position_ids.to(device, non_blocking=True),
            flat_positions=self.flat_positions.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            lengths=None if self.lengths is None else self.lengths.to(device, non_blocking=True),
            pixels=None if self.pixels is None else self.pixels.to(device, non_blocking=True),
        )


def collate(
    rows: Sequence[StoredRow],
    *,
    position: int | None = None,
    sources: Sequence[int] | None = None,
) -> Batch:
    """Lay rows side by side.

    Args:
        rows: B rows, of stores that agree in grid, vocabulary and estimator.
        position: where their global batch begins in a stream.
        sources: `[B]`: which store each is of.
    """
    padded = rows[0].row.pad([r.row for r in rows])
    return Batch(
        rows=tuple(r.index for r in rows),
        input_ids=torch.from_numpy(padded.input_ids),
        position_ids=None if padded.position_ids is None else torch.from_numpy(padded.position_ids),
        flat_positions=torch.from_numpy(padded.flat_positions),
        labels=torch.from_numpy(padded.labels),
        targets=SoftTargets.concatenate([r.targets for r in rows]),
        lengths=None if padded.lengths is None else torch.from_numpy(padded.lengths),
        pixels=None if padded.pixels is None else torch.from_numpy(padded.pixels),
        position=position,
        sources=None if sources is None else tuple(sources),
    )
