"""`companded`: gaps in steps that grow with them, fine where an id is likely and coarse where it is rare.

An error d_i of log p_i changes a divergence by a multiple of p_i d_i, so even steps (`steps.py`) spend as many bits on
an id of a thousandth as on the likeliest. Here the step at a gap g grows as exp(0.7 g), from 1/finest nat at the
likeliest id to about 1/coarsest nat, where it stays. (p_i d_i would be the same for all ids if it grew as exp(g), and
p_i d_i^2 if as exp(g / 2).) Kept sets are written in order of id: numbers so fine would pay for an order of ids.

Numbers stand for the gaps of a ladder: number u for  -log(1 - 0.7 u / finest) / 0.7  up to the last, M, above which the
steps are even. A gap gets the number of the nearest, so its error is half the distance between two of them; and a
log-probability has besides the shift that this causes in the sum, which is the mean of these errors, by probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from softlabels.codecs import Rounding
from softlabels.codecs.gaps import Float, Float64, Gaps
from softlabels.errors import ConfigError

GROWTH = 0.7
MOST_FINEST, MOST_COARSEST = 2**16, 64


@dataclass(frozen=True)
class Companded(Gaps):
    """Gaps in steps of 1/finest nat at 0, and of 31/(32 · coarsest) nat at most; log-odds in steps of 1/1024 nat."""

    by_id: ClassVar[bool] = True

    finest: int = 320
    coarsest: int = 4

    def __post_init__(self) -> None:
        if (
            not 1 <= self.coarsest <= MOST_COARSEST
            or not self.coarsest < self.finest <= MOST_FINEST
        ):
            raise ConfigError(
                f"--values companded?finest={self.finest}&coarsest={self.coarsest}: expected steps of 1/finest and "
                f"1/coarsest nat with 1 <= coarsest <= {MOST_COARSEST} and coarsest < finest <= {MOST_FINEST}"
            )

    @property
    def id(self) -> str:
        """Without its parameters."""
        return "companded"

    @property
    def step(self) -> float:
        """The coarsest, in nats."""
        return 31 / (32 * self.coarsest)

    @property
    def odds_step(self) -> float:
        """Of log-odds, in nats."""
        return 1 / 1024

    def absolute_error(self, *, sample: bool) -> float:
        """Of a log-probability at T=1: half the coarsest step, and as much for the shift; of a sample's, two steps.

        What `rounding` says is much less where ids are likely.
        """
        return 2 * self.step if sample else 1 / self.coarsest

    def rounding(self, gaps: Float64) -> Rounding:
        """Half the step above each gap."""
        number = np.searchsorted(self._middles, gaps, side="right")
        steps = np.append(np.diff(self._ladder), self.step)
        return Rounding(gaps=steps[number] / 2, odds=self.odds_step / 2)

    def scores(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Minus the gaps `float32`, from whole numbers of any shape."""
        last = len(self._ladder) - 1
        scores: npt.NDArray[np.float32] = self._falling.take(np.minimum(values, last))
        beyond = values > last
        if beyond.any():
            more = (values[beyond].astype(np.float64) - last) * self.step
            scores[beyond] = -(self._ladder[-1] + more)
        return scores

    # -- rounding ---------------------------------------------------------------------------------

    def _round(self, gaps: Float, log_odds: Float64, stored_odds: npt.NDArray[np.float32]) -> Float:
        """The nearest."""
        del log_odds, stored_odds
        below = np.searchsorted(self._middles, gaps, side="right").astype(np.float64)
        over = gaps > self._ladder[-1]
        if over.any():
            below[over] = self._beyond(gaps[over], np.rint)
        return below

    def _cell(self, gaps: Float64) -> tuple[Float64, Float64, Float64]:
        ladder = self._ladder
        place = np.minimum(np.searchsorted(ladder, gaps, side="right"), len(ladder)) - 1
        step = np.append(np.diff(ladder), self.step)[place]
        below, low = place.astype(np.float64), ladder[place]
        over = gaps > ladder[-1]
        below[over] = self._beyond(gaps[over], np.floor)
        low[over] = ladder[-1] + (below[over] - (len(ladder) - 1)) * self.step
        return below, gaps - low, step

    def _beyond(self, gaps: Float, whole: np.ufunc) -> Float64:
        """Numbers of gaps above the ladder."""
        steps = (gaps.astype(np.float64) - self._ladder[-1]) / self.step
        found: Float64 = whole(steps) + (len(self._ladder) - 1)
        return found

    @cached_property
    def _ladder(self) -> Float64:
        """`[M + 1]`: the gaps, in nats, of the numbers up to the one from which on steps are even."""
        last = math.floor((self.finest - 1 / self.step) / GROWTH)
        number = np.arange(last + 1, dtype=np.float64)
        return np.asarray(-np.log1p(-GROWTH * number / self.finest) / GROWTH)

    @cached_property
    def _falling(self) -> npt.NDArray[np.float32]:
        return -self._ladder.astype(np.float32)

    @cached_property
    def _middles(self) -> Float64:
        return np.asarray((self._ladder[1:] + self._ladder[:-1]) / 2)
