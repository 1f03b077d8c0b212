"""The report of candidates against a reference: which to ship, then the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from softlabels.kld.record import Candidate, Comparison
from softlabels.kld.text import megabytes, notes, shown, table, verdict, with_interval
from softlabels.report.charts import Dot, Series, style_of
from softlabels.report.page import draw

FLOOR = 1e-7
"""Nats: less is the rounding of sums, and is drawn here on a logarithmic axis."""


class Choice(NamedTuple):
    """A candidate as one of several to choose from."""

    candidate: Candidate
    style: str
    kl: float
    beaten_by: str | None
    """One that is no larger, and nearer."""

    @property
    def name(self) -> str:
        """What it is called."""
        return self.candidate.model.name

    @property
    def size(self) -> str:
        """On disk."""
        return megabytes(self.candidate.model.bytes)

    def figure(self, key: str, unit: str) -> str:
        """A figure in words."""
        value = self.candidate.figures[key].value
        return "not known" if value is None else shown(value, unit)


def render(found: Comparison) -> str:
    """The page."""
    choices = _choices(found.candidates)
    nearest = min(choices, key=lambda c: c.kl)
    sized = [c for c in choices if c.candidate.model.bytes is not None]
    smallest = min(sized, key=lambda c: c.candidate.model.bytes or 0) if sized else None
    return draw(
        "kld.html",
        version=found.softlabels,
        found=found,
        choices=choices,
        legend=[(c.style, c.name) for c in choices],
        nearest=nearest,
        smallest=smallest,
        sizes=[
            Series(c.name, c.style, [((c.candidate.model.bytes or 0) / 1e6, max(c.kl, FLOOR))])
            for c in sized
        ],
        curves=[
            Series(c.name, c.style, [(s * 100, max(kl, FLOOR)) for s, kl in c.candidate.curve])
            for c in choices
        ],
        tops=[_dot(c, "same_top") for c in choices],
        rows=table(found),
        pairs=[(pair, verdict(pair)) for pair in found.pairs],
        notes=list(notes(found)),
        with_interval=with_interval,
        shown=shown,
    )


def _choices(candidates: Sequence[Candidate]) -> list[Choice]:
    """The smallest first; those of unknown size last."""
    kls = [c.figures["kl_true"].value for c in candidates]
    known = [float("inf") if kl is None else kl for kl in kls]
    found = []
    for i, c in enumerate(candidates):
        size = c.model.bytes
        better = [
            (known[j], o.model.name)
            for j, o in enumerate(candidates)
            if size is not None
            and o.model.bytes is not None
            and o.model.bytes <= size
            and known[j] < known[i]
        ]
        found.append(Choice(c, style_of(i), known[i], min(better)[1] if better else None))
    return sorted(
        found, key=lambda c: (c.candidate.model.bytes is None, c.candidate.model.bytes or 0)
    )


def _dot(choice: Choice, key: str) -> Dot:
    figure = choice.candidate.figures[key]
    assert figure.value is not None, "a share of positions is always known"
    return Dot(choice.name, choice.style, figure.value, figure.low, figure.high)
