"""What is near enough: gates for CI, and the rule by which a page says which candidate to ship."""

from __future__ import annotations

from dataclasses import dataclass

from softlabels.errors import FidelityError
from softlabels.kld.record import Candidate, Comparison


@dataclass(frozen=True, kw_only=True)
class Gates:
    """What a candidate must not exceed, by the worse end of its interval; without an interval by the figure."""

    max_kl: float | None = None
    """Most mean KL, nats, the tails' part as estimated."""
    min_same_top: float | None = None
    """Least share of positions with the same most probable token."""

    def failure(self, c: Candidate) -> str | None:
        """Which gate a candidate fails, and by what; None: none."""
        kl, same = c.figures["kl"], c.figures["same_top"]
        most = kl.value if kl.high is None else kl.high
        if self.max_kl is not None and (most is None or not most <= self.max_kl):
            return (
                f"its mean KL is {_said(kl.value)} nats, by resampling up to {_said(most)}; --max-kl allows "
                f"{self.max_kl:g}"
            )
        least = same.value if same.low is None else same.low
        if self.min_same_top is not None and (least is None or not least >= self.min_same_top):
            return (
                f"has the reference's most probable token at {_said(same.value)} of the positions, by resampling down "
                f"to {_said(least)}; --min-same-top asks for {self.min_same_top:g}"
            )
        return None


USUAL = Gates(min_same_top=0.95)
"""What a page goes by if no gate is given: 19 of 20 tokens."""


def check_gates(found: Comparison, gates: Gates) -> None:
    """Refuse candidates that fail.

    Raises:
        FidelityError: names the first candidate that does, the figure and the bound.
    """
    for c in found.candidates:
        failure = gates.failure(c)
        if failure is not None:
            raise FidelityError(f"{c.model.name}: {failure}")


def _said(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4g}"
