"""How much each position counts in the soft loss.

A weight is a function of the store alone (never of the student), so that it is the same in every epoch, on every
rank and after a resume, and so that its sum over an optimiser step is known before the step. The loss divides by
that sum: the mean weight is 1, and the size of the soft loss does not depend on the rule.

To add one: a function of targets, labels and T, and a line in `WEIGHTS`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from softlabels.core.targets import SoftTargets

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

LEAST = 1e-3
"""Added to each weight: a step whose teacher is certain everywhere becomes a plain mean instead of 0 / 0."""


def even(targets: SoftTargets, labels: Int64, temperature: float) -> Float64:
    """All count the same."""
    return np.ones(targets.n)


def entropy(targets: SoftTargets, labels: Int64, temperature: float) -> Float64:
    """The teacher's entropy over its K+1 bins at T, nats: where it hesitates there is most to learn from it."""
    log_p = targets.log_bins(temperature)
    p = np.exp(log_p)
    h: Float64 = -np.sum(p * np.where(p > 0, log_p, 0.0), axis=1) + LEAST
    return h


def hard(targets: SoftTargets, labels: Int64, temperature: float) -> Float64:
    """1 minus the teacher's probability of the label at T (0 if it is not kept): tokens that the teacher finds hard.

    RS-KD (Anshumann et al. 2025) teaches harder tokens more. This is a smooth rule with the same order of positions,
    which needs no threshold and no quantile over the step.
    """
    p = np.exp(targets.log_bins(temperature)[:, :-1])
    of_label: Float64 = 1.0 - np.where(targets.ids == labels[:, None], p, 0.0).sum(axis=1) + LEAST
    return of_label


WEIGHTS: dict[str, Callable[[SoftTargets, Int64, float], Float64]] = {
    "even": even,
    "entropy": entropy,
    "hard": hard,
}
"""From targets `[N]`, labels `[N]` and T to weights `[N]`, above 0."""
