"""A rank's batch cut into micro-batches: so many, or of so many tokens.

- `split_batch`, `widen`: each has the width of the whole batch over all ranks, so what is computed of it does not
  depend on how many ranks there are.
- `batches_of_tokens`: rows of like length share one, which is as wide as the longest of them. The rows of a step are
  the same, and so are its sums; what a micro-batch holds follows from the lengths of the rank's rows alone, so a run
  that goes on cuts as before. Other numbers of ranks agree within rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
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


# -- by tokens ------------------------------------------------------------------------------------


def grouped_by_tokens(batch: Batch, most: int) -> list[list[int]]:
    """Which of the batch's rows share a micro-batch, the longest first; each in order.

    Args:
        batch: of rows of tokens.
        most: places of a micro-batch, padding included. A row that has more is a micro-batch of its own.
    """
    along, read = (lengths.tolist() for lengths in _lengths(batch))
    groups: list[list[int]] = []
    widest = 0
    for i in sorted(range(len(batch.rows)), key=lambda i: (-along[i], -read[i], i)):
        width = along[groups[-1][0]] if groups else 0
        if not groups or (len(groups[-1]) + 1) * (width + max(widest, read[i])) > most:
            groups.append([])
            widest = 0
        groups[-1].append(i)
        widest = max(widest, read[i])
    return [sorted(group) for group in groups]


def in_as_many(groups: Sequence[list[int]], parts: int) -> list[list[int]]:
    """The same in `parts` groups: the one of most rows is halved until there are as many, as on every other rank."""
    found = list(groups)
    while len(found) < parts:
        i = max(range(len(found)), key=lambda i: len(found[i]))
        half = len(found[i]) // 2
        found[i : i + 1] = [found[i][:half], found[i][half:]]
    return found


def batches_of_tokens(batch: Batch, groups: Sequence[Sequence[int]]) -> Iterator[Batch]:
    """Micro-batches of these rows, each as wide as its longest row."""
    lengths = _lengths(batch)
    row_of = batch.flat_positions // batch.width
    for group in groups:
        here = torch.tensor(group)
        width, read = (int(of[here].max()) for of in lengths)
        inputs = {name: tensor[here] for name, tensor in batch.inputs.items()}
        along, before = batch.sequences
        cut = dict.fromkeys([*along, COUNTED], width) | dict.fromkeys(before, read)
        inputs |= {n: inputs[n][:, :w] for n, w in cut.items() if n in inputs}
        places = torch.isin(row_of, here).nonzero()[:, 0]
        flat = batch.flat_positions[places]
        rank = torch.searchsorted(here, flat // batch.width)
        yield Batch(
            rows=tuple(batch.rows[i] for i in group),
            inputs=inputs,
            width=width,
            flat_positions=rank * width + flat % batch.width,
            labels=batch.labels[places],
            targets=batch.targets[places.numpy()],
            teacher=batch.teacher and batch.teacher.at(places),
        )


def _lengths(batch: Batch) -> tuple[Tensor, Tensor]:
    """`[B]` and `[B]`: places of each row that are computed, and tokens that an encoder reads before a decoder.

    Where attention is causal, and no mask needed, nothing after a row's last position is of any use.
    """
    along, before = (_masked(batch, names) for names in batch.sequences)
    if along is None:
        row_of, place = batch.flat_positions // batch.width, batch.flat_positions % batch.width
        along = torch.ones(len(batch.rows), dtype=torch.int64)
        along.scatter_reduce_(0, row_of, place + 1, "amax")
    return along, torch.zeros_like(along) if before is None else before


def _masked(batch: Batch, names: Sequence[str]) -> Tensor | None:
    """`[B]`: tokens of each row by the attention mask among these inputs, which stand on the left; None without one."""
    found = [batch.inputs[n] for n in names if n.endswith("attention_mask")]
    return found[0].sum(dim=1) if found else None
