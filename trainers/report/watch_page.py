"""The page of runs that are at work, which a browser loads anew by itself: it runs no script."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import softlabels
from softlabels.core.progress import duration
from softlabels.report.charts import Series, same_lines, style_of
from softlabels.report.page import draw
from trainers.report.runs import is_hard_only
from trainers.report.watching import Look

TEMPLATES = Path(__file__).with_name("templates")
COLUMNS = {
    "loss": ("loss", ".3f"),
    "soft": ("soft", ".3f"),
    "hard": ("hard", ".3f"),
    "heldout_nll": ("held-out", ".3f"),
    "grad_norm": ("gradient's norm", ".2g"),
    "positions_per_second": ("tokens a second", ",.0f"),
}
"""What the table of the last steps shows of each line, and how, where any line has it."""
CURVES = (
    ("loss", "Loss", "nats"),
    ("heldout_nll", "Held-out loss", "nats"),
    ("hard", "Cross-entropy with the labels", "nats"),
    ("soft", "Divergence from the teacher", "nats"),
)
LISTED = 8
"""Steps that are listed."""
MOST = 400
"""Points of a curve that are drawn."""


def render(looks: Sequence[Look], *, every: float | None, at: float) -> str:
    """The page.

    Args:
        looks: at the runs.
        every: seconds after which a browser is to load it anew; None: it is not drawn again.
        at: when it is drawn, seconds since the epoch.
    """
    return draw(
        "watch.html",
        TEMPLATES,
        version=softlabels.__version__,
        looks=looks,
        every=None if every is None else max(1, round(every)),
        drawn=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)),
        columns=[
            [(key, *rest) for key, rest in COLUMNS.items() if key in look.curves] for look in looks
        ],
        listed=LISTED,
        legend=[(style_of(i), look.name) for i, look in enumerate(looks)],
        progress=[
            (look.name, f"step {look.step:,} of {look.steps:,}", _done(look, style_of(i)))
            for i, look in enumerate(looks)
        ],
        curves=[(key, *rest, series) for key, *rest in CURVES if (series := _series(looks, key))],
        duration=duration,
    )


def _done(look: Look, style: str) -> list[tuple[str, float]]:
    return [(style, look.share), ("g3", 1 - look.share)]


def _series(looks: Sequence[Look], key: str) -> list[Series]:
    """Curves of what any run logged twice; of very long ones every so many points, and the last."""
    found = same_lines(
        Series(look.name, style_of(i), _thinned(look.curves.get(key, [])))
        for i, look in enumerate(looks)
        if key != "soft" or not is_hard_only(look.record)
    )
    return found if any(len(s.points) > 1 for s in found) else []


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    step = -(-len(points) // MOST) or 1
    return points[::step] + (points[-1:] if (len(points) - 1) % step else [])
