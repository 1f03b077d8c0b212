"""Single positions on a store's page: a row as coloured text, and a table of the hardest places."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from softlabels.report.html import Child, Markup, element
from softlabels.report.page import Cell, quote, table
from softlabels.report.readings import Reading
from softlabels.report.store_facts import Hard, Token

__all__ = ["hard_table", "row_text"]

CHOICES = 5
"""Expected ids that are shown of a position."""


def row_text(row: int, tokens: Sequence[Token], steps: Sequence[float]) -> Markup:
    """A row as text, each token in the colour of the teacher's entropy before it.

    Args:
        row: its number.
        tokens: of it.
        steps: entropies at which the colour changes, rising.
    """
    shown = [_token(t, steps) for t in tokens]
    return element(
        "div", element("p", f"row {row}", class_="small"), element("div", shown, class_="tokens")
    )


def _token(t: Token, steps: Sequence[float]) -> Markup:
    if t.entropy is None or t.reading is None:
        return element("span", t.words, class_="w")
    heat = bisect.bisect_left(steps, t.entropy)
    p = "" if t.reading.label_p is None else f"; {t.words!r} had {_percent(t.reading.label_p)}"
    expected = ", ".join(
        f"{words!r} {_percent(p)}" if p is not None else repr(words)
        for words, p in _expectations(t.reading)
    )
    return element(
        "span",
        t.words,
        class_=f"u{heat}",
        title=f"{t.entropy:.2f} nats; expected {expected or 'nothing that is kept'}{p}",
    )


def _expectations(reading: Reading) -> list[tuple[str, float | None]]:
    """What the teacher thought likeliest, as far as it is known: no ids that are there by chance."""
    found: list[tuple[str, float | None]] = [(c.words, c.p) for c in reading.kept[:CHOICES]]
    top = reading.top
    if top is not None and top.id not in {c.id for c in reading.kept[:CHOICES]}:
        found.insert(0, (top.words, top.p))
    return found[:CHOICES]


def _percent(p: float) -> str:
    return f"{p:.0%}" if p >= 0.095 else f"{p:.1%}" if p >= 0.00095 else f"{p:.0e}"


def hard_table(places: Sequence[Hard], *, causal: bool) -> Markup:
    """A line for each place, with what the teacher expected there."""
    rows = [
        [
            Cell.words(quote(h.context, class_="context"), " ", _label(h.reading.label_words)),
            Cell.words(_expected(h.reading)),
            "" if h.reading.label_p is None else _percent(h.reading.label_p),
            "" if h.entropy is None else f"{h.entropy:.2f}",
            f"{h.row}:{h.position}",
        ]
        for h in places
    ]
    came = "text, and what came" if causal else "text, and label"
    where = "row:token" if causal else "row:position"
    return table([came, "what it expected", "its p", "entropy", where], rows, numbers_from=2)


def _label(label: str | None) -> Markup:
    return (
        element("span", "(no label)", class_="small")
        if label is None
        else quote(label, name="mark")
    )


def _expected(reading: Reading) -> list[Child]:
    parts: list[Child] = []
    for words, p in _expectations(reading):
        parts += [
            quote(words if words.strip() else repr(words)),
            f" {_percent(p)}  " if p is not None else "  ",
        ]
    return parts
