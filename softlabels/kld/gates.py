"""Gates for CI: a candidate that may be further away than was allowed ends the command with 1."""

from __future__ import annotations

from softlabels.errors import FidelityError
from softlabels.kld.record import Comparison


def check_gates(
    found: Comparison, *, max_kl: float | None = None, min_same_top: float | None = None
) -> None:
    """Refuse candidates by the worse end of their intervals; without an interval by the figure.

    Args:
        found: the comparison.
        max_kl: most mean KL, nats, the tails' part as estimated.
        min_same_top: least share of positions with the same most probable token.

    Raises:
        FidelityError: names the first candidate that fails, the figure and the bound.
    """
    for c in found.candidates:
        kl, same = c.figures["kl_true"], c.figures["same_top"]
        if max_kl is not None:
            most = kl.value if kl.high is None else kl.high
            if most is None or not most <= max_kl:
                raise FidelityError(
                    f"{c.model.name}: its mean KL is {_said(kl.value)} nats, by resampling up to {_said(most)}; "
                    f"--max-kl allows {max_kl:g}"
                )
        if min_same_top is not None:
            least = same.value if same.low is None else same.low
            if least is None or not least >= min_same_top:
                raise FidelityError(
                    f"{c.model.name}: has the reference's most probable token at {_said(same.value)} of the positions, "
                    f"by resampling down to {_said(least)}; --min-same-top asks for {min_same_top:g}"
                )


def _said(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4g}"
