"""Rows and their targets laid side by side: what one optimiser step, or a part of it, learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from softlabels.rows import pad_rows
from softlabels.store.shard import StoredRow
from softlabels.targets import SoftTargets

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
    """`[N] int64`."""
    targets: SoftTargets
    """Of the N positions, in order."""
    position: int | None = None
    """Where the *global* batch begins in the stream's sequence of rows, the same on every rank; None: not of a
    stream."""
    sources: tuple[int, ...] | None = None
    """`[B]`: which store each row is of, in the order in which a mixture names them; None: there is one."""

    @property
    def positions(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def soft_positions(self) -> int:
        """M: those of the N positions that have a soft target; the others are hard-label only."""
        return int(self.targets.soft.sum())

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
    padded = pad_rows([r.row for r in rows])
    return Batch(
        rows=tuple(r.index for r in rows),
        input_ids=torch.from_numpy(padded.input_ids),
        position_ids=None if padded.position_ids is None else torch.from_numpy(padded.position_ids),
        flat_positions=torch.from_numpy(padded.flat_positions),
        labels=torch.from_numpy(padded.labels),
        targets=SoftTargets.concatenate([r.targets for r in rows]),
        position=position,
        sources=None if sources is None else tuple(sources),
    )
