"""A measurement in words: the rows of the card's table, and one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from softlabels.format.certificate import Estimate, Fidelity, FidelityAt


class Figure(NamedTuple):
    """A number in words, `0.2100 (0.2000 to 0.2200) nats`."""

    value: str
    unit: str = ""
    interval: str = ""

    def __str__(self) -> str:
        between = f" ({self.interval})" if self.interval else ""
        return f"{self.value}{between} {self.unit}".rstrip()


def fidelity_rows(fidelity: Fidelity) -> list[tuple[str, list[Figure]]]:
    """Name of a figure, and its value at each temperature; figures that were measured at none are left out."""
    table: list[tuple[str, list[Figure]]] = []
    for name, show in _FIGURES:
        values = [show(at) for at in fidelity.temperatures]
        if any(v is not None for v in values):
            table.append((name, [Figure("-") if v is None else v for v in values]))
    return table


def fidelity_line(fidelity: Fidelity) -> str:
    """The figures that decide, e.g. `KL(teacher‖stored) 0.2100 (0.2000 to 0.2200) nats at T=1; …`."""
    each = []
    for at in fidelity.temperatures:
        figure = (
            f"KL(teacher‖stored) {_nats(at.kl)}"
            if at.sample is None
            else f"excess of cross-entropy {_nats(at.sample.excess)}"
        )
        each.append(f"{figure} at T={at.temperature:g}")
    return f"{'; '.join(each)}; over {fidelity.positions:,} positions in {fidelity.rows:,} rows"


def _estimate(value: Estimate | None, form: str, unit: str) -> Figure | None:
    if value is None:
        return None
    if value.mean is None:
        return Figure("infinite")
    interval = ""
    if value.low is not None and value.high is not None:
        interval = f"{format(value.low, form)} to {format(value.high, form)}"
    return Figure(format(value.mean, form), unit, interval)


def _nats(value: Estimate | None) -> Figure | None:
    return _estimate(value, ".4f", "nats")


def _ece(at: FidelityAt) -> Figure | None:
    if at.ece_teacher is None or at.ece_drift is None:
        return None
    return Figure(f"{at.ece_teacher:.4f}, {at.ece_drift:+.4f}")


def _error(at: FidelityAt) -> Figure | None:
    e = at.log_prob_error
    return None if e is None else Figure(f"{e.largest:.4f} nats; {e.within:.2%} within the bound")


_FIGURES: list[tuple[str, Callable[[FidelityAt], Figure | None]]] = [
    ("KL(teacher‖stored), tail spread evenly", lambda at: _nats(at.kl)),
    ("KL(teacher‖stored), tail as one bin", lambda at: _nats(at.kl_tail_bucket)),
    ("KL(kept ids alone‖teacher)", lambda at: _nats(at.kl_without_tail)),
    (
        "excess of cross-entropy (0: unbiased)",
        lambda at: None if at.sample is None else _nats(at.sample.excess),
    ),
    (
        "squared error of a position's weights",
        lambda at: None if at.sample is None else _estimate(at.sample.squared_error, ".4f", ""),
    ),
    ("teacher's mass of the kept ids", lambda at: _estimate(at.covered_mass, ".4f", "")),
    ("top-1 agreement", lambda at: _estimate(at.top1_agreement, ".4f", "")),
    ("ECE of the teacher, drift of the store", _ece),
    ("angle of the gradient", lambda at: _estimate(at.gradient_angle, ".2f", "degrees")),
    (
        "angle of the gradient, kept ids alone",
        lambda at: _estimate(at.gradient_angle_without_tail, ".2f", "degrees"),
    ),
    ("norm of the gradient, over dense", lambda at: _estimate(at.gradient_norm_ratio, ".4f", "")),
    ("angle of the summed gradient", lambda at: Figure(f"{at.mean_gradient_angle:.2f}", "degrees")),
    ("largest error of a log-probability", _error),
]
