"""The certificate of a store, as `softlabels measure` wrote it into the manifest, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softlabels.report.html import Markup
from softlabels.report.page import Cell, note, table

__all__ = ["fidelity_table"]

WORDS = {
    "covered_mass": "teacher's mass on the kept ids",
    "top1_agreement": "first choice is the teacher's",
    "ece_teacher": "calibration error of the teacher",
    "ece_drift": "and what storing it adds",
    "gradient_angle": "angle of the gradient, degrees",
    "gradient_norm_ratio": "length of the gradient, ratio",
    "mean_gradient_angle": "angle of the summed gradient, degrees",
    "kl": "KL(teacher ‖ stored), nats",
    "kl_tail_bucket": "with the tail as one bin, nats",
    "kl_without_tail": "if a loss ignores the tail, nats",
    "gradient_angle_without_tail": "angle of the gradient, if it does",
    "log_prob_error.values": "log-probabilities compared",
    "log_prob_error.largest": "largest error, nats",
    "log_prob_error.within": "share within the stated bound",
}


def fidelity_table(record: Mapping[str, Any]) -> Markup:
    """A row for each figure, a column for each temperature; below it, what else the record says."""
    grid = [t for t in record.get("temperatures", []) if isinstance(t, Mapping)]
    columns = [dict(_flat(t)) for t in grid]
    names = list(dict.fromkeys(n for c in columns for n in c if n != "temperature"))
    rows = [
        [
            WORDS.get(name, name.replace("_", " ").replace(".", ": ")),
            *(c.get(name, Cell.number("")) for c in columns),
        ]
        for name in names
    ]
    facts = ", ".join(
        f"{key.replace('_', ' ')} {value}"
        for key, value in record.items()
        if isinstance(value, str | int | float)
    )
    head = ["against the dense teacher", *(f"T={_number(t.get('temperature', '?'))}" for t in grid)]
    return Markup(table(head, rows) + note(facts))


def _flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Cell]]:
    found: list[tuple[str, Cell]] = []
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "mean" in value:
            found.append((name, _estimate(value)))
        elif isinstance(value, Mapping):
            found += _flat(value, f"{name}.")
        else:
            found.append((name, Cell.number(_number(value))))
    return found


def _estimate(value: Mapping[str, Any]) -> Cell:
    mean, low, high = (value.get(k) for k in ("mean", "low", "high"))
    said = "infinite" if mean is None else _number(mean)
    return Cell.number(
        said, None if low is None or high is None else f"{_number(low)} to {_number(high)}"
    )


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
