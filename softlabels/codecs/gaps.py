"""What codecs of gaps have in common: whole numbers of gaps and of log-odds, and a sample's weights without bias.

What is written of a position are its gaps to the largest kept logit, as numbers that ascend with them, and its tail's
log-odds in even steps. A reader derives log-probabilities from both. Which gap a number stands for, and how gaps are
rounded, is the codec's own: `steps.py`, `companded.py`.

Of a sample each weight is rounded up or down at random, so that its mean is the weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from softlabels.codecs import Numbers, Rounding
from softlabels.core.targets import SoftTargets
from softlabels.errors import TargetError

Float64 = npt.NDArray[np.float64]
Float = npt.NDArray[np.floating[Any]]
UInt32 = npt.NDArray[np.uint32]

NO_TAIL, NO_HEAD = 0, 2**32 - 1
"""Stand for log-odds of -inf and +inf; w steps are written as w + MIDDLE."""
MIDDLE = 2**31
LARGEST = 2**31 - 2
SINGLE = 64.0
"""Nats below which single precision holds a gap to 4e-6, far less than the room that bounds leave."""


class Gaps(ABC):
    """Gaps as whole numbers, log-odds in even steps."""

    plain: ClassVar[bool] = False
    samples_only: ClassVar[bool] = False
    unbiased: ClassVar[bool] = False
    label_first: ClassVar[bool] = False
    by_id: ClassVar[bool] = False
    relative_error: ClassVar[float] = 0.0

    @property
    @abstractmethod
    def id(self) -> str:
        """Its name in the registry."""

    @property
    @abstractmethod
    def step(self) -> float:
        """The largest of gaps, in nats."""

    @property
    @abstractmethod
    def odds_step(self) -> float:
        """Of log-odds, in nats."""

    @abstractmethod
    def rounding(self, gaps: Float64) -> Rounding | None:
        """How far off gaps that a reader has may be; None: `absolute_error` says all."""

    @abstractmethod
    def scores(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Minus the gaps `float32`, from whole numbers of any shape."""

    @abstractmethod
    def _round(self, gaps: Float, log_odds: Float64, stored_odds: npt.NDArray[np.float32]) -> Float:
        """Whole numbers `[N, K]` of gaps, given log-odds at T=1 and what a reader will have of them, `[N]`."""

    @abstractmethod
    def _cell(self, gaps: Float64) -> tuple[Float64, Float64, Float64]:
        """Of each gap the number below it, by how much it exceeds that number's gap, and how far the next one is."""

    def to_numbers(self, targets: SoftTargets, uniforms: Float64 | None) -> Numbers:
        """Gaps and log-odds as whole numbers.

        Args:
            targets: N positions.
            uniforms: `[N, K]` in [0, 1), of a sample.

        Raises:
            TargetError: a gap or log-odds beyond 2^31 steps.
        """
        largest = float(targets.gaps.max(initial=0))
        kept = None if np.isfinite(largest) else targets.kept
        if kept is not None:
            largest = float(targets.gaps.max(initial=0, where=kept))
        gaps = targets.gaps if largest < SINGLE else targets.gaps.astype(np.float64)
        odds_reach = float(np.abs(targets.log_odds[np.isfinite(targets.log_odds)]).max(initial=0))
        for what, value, step in (
            ("a gap", largest, self.step),
            ("log-odds", odds_reach, self.odds_step),
        ):
            if value / step > LARGEST:
                raise TargetError(
                    f"{self.id} cannot hold {what} of {value:g} nats, {value / step:.3g} steps (limit 2**31); build "
                    "with --values float32"
                )
        odds = self._odds(targets.log_odds)
        if targets.keeps.sample:
            assert uniforms is not None, "the weights of a sample are rounded at random"
            values = self._at_random(gaps, uniforms)
        else:
            at = targets.temperatures.index(1.0)
            values = self._round(
                gaps, targets.log_odds[:, at].astype(np.float64), self.odds(odds[:, at])
            )
        if kept is not None:
            values = np.where(kept, values, 0)
        return Numbers(values=values.astype(np.uint32), odds=odds)

    def odds(self, numbers: UInt32) -> npt.NDArray[np.float32]:
        """Log-odds `float32` from whole numbers."""
        out = ((numbers.astype(np.int64) - MIDDLE) * self.odds_step).astype(np.float32)
        out[numbers == NO_TAIL] = -np.inf
        out[numbers == NO_HEAD] = np.inf
        return out

    def _odds(self, log_odds: npt.NDArray[np.float32]) -> UInt32:
        finite = np.isfinite(log_odds)
        steps = np.rint(np.where(finite, log_odds, 0.0).astype(np.float64) / self.odds_step)
        out = (steps + MIDDLE).astype(np.uint32)
        out[np.isneginf(log_odds)] = NO_TAIL
        out[np.isposinf(log_odds)] = NO_HEAD
        return out

    def _at_random(self, gaps: Float, uniforms: Float64) -> Float:
        """Up or down at random, so that the mean of the normalised weights is the weight.

        Equal gaps go the same way. Rounding alone would leave a bias: a weight that was rounded up makes
        the sum larger by which it is then divided. Of a group of equal gaps that has the share W of the
        sum, and the relative variance v of its rounding, that takes W·v, which is added beforehand; what
        is left is of the third order in the step.
        """
        order = np.argsort(gaps, axis=1, kind="stable")
        g = np.take_along_axis(gaps, order, axis=1).astype(np.float64)
        weight = np.exp(-g)
        total = weight.sum(axis=1, keepdims=True)
        weight /= np.where(total > 0, total, 1.0)  # 0: hard label only
        g[~np.isfinite(g)] = 0.0
        first = np.ones(g.shape, bool)
        first[:, 1:] = g[:, 1:] != g[:, :-1]
        group = np.maximum.accumulate(np.where(first, np.arange(g.shape[1]), 0), axis=1)
        share = np.zeros_like(weight)
        np.add.at(share, (np.arange(len(g))[:, None], group), weight)

        _, rest, step = self._cell(g)
        up = _chance_of_up(rest, step)
        apart = np.exp(rest) * -np.expm1(-step)  # the two values, relative to the weight
        variance = up * (1 - up) * apart**2
        g = np.maximum(g - np.log1p(np.take_along_axis(share, group, axis=1) * variance), 0.0)

        below, rest, step = self._cell(g)
        drawn = np.take_along_axis(uniforms, group, axis=1)
        rounded = below + (drawn < _chance_of_up(rest, step))
        out: Float = np.empty_like(rounded)
        np.put_along_axis(out, order, rounded, axis=1)
        return out


def _chance_of_up(rest: Float64, step: Float64) -> Float64:
    """That a gap is rounded up, which leaves the mean of exp(-gap) as it is."""
    chance: Float64 = np.expm1(-rest) / np.expm1(-step)
    return chance
