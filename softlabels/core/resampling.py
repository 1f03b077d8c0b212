"""Bootstrap intervals by drawing whole rows.

A replicate draws R rows with replacement, which is to weigh the rows' sums by how often each was drawn. Rows, not
tokens, are drawn: neighbouring tokens are not independent, and intervals that took them to be would be too narrow.
Shapes: R rows, B replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Statistic = Callable[[Mapping[str, Float64]], Mapping[str, Float64]]
AT_ONCE = 2**22
"""Entries of a block of replicates' weights."""


def row_weights(rows: int, replicates: int, seed: int) -> Iterator[Float64]:
    """`[b, R]` blocks, B in all: how often each row is drawn; a function of the three numbers alone."""
    g = np.random.default_rng(seed)
    block = max(1, AT_ONCE // rows)
    for start in range(0, replicates, block):
        b = min(block, replicates - start)
        drawn = g.integers(rows, size=(b, rows)) + np.arange(b)[:, None] * rows
        yield np.bincount(drawn.ravel(), minlength=b * rows).reshape(b, rows).astype(np.float64)


def bootstrap(
    sums: Mapping[str, Float64],
    statistic: Statistic,
    *,
    replicates: int,
    seed: int,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of all that a statistic gives.

    Args:
        sums: `[R, …]` of each row.
        statistic: from such sums over drawn rows, `[b, …]`, to numbers `[b]` by name. Replicates in which a number is
            not finite (no position was drawn that it needs) are left out of its interval.
        replicates: B; 0 gives no interval.
        seed: of the draws.
        level: share of the replicates that lies inside.

    Returns:
        (low, high) by name; empty with fewer than two rows, from which nothing can be said.
    """
    rows = len(next(iter(sums.values())))
    if rows < 2 or replicates == 0:
        return {}
    parts = [
        statistic({name: weights @ s for name, s in sums.items()})
        for weights in row_weights(rows, replicates, seed)
    ]
    found = {}
    for name in parts[0]:
        values = np.concatenate([p[name] for p in parts])
        values = values[np.isfinite(values)]
        if len(values):
            low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
            found[name] = (float(low), float(high))
    return found
