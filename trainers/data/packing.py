"""Rows laid end to end, so that a step of short rows holds no padding, and a kernel sees one long row.

`position_ids` count from 0 again at each document, which is what keeps documents apart: transformers make a
block-diagonal mask of them, and FlashAttention cuts a single row at them (of several rows at once it would not, and
documents would see each other). Packing changes where a step's rows lie, never which rows they are: the loss is the
same sum over the same positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from softlabels.core.rows import Row
from softlabels.core.targets import SoftTargets
from softlabels.errors import ConfigError
from softlabels.format.shard import StoredRow
from trainers.data.batch import COUNTED, Batch


def flattened(batch: Batch) -> Batch:
    """A batch of token rows as one row, padding and all; the same positions."""
    ids = batch.inputs["input_ids"]
    rows, width = ids.shape
    if rows == 1 or set(batch.inputs) - {"input_ids", COUNTED}:
        return batch
    counted = batch.inputs.get(COUNTED)
    if counted is None:
        counted = torch.arange(width, device=ids.device).expand(rows, width)
    inputs = {"input_ids": ids.reshape(1, -1), COUNTED: counted.reshape(1, -1)}
    return replace(batch, inputs=inputs, width=rows * width)


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
