"""`nat8` to `nat64`: log-probabilities as whole steps, within a stated error of 1/16 to 1/128 nat.

What is written of a position are its gaps to the largest kept logit in steps of h, and its tail's log-odds
in finer steps. A reader derives log-probabilities from them, and a shift of their sum would be an error of
each; so gaps are not rounded one by one, but so that the shift is taken into account.

For log-probabilities, with gaps g, rounded ones q·h and the shift they cause,
`s = lse(-q·h) - lse(-g) + softplus(λ') - softplus(λ)`, the error of a log-probability is
`g_k - q_k·h - s`. It is at most h/2 for all k if `q_k = round((g_k - s) / h)`: an equation for s, which
occurs on both sides. The right side grows with s in jumps, and its mean distance from s lies between 0
and (h/2)²/6 (plus λ's error), so a solution exists within that; `_round` finds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.codecs.gaps import Float, Float64, Gaps

ITERATIONS = 64
"""The shift grows with the one it is computed from, so it is approached from one side, by at least the room
that the bound leaves (1/62 step) each time, and lies within a step: `_search` is for rounding errors only."""


@dataclass(frozen=True)
class Steps(Gaps):
    """Gaps in steps of 31/(32·n) nat, log-odds in steps of 1/(64·n) nat."""

    n: int
    """1/n nat is twice the error: 8, 16, 32 or 64."""

    @property
    def id(self) -> str:
        """`nat16` of n = 16."""
        return f"nat{self.n}"

    def absolute_error(self, *, sample: bool) -> float:
        """Of a log-probability at T=1 (not of a gap), 1/(2n) nat; of a log weight of a sample, two steps."""
        return 2 * self.step if sample else 1 / (2 * self.n)

    @property
    def step(self) -> float:
        """Of gaps, in nats."""
        return 31 / (32 * self.n)

    @property
    def odds_step(self) -> float:
        """Of log-odds, in nats."""
        return 1 / (64 * self.n)

    def rounding(self, gaps: Float64) -> None:
        """The bound says all."""

    def scores(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Minus the gaps `float32`, from whole numbers of any shape."""
        scores: npt.NDArray[np.float32] = np.multiply(values, -self.step, dtype=np.float32)
        return scores

    # -- rounding ---------------------------------------------------------------------------------

    def _round(
        self,
        gaps: Float,
        log_odds: Float64,
        stored_odds: npt.NDArray[np.float32],
    ) -> Float:
        """Whole numbers q `[N, K]` such that every log-probability at T=1 keeps the bound."""
        exact = _lse(gaps)
        with np.errstate(invalid="ignore"):
            tail = np.logaddexp(0, stored_odds.astype(np.float64)) - np.logaddexp(0, log_odds)
        tail[~np.isfinite(tail)] = 0.0  # +inf: nothing is kept
        q, error, shift = self._try(gaps, tail, exact, tail)
        todo = np.flatnonzero(error > 1 / (2 * self.n))
        for _ in range(ITERATIONS):
            if len(todo) == 0:
                return q
            q[todo], error, shift[todo] = self._try(
                gaps[todo], shift[todo], exact[todo], tail[todo]
            )
            todo = todo[error > 1 / (2 * self.n)]
        for i in todo:
            q[i] = self._search(gaps[i], float(exact[i]), float(tail[i]))
        return q

    def _try(
        self, gaps: Float, shift: Float64, exact: Float64, tail: Float64
    ) -> tuple[Float, Float, Float64]:
        """Round as if the shift were `shift`: q, the largest error of each position, the true shift."""
        kind = gaps.dtype.type
        q = gaps - shift[:, None].astype(kind)
        q *= kind(1 / self.step)
        np.rint(q, out=q)
        np.maximum(q, 0, out=q)  # the largest logit's gap is 0, and the shift less than half a step
        rounded = q * kind(self.step)
        moved = _lse(rounded) - exact + tail
        with np.errstate(invalid="ignore"):
            error = np.subtract(gaps, rounded, out=rounded)
            error -= moved[:, None].astype(kind)
        np.abs(error, out=error)
        return q, np.fmax.reduce(error, axis=1, initial=0), moved

    def _search(self, gaps: Float, exact: float, tail: float) -> Float:
        """The best of all shifts for one position: its rounding changes at K of them only."""
        half = self.step / 2
        jumps = np.mod(gaps[np.isfinite(gaps)] - half, self.step)
        jumps = np.unique(np.concatenate([jumps, jumps - self.step]))
        jumps = np.concatenate([[-half], jumps[np.abs(jumps) <= half], [half]])
        tries = (jumps[1:] + jumps[:-1]) / 2
        n = len(tries)
        q, error, _ = self._try(
            np.broadcast_to(gaps, (n, len(gaps))),
            tries.astype(np.float64),
            np.broadcast_to(exact, n),
            np.broadcast_to(tail, n),
        )
        best = int(error.argmin())
        assert error[best] <= 1 / (2 * self.n) + 1e-6, f"no rounding keeps the bound: {error[best]}"
        found: Float = q[best]
        return found

    def _cell(self, gaps: Float64) -> tuple[Float64, Float64, Float64]:
        below = np.floor(gaps / self.step)
        return below, gaps - below * self.step, np.broadcast_to(self.step, gaps.shape)


def _lse(gaps: Float) -> Float64:
    """Log of the sum of exp(-gaps) in each row; of a row without any, 0."""
    if gaps.shape[1] == 0:
        return np.zeros(len(gaps))
    total = np.exp(-gaps).sum(axis=1)
    return np.log(np.where(total > 0, total, 1)).astype(np.float64)


nat8, nat16, nat32, nat64 = (partial(Steps, n) for n in (8, 16, 32, 64))
"""Within 1/16, 1/32, 1/64 and 1/128 nat."""
