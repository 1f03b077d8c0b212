"""`even-steps?nats=0.05`: gaps and log-odds rounded to whole steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.codecs import Numbers
from softlabels.core.targets import SoftTargets

MIDDLE, NO_TAIL, NO_HEAD = 2**31, 0, 2**32 - 1


@dataclass(frozen=True)
class EvenSteps:
    nats: float = 0.05

    id = "even-steps"
    plain = samples_only = unbiased = label_first = by_id = False
    relative_error = 0.0

    def absolute_error(self, *, sample: bool) -> float:
        """Half a step of its own, half of the sum that it is divided by, half of the log-odds."""
        return 1.5 * self.nats

    def rounding(self, gaps: npt.NDArray[np.float64]) -> None:
        """The same for all."""

    def to_numbers(self, targets: SoftTargets, uniforms: npt.NDArray[np.float64] | None) -> Numbers:
        gaps = np.where(targets.kept, targets.gaps, 0)
        odds = np.where(np.isfinite(targets.log_odds), targets.log_odds, 0).astype(np.float64)
        numbers = (np.rint(odds / self.nats) + MIDDLE).astype(np.uint32)
        numbers[np.isneginf(targets.log_odds)] = NO_TAIL
        numbers[np.isposinf(targets.log_odds)] = NO_HEAD
        return Numbers(values=np.rint(gaps / self.nats).astype(np.uint32), odds=numbers)

    def scores(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return (values * -self.nats).astype(np.float32)

    def odds(self, numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
        out = ((numbers.astype(np.int64) - MIDDLE) * self.nats).astype(np.float32)
        out[numbers == NO_TAIL] = -np.inf
        out[numbers == NO_HEAD] = np.inf
        return out
