"""Whether a causal LM keeps documents apart that share a row, where only `position_ids` say so: it is tried.

transformers make a mask for attention of position ids that start again. A layer that is not attention never sees it:
the state of a recurrence and the window of a convolution run on into the next document (Qwen3-Next, LFM2, Mamba), and
some models make no such mask (GPT-1). None of them raises an error. Whoever fails here is given each document as a
sequence of its own, which is always right, and costs padding.

1. Rows `[b; a]` and `[a; b]`, whose position ids start again. For a causal model the first row begins with b alone, of
   which b in the second must have the positions.
2. The same with another a: shapes and places are those of 1, so that b is the same to the bit if it does not see a.
3. The rows of 1 as one document each: what a does to b where b sees it. The difference of 2 is judged by this, for in a
   model of random weights it may be small.

Price: three forwards of two short rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LENGTH = 8
"""Tokens of a document, at most: what leaks reaches the first ones."""
LEAK = {torch.float32: 1e-5, torch.float64: 1e-5}
"""Share of what a does to b that a difference of 2 may have: none but rounding, where experts get other numbers of
tokens. LFM2 of random weights leaks 7e-4."""
LEAK_COARSE = 2.0**-8
"""In other dtypes. LFM2 of random weights leaks 9e-3 in bfloat16."""
SHIFT = {torch.float32: 1e-4, torch.float64: 1e-4}
"""A difference of 1 that is rounding, relative to the states; other positions make them others altogether."""
SHIFT_COARSE = 2.0**-4

States = Callable[[Tensor, Tensor], Tensor]
"""Ids and position ids, `[2, S]` each, to what the model's head is given: `[2, S, D]`."""


@torch.no_grad()
def keeps_apart(
    states: States, *, vocab_size: int, context: int | None, device: torch.device
) -> bool:
    """Try it.

    Args:
        states: the model as it is used, in evaluation mode.
        vocab_size: V.
        context: tokens that it reads at most; None: it has no limit.
        device: of its inputs.

    Returns:
        Whether it does. Not, too, where that cannot be told: it takes no position ids, or tokens do nothing to others.
    """
    n = LENGTH if context is None else max(1, min(LENGTH, context // 2))
    place = torch.arange(n, device=device)
    part = max(1, vocab_size // 4)
    a, b, other = ((place + i * part) % vocab_size for i in (1, 2, 3))
    again = place.repeat(2).expand(2, -1)
    along = torch.arange(2 * n, device=device).expand(2, -1)
    try:
        first = states(_rows(a, b), again)
    except TypeError:  # an argument that it does not have
        return False
    alone, after = first[0, :n], first[1, n:]
    after_other = states(_rows(other, b), again)[1, n:]
    seen = _distance(states(_rows(a, b), along)[1, n:], alone)
    leak = _distance(after, after_other) / seen
    shift = _distance(after, alone) / torch.linalg.vector_norm(alone.float(), dim=-1)
    unseen = leak <= LEAK.get(first.dtype, LEAK_COARSE)  # false of NaN
    unmoved = shift <= SHIFT.get(first.dtype, SHIFT_COARSE)
    return bool((unseen & unmoved).all())


def _rows(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([torch.cat([b, a]), torch.cat([a, b])])


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """`[n]`: of states `[n, D]`."""
    distance: Tensor = torch.linalg.vector_norm(x.float() - y.float(), dim=-1)
    return distance
