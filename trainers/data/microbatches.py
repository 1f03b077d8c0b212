"""A rank's batch in the shape of the whole batch, and cut into micro-batches.

Every micro-batch has the width of the whole batch over all ranks, so what is computed of it does not depend on how many
ranks there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.nn.functional import pad

from trainers.data.batch import Batch
from trainers.loss.totals import StepTotals

__all__ = ["split_batch", "widen"]


def split_batch(batch: Batch, parts: int) -> Iterator[Batch]:
    """Micro-batches of consecutive rows, as rectangles of the batch's width."""
    if parts == 1:
        yield batch
        return
    rows, width = batch.input_ids.shape
    each = rows // parts
    row_of = batch.flat_positions // width
    for i in range(parts):
        here = slice(i * each, (i + 1) * each)
        inside = (row_of >= i * each) & (row_of < (i + 1) * each)
        start, stop = int((row_of < i * each).sum()), int((row_of < (i + 1) * each).sum())
        yield Batch(
            rows=batch.rows[here],
            input_ids=batch.input_ids[here],
            position_ids=None if batch.position_ids is None else batch.position_ids[here],
            flat_positions=batch.flat_positions[inside] - i * each * width,
            labels=batch.labels[inside],
            targets=batch.targets[start:stop],
            lengths=None if batch.lengths is None else batch.lengths[here],
            pixels=None if batch.pixels is None else batch.pixels[here],
        )


def widen(batch: Batch, totals: StepTotals) -> Batch:
    """The same rows as `collate` lays them beside all others of the step."""
    rows, now = batch.input_ids.shape
    width, shared = totals.width, totals.shared
    if now == width and shared == (batch.position_ids is not None):
        return batch
    position_ids = batch.position_ids
    if shared:
        if position_ids is None:
            position_ids = torch.arange(now).expand(rows, now)
        further = position_ids[:, -1:] + torch.arange(1, width - now + 1)
        position_ids = torch.cat([position_ids, further], dim=1)
    return replace(
        batch,
        input_ids=pad(batch.input_ids, (0, width - now)),
        position_ids=position_ids,
        flat_positions=batch.flat_positions // now * width + batch.flat_positions % now,
    )
