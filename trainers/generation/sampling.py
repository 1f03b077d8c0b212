"""Sampling from a student, each sequence by draws of its own.

The draws of sequence i are a function of seed and i alone, one at each token. So which sequences share a batch, and
on what machine, decides nothing beyond rounding: a token differs only where a draw falls within rounding of a boundary
between two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from softlabels.core.devices import choose
from trainers.generation.config import Sampling
from trainers.students import Student

Int64 = npt.NDArray[np.int64]


class Sampled(NamedTuple):
    """One sequence."""

    number: int
    """Of the sequence, which decides its draws."""
    prompt: Int64
    new: Int64
    """What was sampled, the end mark included."""
    finished: bool
    """Whether it came to its end mark; else it was cut at `max_new_tokens`."""


def draws(seed: int, number: int, n: int) -> npt.NDArray[np.float64]:
    """`[n]` in [0, 1): of sequence `number`."""
    key = np.array([seed, number], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(n)


def pick(logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """One id `[B] int64` for each line of `logits [B, V] float32`, by its `uniforms [B] float64`.

    The id at which the cumulative probability passes the draw. With a nucleus it runs from the most probable id on; the
    ids beyond the nucleus are out of it, and the others' probabilities are divided by their sum. Sorting for that is
    most of a small model's step on a CPU, so without one it runs in the order of the ids.
    """
    if temperature == 0:
        return logits.argmax(dim=1)
    p = torch.softmax(logits.double() / temperature, dim=1)
    if top_p == 1:
        mass = p.cumsum(dim=1)
        total = mass[:, -1:].contiguous()
        place = torch.searchsorted(mass, uniforms[:, None] * total, right=True)
        last = torch.searchsorted(mass, total)  # the last id that adds anything
        return torch.minimum(place, last)[:, 0]
    p, order = p.sort(dim=1, descending=True, stable=True)
    mass = p.cumsum(dim=1)
    inside = mass - p < top_p  # up to and with the one that reaches it
    total = torch.where(inside, p, 0.0).sum(dim=1, keepdim=True)
    place = (mass <= uniforms[:, None] * total).sum(dim=1, keepdim=True)
    last = inside.sum(dim=1, keepdim=True) - 1
    return order.gather(1, torch.minimum(place, last))[:, 0]


def end_ids(model: Any, end: int | None) -> frozenset[int]:
    """What ends a sequence: a tokenizer's end mark, and what the model's own settings add, such as an end of turn."""
    own = getattr(model.generation_config, "eos_token_id", None)
    more = own if isinstance(own, list) else [own]
    return frozenset(int(i) for i in [end, *more] if i is not None)


@torch.no_grad()
def sample(
    student: Student,
    prompts: Sequence[Int64],
    sampling: Sampling,
    *,
    ends: frozenset[int],
    first: int = 0,
    device: str = "cpu",
) -> Iterator[Sampled]:
    """Continue one batch of prompts, ids `[L]` of each, at least one; in float32.

    Args:
        ends: ids that end a sequence.
        first: number of the first sequence; the others follow.

    Yields:
        One sequence for each prompt, in order.
    """
    where = choose(device, "float32").device
    model: Any = student.eval().to(where).model
    n, width = len(prompts), max(len(p) for p in prompts)
    ids = torch.zeros((n, width), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):  # padded on the left: all sequences grow at the same place
        ids[i, width - len(prompt) :] = torch.from_numpy(prompt)
        mask[i, width - len(prompt) :] = 1
    ids, mask = ids.to(where), mask.to(where)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    uniforms = torch.from_numpy(
        np.stack([draws(sampling.seed, first + i, sampling.max_new_tokens) for i in range(n)])
    ).to(where)
    end_ids = torch.tensor(sorted(ends), dtype=torch.int64, device=where)
    done = torch.zeros(n, dtype=torch.bool, device=where)
    columns: list[Tensor] = []
    cache = None
    kept = _cache_name(model)
    step_ids, step_positions = ids, positions
    for t in range(sampling.max_new_tokens):
        out = model(
            input_ids=step_ids,
            attention_mask=mask,
            position_ids=step_positions,
            use_cache=True,
            logits_to_keep=1,
            **{kept: cache},
        )
        cache = getattr(out, kept)
        chosen = pick(
            out.logits[:, -1].float(),
            uniforms[:, t],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )
        columns.append(chosen)
        done |= torch.isin(chosen, end_ids)
        if bool(done.all()):
            break
        mask = torch.cat([mask, mask.new_ones(n, 1)], dim=1)
        step_ids, step_positions = chosen[:, None], step_positions[:, -1:] + 1
    new = torch.stack(columns, dim=1).cpu().numpy()
    for i, prompt in enumerate(prompts):
        at = np.flatnonzero(np.isin(new[i], sorted(ends)))
        stop = int(at[0]) + 1 if len(at) else new.shape[1]
        yield Sampled(first + i, prompt, new[i, :stop].astype(np.int64), bool(len(at)))


def _cache_name(model: Any) -> str:
    """What a model calls keys and values of earlier tokens: transformers renamed them in 5.24."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
