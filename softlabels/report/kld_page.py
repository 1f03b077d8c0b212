"""The report of candidates against a reference: which to ship, then the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softlabels.kld.gates import USUAL, Gates
from softlabels.kld.record import Candidate, Comparison
from softlabels.kld.text import figure_of, kl_of, megabytes, neighbours, notes, table, verdict
from softlabels.report.charts import Dot, Series, same_lines, style_of
from softlabels.report.page import draw

FLOOR = 1e-7
"""Nats: less is the rounding of sums, and is drawn here on a logarithmic axis."""


@dataclass(kw_only=True)
class Choice:
    """A candidate as one of several to choose from."""

    candidate: Candidate
    kl: float
    passes: bool
    style: str = "s1"
    verdict: str = ""
    picked: bool = False

    @property
    def name(self) -> str:
        """What it is called."""
        return self.candidate.model.name

    @property
    def bytes(self) -> int | None:
        """On disk; None: not known."""
        return self.candidate.model.bytes

    @property
    def size(self) -> str:
        """On disk, in words."""
        return megabytes(self.bytes)

    @property
    def another_at(self) -> str:
        """How often its first choice is another, as people say it."""
        other = 1 - (self.candidate.figures["same_top"].value or 0.0)
        if other <= 0:
            return "at no token"
        return (
            f"at 1 token in {1 / other:,.0f}" if other < 0.35 else f"at {other:.0%} of the tokens"
        )

    def figure(self, key: str, unit: str) -> str:
        """A figure in words."""
        return figure_of(self.candidate, key, unit, interval=False)


def render(found: Comparison, gates: Gates = USUAL) -> str:
    """The page; `gates` say what is near enough to ship."""
    choices = _choices(found.candidates, gates)
    sized = [c for c in choices if c.bytes is not None]
    return draw(
        "kld.html",
        version=found.softlabels,
        found=found,
        choices=choices,
        legend=[(c.style, c.name) for c in choices],
        nearest=min(choices, key=lambda c: c.kl),
        pick=next((c for c in choices if c.picked), None),
        rule=_rule(gates),
        sizes=[
            Series(c.name, c.style, [((c.bytes or 0) / 1e6, max(c.kl, FLOOR))])
            for c in sized
            if c.kl < float("inf")
        ],
        curves=same_lines(
            Series(c.name, c.style, [(s * 100, max(kl, FLOOR)) for s, kl in c.candidate.curve])
            for c in choices
        ),
        tops=[_dot(c, "same_top") for c in choices],
        rows=table(found),
        pairs=[(pair, verdict(pair)) for pair in neighbours(found)],
        notes=list(notes(found)),
        kl_of=kl_of,
    )


def _rule(gates: Gates) -> str:
    """What `gates` ask for, in words."""
    said = []
    if gates.min_same_top is not None:
        said.append(
            f"has the reference's first choice at {gates.min_same_top:.4g} of the tokens or more"
            if gates != USUAL
            else "has the reference's first choice at 19 of 20 tokens or more"
        )
    if gates.max_kl is not None:
        said.append(f"is at most {gates.max_kl:g} nats away")
    return " and ".join(said)


def _choices(candidates: Sequence[Candidate], gates: Gates) -> list[Choice]:
    """The smallest first, those of unknown size last; the one to ship has the page's own colour."""
    found = []
    for c in candidates:
        kl = c.figures["kl"].value
        found.append(
            Choice(
                candidate=c,
                kl=float("inf") if kl is None else kl,
                passes=gates.failure(c) is None,
            )
        )
    found.sort(key=lambda c: (c.bytes is None, c.bytes or 0, c.kl))
    pick = next((c for c in found if c.passes and c.bytes is not None), None)
    if pick is None:
        pick = min((c for c in found if c.passes), key=lambda c: c.kl, default=None)
    for i, choice in enumerate([c for c in found if c is not pick], 1):
        choice.style = style_of(i)
        choice.verdict = _verdict(choice, pick, found)
    if pick is not None:
        pick.picked, pick.style, pick.verdict = True, style_of(0), "ship this"
    return found


def _verdict(c: Choice, pick: Choice | None, choices: Sequence[Choice]) -> str:
    """What speaks for or against one that is not picked."""
    better = [
        o
        for o in choices
        if c.bytes is not None and o.bytes is not None and o.bytes <= c.bytes and o.kl < c.kl
    ]
    if better:
        return f"{min(better, key=lambda o: o.kl).name} is no larger, and nearer"
    if not c.passes:
        return f"too far: another first choice {c.another_at}"
    if pick is not None and c.bytes is not None and pick.bytes is not None and c.kl > 0:
        return f"{pick.kl / c.kl:.2g} times as near, for {megabytes(c.bytes - pick.bytes)} more"
    return "near enough"


def _dot(choice: Choice, key: str) -> Dot:
    figure = choice.candidate.figures[key]
    assert figure.value is not None, "a share of positions is always known"
    return Dot(choice.name, choice.style, figure.value, figure.low, figure.high)
