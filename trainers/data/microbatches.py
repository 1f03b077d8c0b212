"""A rank's batch in the shape of the whole batch, and cut into micro-batches.

Every micro-batch has the width of the whole batch over all ranks, so what is computed of it does not depend on how many
ranks there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.nn.functional import pad

from trainers.data.batch import COUNTED, Batch
from trainers.loss.totals import StepTotals


def split_batch(batch: Batch, parts: int) -> Iterator[Batch]:
    """Micro-batches of consecutive rows, as rectangles of the batch's width."""
    if parts == 1:
        yield batch
        return
    each = len(batch.rows) // parts
    row_of = batch.flat_positions // batch.width
    for i in range(parts):
        here = slice(i * each, (i + 1) * each)
        start, stop = (int((row_of < r).sum()) for r in (here.start, here.stop))
        yield Batch(
            rows=batch.rows[here],
            inputs={name: tensor[here] for name, tensor in batch.inputs.items()},
            width=batch.width,
            flat_positions=batch.flat_positions[start:stop] - here.start * batch.width,
            labels=batch.labels[start:stop],
            targets=batch.targets[start:stop],
            teacher=batch.teacher and batch.teacher.at(slice(start, stop)),
        )


def widen(batch: Batch, totals: StepTotals) -> Batch:
    """The same rows as `collate` lays them beside all others of the step."""
    rows, now, width = len(batch.rows), batch.width, totals.width
    shared = COUNTED in batch.inputs
    if (now, batch.read, shared) == (width, totals.read, totals.shared):
        return batch
    inputs = dict(batch.inputs)
    for names, length in zip(batch.sequences, (width, totals.read), strict=True):
        inputs |= {n: pad(inputs[n], (0, length - inputs[n].shape[1])) for n in names}
    if totals.shared:
        counted = batch.inputs[COUNTED] if shared else torch.arange(now).expand(rows, now)
        further = counted[:, -1:] + torch.arange(1, width - now + 1)
        inputs[COUNTED] = torch.cat([counted, further], dim=1)
    flat = batch.flat_positions
    return replace(
        batch, inputs=inputs, width=width, flat_positions=flat // now * width + flat % now
    )
