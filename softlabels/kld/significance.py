"""Whether a difference is more than chance: exact, on pairs.

Shapes: R rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from softlabels.kld.record import Test

Float64 = npt.NDArray[np.float64]
FLIPS = 10_000
"""Random assignments of signs."""
AT_ONCE = 2**22


def mcnemar(only_first: int, only_second: int) -> Test:
    """Whether one of two is right more often: of the positions where just one is, is half a fair share?"""
    n, few = only_first + only_second, min(only_first, only_second)
    i = np.arange(1, few + 1, dtype=np.float64)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log((n - i + 1) / i))])
    p = 2 * np.exp(log_choose - n * np.log(2)).sum()
    return Test(only_first=only_first, only_second=only_second, p=float(min(p, 1.0)))


def sign_flips(differences: Float64, seed: int) -> float:
    """Chance of a sum as far from 0 as that of `differences [R]`, if each had its sign by chance.

    Never 0: the assignment that was found counts, too.
    """
    g = np.random.default_rng(seed)
    far, r = abs(differences.sum()), len(differences)
    block, hits = max(1, AT_ONCE // max(r, 1)), 0
    for start in range(0, FLIPS, block):
        signs = g.integers(0, 2, size=(min(block, FLIPS - start), r)) * 2 - 1
        hits += int((np.abs(signs @ differences) >= far * (1 - 1e-12)).sum())
    return (hits + 1) / (FLIPS + 1)
