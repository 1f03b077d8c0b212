"""Rows laid end to end, so that a step of short rows holds no padding, and a kernel sees one long row.

`position_ids` count from 0 again at each document, which is what keeps documents apart: transformers make a
block-diagonal mask of them, and FlashAttention cuts a single row at them (of several rows at once it would not, and
documents would see each other). Where a model does not go by them (`trainers/students/documents.py`), each document is
taken out of its row. All this changes where a step's positions lie, never which they are: the loss is the same sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from softlabels.core.rows import Row
from softlabels.core.targets import SoftTargets
from softlabels.errors import ConfigError
from softlabels.format.shard import StoredRow
from trainers.data.batch import COUNTED, Batch


def flattened(batch: Batch) -> Batch:
    """A batch whose rows documents share as one row, padding and all; the same positions."""
    rows = batch.inputs["input_ids"].shape[0]
    if rows == 1 or COUNTED not in batch.inputs:
        return batch
    return replace(batch, inputs=as_one_row(batch.inputs), width=rows * batch.width)


def as_one_row(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs `[B, S]` as `[1, B * S]`."""
    return {name: tensor.reshape(1, -1) for name, tensor in inputs.items()}


def separated(batch: Batch) -> Batch:
    """Each document of a batch that has a position as a row of its own, up to its last one; the same positions.

    Price: each is as wide as the longest of them.
    """
    if not batch.positions:
        return batch
    counted = batch.inputs[COUNTED].flatten()
    begins = (counted == 0).nonzero()[:, 0]
    document = torch.searchsorted(begins, batch.flat_positions, right=True) - 1
    taken, row = torch.unique(document, return_inverse=True)
    begin, place = begins[taken], counted[batch.flat_positions]
    width = int(place.max()) + 1
    along = torch.arange(width, device=counted.device)
    last = torch.zeros_like(begin).scatter_reduce(0, row, place, "amax")
    inside = along <= last[:, None]
    ids = batch.inputs["input_ids"].flatten()[torch.where(inside, begin[:, None] + along, 0)]
    return replace(
        batch,
        inputs={"input_ids": torch.where(inside, ids, 0)},
        width=width,
        flat_positions=row * width + place,
    )


def collate_packed(rows: Sequence[StoredRow], *, most: int | None = None) -> Batch:
    """Rows of a step, or of a part of it, end to end in as few packed rows as first-fit takes, the longest first.

    Args:
        rows: of token sequences with one answer for each next token (`causal-lm`).
        most: tokens of a packed row; None: all rows become one.

    Raises:
        ConfigError: a row is longer than `most`, or has no tokens.
    """
    sizes = [_tokens(r, most) for r in rows]
    bins = _bins(sizes, most)
    width = max(sum(sizes[i] for i in packed) for packed in bins)
    ids = np.zeros((len(bins), width), np.int64)
    counted = np.zeros((len(bins), width), np.int64)
    flat: list[np.ndarray] = [np.empty(0, np.int64)] * len(rows)
    for b, packed in enumerate(bins):
        at = 0
        for i in packed:
            row = rows[i].row
            assert isinstance(row, Row)
            ids[b, at : at + sizes[i]] = row.input_ids
            counted[b, at : at + sizes[i]] = row.position_ids
            flat[i] = row.positions + b * width + at
            at += sizes[i]
        counted[b, at:] = np.arange(width - at)  # padding is a document of its own
    return Batch(
        rows=tuple(r.index for r in rows),
        inputs={"input_ids": torch.from_numpy(ids), COUNTED: torch.from_numpy(counted)},
        width=width,
        flat_positions=torch.from_numpy(np.concatenate(flat)),
        labels=torch.from_numpy(np.concatenate([r.row.labels for r in rows]).astype(np.int64)),
        targets=SoftTargets.concatenate([r.targets for r in rows]),
    )


def _tokens(stored: StoredRow, most: int | None) -> int:
    row = stored.row
    if not isinstance(row, Row):
        raise ConfigError(
            f"row {stored.index} is {row.title}: only rows of a causal LM can be packed; leave packing out"
        )
    if most is not None and row.size > most:
        raise ConfigError(
            f"row {stored.index} has {row.size} tokens, more than the {most} of a packed row, and rows of a store are "
            f"never cut; pack into rows of {row.size} or more, or build the store with --seq-len {most}"
        )
    return row.size


def _bins(sizes: Sequence[int], most: int | None) -> list[list[int]]:
    """Which rows share a packed row: first-fit decreasing, each bin in the order of the rows."""
    if most is None:
        return [list(range(len(sizes)))]
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        fits = next((b for b, left in enumerate(room) if left >= sizes[i]), None)
        if fits is None:
            bins.append([])
            room.append(most)
            fits = len(bins) - 1
        bins[fits].append(i)
        room[fits] -= sizes[i]
    return [sorted(packed) for packed in bins]
