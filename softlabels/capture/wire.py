"""What is kept of positions as one matrix of 32-bit words, which any engine carries through its processes as it is.

A row is a position: K ids, K float32 log-probabilities, G log-odds, the label's log-probability, the ids of probability
0, and, if they were asked for, the entropy and the likeliest id. A position with a bad logit is told instead by a
vector of bytes, which no matrix is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from softlabels.capture import BadLogitError, Kept

if TYPE_CHECKING:
    from torch import Tensor


def packed(kept: Kept) -> Tensor:
    """`[n, W] int32`."""
    columns = [_whole(kept.ids), _real(kept.logp), _real(kept.log_odds)]
    columns += [_real(kept.label_logp)[:, None], _whole(kept.impossible)[:, None]]
    if kept.entropy is not None and kept.top is not None:
        columns += [_real(kept.entropy)[:, None], _whole(kept.top)[:, None]]
    return torch.cat(columns, dim=1)


def unpacked(words: Tensor, *, grid: int, summarised: bool) -> Kept:
    """Back, of `[n, W] int32` with `grid` temperatures.

    Raises:
        BadLogitError: it is `refusal`'s.
    """
    if words.dim() == 1:
        index, _, shown = bytes(words.tolist()).decode().partition(" ")
        raise BadLogitError(int(index), shown)
    k = (words.shape[1] - grid - 2 - 2 * summarised) // 2
    ids, logp, odds, label, impossible, *seen = torch.split(
        words, [k, k, grid, 1, 1, *([1, 1] if summarised else [])], dim=1
    )
    kept = Kept(
        ids=ids.long(),
        logp=_float(logp),
        log_odds=_float(odds),
        label_logp=_float(label)[:, 0],
        impossible=impossible[:, 0].long(),
    )
    if not summarised:
        return kept
    return kept._replace(entropy=_float(seen[0])[:, 0], top=seen[1][:, 0].long())


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Chunks of the same request, in order; of one that was refused, the refusal."""
    refused = [p for p in parts if p.dim() == 1]
    return refused[0] if refused else torch.cat(list(parts))


def refusal(bad: BadLogitError, before: int) -> Tensor:
    """Instead of a matrix: a bad logit at a position that has `before` more in front of it; `[B] int32`, bytes."""
    return torch.tensor(list(f"{before + bad.index} {bad.shown}".encode()), dtype=torch.int32)


def _whole(values: Tensor) -> Tensor:
    return values.to(torch.int32)


def _real(values: Tensor) -> Tensor:
    return values.float().contiguous().view(torch.int32)


def _float(words: Tensor) -> Tensor:
    return words.contiguous().view(torch.float32)
