"""What the teacher said, in memory: the sparse distribution at each of N positions.

A target is independent of how it is stored and sums to one at every temperature by construction.
Two things are kept for each position:

- gaps `g_k = z_max - z_k >= 0` of the kept ids to the largest kept logit (a temperature is only a
  division of gaps), and
- for each temperature T of the grid the tail's log-odds
  `lambda_T = log(mass outside the kept set at T) - log(mass inside)`, measured over the whole
  vocabulary when the store was built.

Hence `p_k = sigmoid(-lambda_T) * softmax(-g / T)_k` and `tail = sigmoid(lambda_T)`. At a T outside the
grid nothing can be said about the tail, so nothing is: `PairingError`.

The target of a sample (`KeptSet.sample`) is an unbiased estimate at its one temperature: the "gaps" are those of its
log weights, already at that temperature, and there is no tail (`lambda = -inf`).

Shapes: N positions, K kept ids (the longest kept set; shorter ones are padded), V vocabulary, G
temperatures of the grid.

A position may be *hard-label only*: learnt from its label, without a soft target. It keeps no id and all
its log-odds are `+inf`, so the formulas above give it no probability and a tail of 1. `soft` says which are not.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from softlabels.core.kept import KeptSet, kept_set
from softlabels.core.registry import name_of
from softlabels.core.summary import Summary
from softlabels.errors import PairingError, TargetError

F = TypeVar("F", np.float32, np.float64)
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]


def main_temperature(grid: Sequence[float]) -> float:
    """1, or the first of a grid that lacks it."""
    return 1.0 if 1.0 in grid else grid[0]


def gaps_from_logp(logp: Float32) -> Float32:
    """Gaps `[N, K]` to the largest entry of each row; `-inf` (not kept) becomes `+inf`.

    An all-`-inf` row has no largest entry and gives NaN, which `SoftTargets` refuses.
    """
    with np.errstate(invalid="ignore"):
        gaps: Float32 = logp[:, :1] - logp  # the first is the largest, nearly always
        if not gaps.min(initial=np.inf) >= 0:
            gaps = logp.max(axis=1, keepdims=True, initial=-np.inf) - logp
    return gaps.astype(np.float32, copy=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class SoftTargets:
    """The teacher's sparse distributions at N positions."""

    ids: Int32
    """`[N, K] int32`, unique among the kept ids of a row. A padded slot repeats the row's first id (any, if none is
    kept)."""
    gaps: Float32
    """`[N, K] float32`, nats; `+inf` marks a slot that is not kept. At least one 0 in each row that keeps any."""
    log_odds: Float32
    """`[N, G] float32`, nats; `-inf` where nothing lies outside the kept set; `+inf` in a row that keeps none."""
    temperatures: tuple[float, ...]
    """The grid, in the order of `log_odds`' columns."""
    vocab_size: int
    """V."""
    estimator: str
    """What the kept set is: `topk`, `sampled`, …"""
    declared: KeptSet | None = None
    """What that means, where it is not known here: as the estimator declares it."""
    hidden: Float32 | None = None
    """`[N, D] float32`: what the teacher's last layer gave, where a store keeps it."""
    summary: Summary | None = None
    """Of each position what the teacher's whole distribution says, where a store keeps it; of positions without a
    soft target, too."""

    def __post_init__(self) -> None:
        shape = self.ids.shape
        if len(shape) != 2 or self.gaps.shape != shape or self.log_odds.ndim != 2:
            raise TargetError(
                f"targets: ids {shape}, gaps {self.gaps.shape} and log_odds {self.log_odds.shape} "
                "must be [N, K], [N, K] and [N, G]"
            )
        if self.log_odds.shape != (shape[0], len(self.temperatures)):
            raise TargetError(
                f"targets: log_odds is {self.log_odds.shape}, expected "
                f"({shape[0]}, {len(self.temperatures)}) for the grid {list(self.temperatures)}"
            )
        if self.hidden is not None and (self.hidden.ndim != 2 or len(self.hidden) != shape[0]):
            raise TargetError(
                f"targets: hidden is {self.hidden.shape}, expected [N, D] with N = {shape[0]}"
            )
        if self.summary is not None and self.summary.n != shape[0]:
            raise TargetError(f"targets: summary is of {self.summary.n} positions, not {shape[0]}")

    # -- checking ---------------------------------------------------------------------------------

    def validate(self, *, where: str = "targets", unique: bool = True) -> None:
        """Check every invariant that a file could break; `unique=False` leaves out the one that sorts.

        Raises:
            TargetError: names `where`, the position and the value.
        """
        if self.n == 0:
            return
        if self.summary is not None:
            self.summary.validate(self.vocab_size, where=where)
        hard: npt.NDArray[np.bool_] = np.asarray(np.isposinf(self.log_odds).all(axis=1))
        if hard.any():
            hard &= ~self.soft
        if self.k == 0:
            if not hard.all():
                raise TargetError(
                    f"{where}: the kept set is empty at every position; expected at least one id, or "
                    "log-odds of +inf at each temperature (hard label only)"
                )
            return
        # The extremes first: they are found ten times as fast as where they lie.
        if self.ids.min() < 0 or self.ids.max() >= self.vocab_size:
            self._refuse(
                where,
                (self.ids < 0) | (self.ids >= self.vocab_size),
                self.ids,
                f"an id outside 0..{self.vocab_size - 1}",
            )
        if not self.gaps.min() >= 0:
            self._refuse(
                where,
                np.isnan(self.gaps) | (self.gaps < 0),
                self.gaps,
                "a gap that is negative or NaN, or an empty kept set",
            )
        self._refuse(where, np.isnan(self.log_odds), self.log_odds, "NaN for the tail's log-odds")
        self._refuse(
            where,
            np.isposinf(self.log_odds) & ~hard[:, None],
            self.log_odds,
            "a kept set without any mass",
        )
        if self.gaps[:, 0].any():  # else the first is the smallest
            smallest = self.gaps.min(axis=1, keepdims=True)
            wrong = (smallest != 0) & ~hard[:, None]
            self._refuse(where, wrong, smallest, "a kept set whose smallest gap is not 0")
        if not unique:
            return
        order = np.where(self.kept, self.ids, -1 - np.arange(self.k, dtype=np.int64)[None, :])
        order.sort(axis=1)
        twice = order[:, 1:] == order[:, :-1]
        self._refuse(where, twice, order[:, 1:], "an id kept twice")

    def _refuse(
        self, where: str, bad: npt.NDArray[np.bool_], values: npt.NDArray[np.generic], what: str
    ) -> None:
        if bad.any():
            position, slot = np.argwhere(bad)[0]
            raise TargetError(
                f"{where}: position {position} has {what} (found {values[position, slot]})"
            )

    # -- sizes ------------------------------------------------------------------------------------

    @property
    def keeps(self) -> KeptSet:
        """What the kept ids and their values mean."""
        return kept_set(self.estimator, self.declared)

    @property
    def n(self) -> int:
        """N, the number of positions."""
        return int(self.ids.shape[0])

    @property
    def k(self) -> int:
        """K, the longest kept set."""
        return int(self.ids.shape[1])

    def __len__(self) -> int:
        return self.n

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """`[N, K]`: False where a slot is padding."""
        return np.isfinite(self.gaps)

    @property
    def soft(self) -> npt.NDArray[np.bool_]:
        """`[N]`: False where a position is hard-label only: it keeps no id."""
        return np.asarray(self.kept.any(axis=1))

    def lacks_tail(self, temperature: float) -> bool:
        """Whether no position has mass outside, although ids are missing: a head cut off and renormalised."""
        odds = self.log_odds[:, self.grid_index(temperature)]
        return bool(self.n and np.isneginf(odds).all() and self.k < self.vocab_size)

    # -- probabilities ----------------------------------------------------------------------------

    def grid_index(self, temperature: float) -> int:
        """Column of `temperature` in the grid.

        Raises:
            PairingError: it isn't there, and cannot be recovered from a truncated head.
        """
        for i, t in enumerate(self.temperatures):
            if t == temperature:
                return i
        grid = ", ".join(f"{t:g}" for t in self.temperatures)
        raise PairingError(
            f"temperature {temperature:g} is not in the store's grid ({grid}), and the mass outside the kept "
            f"ids at another temperature cannot be recovered; use one of the grid, or build a store with "
            f"--temperature {temperature:g}"
        )

    # The one place of `p_k = sigmoid(-lambda_T) * softmax(-g / T)_k` and `tail = sigmoid(lambda_T)`.

    def _log_probs(self, temperature: float, dtype: type[F]) -> npt.NDArray[F]:
        odds = self._odds(temperature, dtype)
        scale = 1.0 if self.keeps.sample else temperature
        scores: npt.NDArray[F] = -self.gaps.astype(dtype, copy=False) / dtype(scale)
        total = np.exp(scores).sum(axis=1)  # the largest score is 0: no overflow
        log_norm = np.log(np.where(total > 0, total, dtype(1)))  # 0: hard label only
        scores -= log_norm[:, None]
        scores -= np.logaddexp(dtype(0), odds)[:, None]
        return scores

    def _log_tail(self, temperature: float, dtype: type[F]) -> npt.NDArray[F]:
        log_tail: npt.NDArray[F] = -np.logaddexp(dtype(0), -self._odds(temperature, dtype))
        return log_tail

    def _odds(self, temperature: float, dtype: type[F]) -> npt.NDArray[F]:
        return self.log_odds[:, self.grid_index(temperature)].astype(dtype, copy=False)

    def log_bins(self, temperature: float) -> Float64:
        """Log-probabilities `[N, K+1] float64` at T: the kept ids (`-inf`: padding), then the tail (`-inf`: none)."""
        kept = self._log_probs(temperature, np.float64)
        return np.column_stack([kept, self._log_tail(temperature, np.float64)])

    def log_probs(self, temperature: float) -> Float32:
        """Log-probabilities `[N, K] float32` of the kept ids at T; `-inf` in padded slots and without a soft target.

        Of a sample these are log weights, which sum to one like probabilities.
        """
        return self._log_probs(temperature, np.float32)

    def probs(self, temperature: float) -> Float32:
        """Probabilities `[N, K] float32` of the kept ids at T; 0 in padded slots."""
        return np.exp(self.log_probs(temperature))

    @property
    def logp(self) -> Float32:
        """`log_probs(1.0)`."""
        return self.log_probs(1.0)

    def tail(self, temperature: float) -> Float32:
        """Mass `[N] float32` outside the kept set at T; 1 where nothing is kept."""
        return np.exp(self._log_tail(temperature, np.float32))

    def dense(self, temperature: float) -> Float32:
        """`[N, V] float32`, rows summing to one: the tail is spread evenly over the ids not kept.

        Only the kept entries and the sum of the others are known; this is for looking and for small C. Of a
        position without a soft target nothing is known: its row is even.
        """
        outside = self.vocab_size - self.kept.sum(axis=1)
        tail = self.tail(temperature)
        each = np.divide(tail, outside, out=np.zeros_like(tail), where=outside > 0)
        out = np.repeat(each[:, None], self.vocab_size, axis=1)
        rows, slots = np.nonzero(self.kept)
        out[rows, self.ids[rows, slots]] = self.probs(temperature)[rows, slots]
        return out

    # -- changing ---------------------------------------------------------------------------------

    def hard_label_only(self, where: npt.NDArray[np.bool_]) -> SoftTargets:
        """The same targets, without distributions at the positions `where [N]`; their summary stays."""
        return replace(
            self,
            gaps=np.where(where[:, None], np.float32(np.inf), self.gaps),
            log_odds=np.where(where[:, None], np.float32(np.inf), self.log_odds),
        )

    # -- joining ----------------------------------------------------------------------------------

    def __getitem__(self, index: slice | npt.NDArray[np.generic]) -> SoftTargets:
        return self._with(
            ids=self.ids[index],
            gaps=self.gaps[index],
            log_odds=self.log_odds[index],
            hidden=None if self.hidden is None else self.hidden[index],
            summary=None if self.summary is None else self.summary[index],
        )

    @staticmethod
    def concatenate(parts: Sequence[SoftTargets]) -> SoftTargets:
        """Stack positions; a shorter kept set is padded by repeating its first id, marked not kept.

        Raises:
            TargetError: the parts differ in grid, vocabulary, estimator or width of hidden states, or some have
                summaries.
        """
        first = parts[0]
        states = [p.hidden for p in parts if p.hidden is not None]
        summaries = [p.summary for p in parts if p.summary is not None]
        if len({p._said for p in parts}) != 1 and len(facts := {p._facts for p in parts}) != 1:
            raise TargetError(
                f"targets of different stores cannot be stacked: {sorted(map(str, facts))}"
            )
        k = max(p.k for p in parts)
        return first._with(
            ids=np.concatenate([p.ids if p.k == k else p._wider(k)[0] for p in parts]),
            gaps=np.concatenate([p.gaps if p.k == k else p._wider(k)[1] for p in parts]),
            log_odds=np.concatenate([p.log_odds for p in parts]),
            hidden=np.concatenate(states) if states else None,
            summary=Summary.concatenate(summaries) if summaries else None,
        )

    @property
    def _said(self) -> tuple[Hashable, ...]:
        """What they say of themselves: those that say the same agree in `_facts`."""
        states = 0 if self.hidden is None else self.hidden.shape[1]
        same = (self.temperatures, self.vocab_size, self.estimator, self.declared)
        return (*same, states, self.summary is None)

    @property
    def _facts(self) -> tuple[Hashable, ...]:
        """In which targets agree that are stacked."""
        temperatures, vocab_size, _, _, *rest = self._said
        return (temperatures, vocab_size, name_of(self.estimator)[0], self.keeps, *rest)

    def _wider(self, k: int) -> tuple[Int32, Float32]:
        """Ids and gaps `[N, k]` with so many slots."""
        more = k - self.k
        first_id = self.ids[:, :1] if self.k else np.zeros((self.n, 1), np.int32)
        fill = np.full((self.n, more), np.inf, np.float32)
        return (
            np.hstack([self.ids, np.repeat(first_id, more, axis=1)]),
            np.hstack([self.gaps, fill]),
        )

    def _with(
        self,
        *,
        ids: Int32,
        gaps: Float32,
        log_odds: Float32,
        hidden: Float32 | None,
        summary: Summary | None,
    ) -> SoftTargets:
        """Other positions of the same kind; at a third of the price of `replace`."""
        return SoftTargets(
            ids=ids,
            gaps=gaps,
            log_odds=log_odds,
            temperatures=self.temperatures,
            vocab_size=self.vocab_size,
            estimator=self.estimator,
            declared=self.declared,
            hidden=hidden,
            summary=summary,
        )
