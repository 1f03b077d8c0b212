"""Rows and their targets laid side by side: what one optimiser step, or a part of it, learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from softlabels.core.rows import UNLABELLED
from softlabels.core.targets import SoftTargets
from softlabels.format.shard import StoredRow
from trainers.loss.head import Head

COUNTED = "position_ids"
"""The input that only rows with several documents ask for; beyond their end it counts on."""


class TeacherLogits(NamedTuple):
    """All of the teacher's distribution at N positions: logits are the head's of the states."""

    states: Tensor
    """`[N, D]`: what the teacher's head is given, in the dtype of its body."""
    head: Head

    def at(self, index: slice | Tensor) -> TeacherLogits:
        """At some of the positions."""
        return TeacherLogits(self.states[index], self.head)


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B rows, padded, with their N targets."""

    rows: tuple[int, ...]
    """Row numbers in the store, for messages and digests."""
    inputs: dict[str, Tensor]
    """What a model is fed, by the names of its own arguments, each `[B, …]`: of a causal LM `input_ids [B, S] int64`
    and, where documents share a row, `position_ids`."""
    width: int
    """S: places of a row in the model's output; 1 where a row has one answer."""
    flat_positions: Tensor
    """`[N] int64`: where the positions lie in the flattened `[B * S]`."""
    labels: Tensor
    """`[N] int64`; `UNLABELLED` (-1) where what is true is not known."""
    targets: SoftTargets
    """Of the N positions, in order."""
    teacher: TeacherLogits | None = None
    """At the N positions, where a run learns from all of the teacher's distribution; None: from `targets`."""
    offset: int | None = None
    """Where the *global* batch begins in the stream's sequence of rows, the same on every rank; None: not of a
    stream."""
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

    @property
    def sequences(self) -> tuple[list[str], list[str]]:
        """Names of the inputs `[B, L]` that run along the S places, and of those that an encoder reads before them."""
        names = [n for n, t in self.inputs.items() if t.dim() == 2 and n != COUNTED]
        along = [n for n in names if n.startswith("decoder_")] or names
        return along, [n for n in names if n not in along]

    @property
    def read(self) -> int:
        """Tokens of the longest source of an encoder before a decoder; 0 without one."""
        return max((self.inputs[n].shape[1] for n in self.sequences[1]), default=0)

    def at_positions(self, hidden: Tensor) -> Tensor:
        """`[N, D]` of `[B, S, D]`, or what is that already."""
        if hidden.dim() == 2:
            return hidden
        return hidden.flatten(0, 1).index_select(0, self.flat_positions)

    def to(self, device: torch.device) -> Batch:
        """Tensors on a device; targets stay where they are until the loss asks for them."""
        return replace(
            self,
            inputs={n: t.to(device, non_blocking=True) for n, t in self.inputs.items()},
            flat_positions=self.flat_positions.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            teacher=self.teacher
            and self.teacher._replace(states=self.teacher.states.to(device, non_blocking=True)),
        )


def collate(
    rows: Sequence[StoredRow],
    *,
    offset: int | None = None,
    sources: Sequence[int] | None = None,
) -> Batch:
    """Lay rows side by side.

    Args:
        rows: B rows, of stores that agree in grid, vocabulary and estimator.
        offset: where their global batch begins in a stream: rows of its order before it.
        sources: `[B]`: which store each is of.
    """
    padded = rows[0].row.pad([r.row for r in rows])
    return Batch(
        rows=tuple(r.index for r in rows),
        inputs={name: torch.from_numpy(array) for name, array in padded.inputs.items()},
        width=padded.width,
        flat_positions=torch.from_numpy(padded.flat_positions),
        labels=torch.from_numpy(padded.labels),
        targets=SoftTargets.concatenate([r.targets for r in rows]),
        offset=offset,
        sources=None if sources is None else tuple(sources),
    )
