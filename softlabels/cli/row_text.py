"""How `softlabels inspect --row` shows a row: a line for each position, or one position in full."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from softlabels.core.printable import emphasis
from softlabels.report.readings import Choice, Reading

SHOWN = 8
"""Ids shown of a position in a row."""
DRAWN = 4
"""Drawn ids shown of a position in a row: they say little."""


def as_json(reading: Reading) -> dict[str, Any]:
    """For machines."""
    top = reading.top
    return {
        "label": reading.label,
        "label_text": "?" if reading.label_words is None else reading.label_words,
        "label_p": reading.label_p,
        "top": None if top is None else {"id": top.id, "text": top.words, "p": top.p},
        "right": reading.right,
        "entropy": reading.entropy,
        "soft": reading.soft,
        "tail": reading.tail,
        "kept": [{"id": c.id, "text": c.words, "p": c.p} for c in reading.kept],
        "drawn": [{"id": c.id, "text": c.words, "weight": c.p} for c in reading.drawn],
    }


def legend(*, label: str, sampled: bool, summarised: bool, t: float) -> list[str]:
    """What the columns are, and their heads."""
    exact = f"p of the {label} and entropy (nats)"
    at = f"T={t:g}" if t == 1.0 or not summarised else f"T={t:g}, {exact} at T=1"
    if sampled:
        lines = [
            f"A sample at {at}. Before the bar: ids that were sure to be kept, with their p. After it: ids drawn by",
            "chance, all of the weight in front, which say little of this one position.",
        ]
    else:
        lines = [f"At {at}. tail: mass of all ids that are not kept."]
    if not summarised:
        lines.append(
            f"This store holds no summaries of positions: entropy, and p of a {label} that is not kept, are not known."
        )
    return [*lines, f"[ ] marks the {label}.", "", _columns("", label, "its p", "nats", "expected")]


def _columns(place: str, words: str, p: str, entropy: str, rest: str) -> str:
    return f"{place:>5}  {words:<16} {p:>5}  {entropy:>5}  {rest}"


def line(place: int, reading: Reading) -> str:
    """One position in a row."""
    words = repr("?") if reading.label_words is None else repr(reading.label_words)
    p = "" if reading.label_p is None else _short(reading.label_p)
    entropy = "" if reading.entropy is None else f"{reading.entropy:.2f}"
    return _columns(str(place), words, p, entropy, _ids(reading))


def _short(p: float) -> str:
    return f"{p:.3f}" if p >= 0.0005 or p == 0 else f"{p:.0e}"


def _ids(reading: Reading) -> str:
    kept = list(reading.kept[:SHOWN])
    parts = [_choice(c, reading.label) for c in kept]
    top = reading.top
    if top is not None and top.id not in {c.id for c in kept}:
        p = _short(top.p) if top.p is not None else _at_most(top.at_most)
        parts.insert(0, _marked(f"{top.words!r} {p}", top.id == reading.label))
    if reading.drawn:
        parts.append(_drawn(reading.drawn, reading.label, DRAWN))
    if not reading.soft:
        parts.append("| hard label only")
    text = "  ".join(parts)
    return text if reading.tail is None else f"{text}  tail {_short(reading.tail)}"


def _at_most(p: float) -> str:
    return "" if p >= 1.0 else f"below {p:.3f}"


def _drawn(drawn: Sequence[Choice], label: int, most: int) -> str:
    """Drawn ids by their weights: `| drawn 0.031 each: ' a', ' b' and 9 more`."""
    if drawn[0].p > drawn[-1].p * 1.001:  # draws with replacement: each has a weight of its own
        words = "  ".join(_choice(c, label) for c in drawn[:most])
    else:
        words = f"{_short(drawn[0].p)} each: " + ", ".join(
            _marked(repr(c.words), c.id == label) for c in drawn[:most]
        )
    more = len(drawn) - most
    return "| drawn " + words + (f" and {more} more" if more > 0 else "")


def _choice(choice: Choice, label: int) -> str:
    return _marked(f"{choice.words!r} {_short(choice.p)}", choice.id == label)


def _marked(words: str, right: bool) -> str:
    """The label, which in a terminal stands out."""
    return emphasis(f"[{words}]") if right else words


def page(reading: Reading, *, label: str, vocab_size: int, t: float) -> list[str]:
    """One position in full."""
    lines = []

    def say(name: str, words: str) -> None:
        lines.append(f"{name:>10}  {words}")

    if reading.label_words is not None:
        p = "p not known" if reading.label_p is None else f"p {_p(reading.label_p)}"
        say(label, f"{reading.label_words!r}  {p}")
    if (top := reading.top) is not None:
        p = f"p {_p(top.p)}" if top.p is not None else f"p below {_p(top.at_most)}"
        right = {True: "; the teacher is right", False: "; the teacher is wrong", None: ""}
        known = "" if top.p is None and top.at_most >= 1.0 else f"  {p}"
        say("likeliest", f"{top.words!r}{known}{right[reading.right]}")
    say(
        "entropy",
        "not known"
        if reading.entropy is None
        else f"{reading.entropy:.3f} nats, as of {math.exp(reading.entropy):,.1f} equally likely ids",
    )
    if not reading.soft:
        say("kept", "nothing: hard label only")
    if reading.kept:
        what = "sure to be kept, with their p" if reading.tail is None else "with their p"
        say("kept", f"{len(reading.kept)} of {vocab_size:,} ids, {what} at T={t:g}:")
        lines += _listed(reading.kept, reading.label)
    if reading.tail is not None:
        say("tail", f"{_p(reading.tail)} on all other ids")
    if reading.drawn:
        each = reading.drawn[0].p
        alike = each <= reading.drawn[-1].p * 1.001
        stands = f"each standing for {_p(each)}" if alike else "with their weights"
        say("drawn", f"{len(reading.drawn)} ids by chance at T={t:g}, {stands}:")
        lines += _listed(reading.drawn, reading.label, weights=not alike)
    return lines


def _p(p: float) -> str:
    return f"{p:.4f}" if p >= 0.001 or p == 0 else f"{p:.2e}"


def _listed(choices: Sequence[Choice], label: int, *, weights: bool = True) -> list[str]:
    """Several on a line."""
    words = [
        _marked(f"{c.words!r} {_p(c.p)}" if weights else repr(c.words), c.id == label)
        for c in choices
    ]
    return ["            " + "  ".join(words[i : i + 5]) for i in range(0, len(words), 5)]
