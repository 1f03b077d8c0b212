"""A comparison for people: the table of a terminal, and the block of a model card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from softlabels.core.printable import for_markdown, printable
from softlabels.kld.record import Candidate, Comparison, Figure, Group, Pair, Test

ROWS: Sequence[tuple[str, str, str]] = (
    ("KL, mean", "kl", "nats"),
    ("KL, median", "kl_median", "nats"),
    ("KL, 90 %", "kl_90", "nats"),
    ("KL, 99 %", "kl_99", "nats"),
    ("KL, 99.9 %", "kl_99_9", "nats"),
    ("KL, largest", "kl_max", "nats"),
    ("KL over the kept ids and the rest, mean", "kl_bins", "nats"),
    ("same most probable token", "same_top", "share"),
    ("perplexity, over the reference's", "perplexity_ratio", "ratio"),
    ("Δp, root mean square", "dp_rms", "share"),
    ("Δp, 1 %", "dp_1", "share"),
    ("Δp, median", "dp_median", "share"),
    ("Δp, 99 %", "dp_99", "share"),
    ("drafts accepted, at least", "accept_low", "share"),
    ("drafts accepted, at most", "accept_high", "share"),
)
CARD = ("kl", "kl_median", "kl_99", "same_top", "perplexity_ratio", "dp_rms")
UNKNOWN, INFINITE = "not known", "infinite"


def shown(value: float, unit: str) -> str:
    """A number with as many digits as tell."""
    if unit == "share":
        return f"{value:.2%}"
    if unit == "ratio":
        return f"{value:.4f}"
    return (
        f"{value:.2e}" if 0 < abs(value) < 1e-4 else f"{value:.5f}" if value < 1 else f"{value:.3f}"
    )


def with_interval(figure: Figure, unit: str) -> str:
    """`0.01234 (0.01200 to 0.01300)`."""
    if figure.value is None:
        return UNKNOWN
    text = shown(figure.value, unit)
    if figure.low is None or figure.high is None:
        return text
    return f"{text} ({shown(figure.low, unit)} to {shown(figure.high, unit)})"


def figure_of(candidate: Candidate, key: str, unit: str, *, interval: bool = True) -> str:
    """One figure of a candidate, in words."""
    figure = candidate.figures.get(key, Figure(value=None))
    if figure.value is None:
        return INFINITE if candidate.infinite and key.startswith("kl") else UNKNOWN
    return with_interval(figure, unit) if interval else shown(figure.value, unit)


def megabytes(bytes_: int | None) -> str:
    """Of a model on disk."""
    return UNKNOWN if bytes_ is None else f"{bytes_ / 1e6:,.1f} MB"


def table(found: Comparison) -> list[tuple[str, list[str]]]:
    """Name of each figure, and what it is for each candidate."""
    lines = [("size", [megabytes(c.model.bytes) for c in found.candidates])]
    for name, key, unit in ROWS:
        lines.append((name, [figure_of(c, key, unit) for c in found.candidates]))
    lines.append(
        ("flips: reference right / candidate right", [flips(c.flips) for c in found.candidates])
    )
    return lines


def flips(test: Test) -> str:
    """`312 / 280, p = 0.19`."""
    return f"{test.only_first:,} / {test.only_second:,}, p = {test.p:.2g}"


def neighbours(found: Comparison) -> list[Pair]:
    """The pairs of each candidate and the next nearest, the nearest first; `found.pairs` has all."""
    kls = {c.model.name: c.figures["kl"].value for c in found.candidates}
    order = sorted(kls, key=lambda name: (kls[name] is None, kls[name] or 0.0))
    pairs = {frozenset((p.first, p.second)): p for p in found.pairs}
    return [pairs[frozenset(two)] for two in pairwise(order)]


def verdict(pair: Pair) -> str:
    """Which of two is nearer, as a sentence."""
    d = pair.kl_difference
    if d.value is None:
        return f"{pair.first} and {pair.second}: at no position are the KLs of both finite"
    nearer, other = pair.first, pair.second
    if d.value > 0:
        nearer, other = other, nearer
    else:
        d = Figure(value=-d.value, low=_negative(d.high), high=_negative(d.low))
    by = with_interval(d, "nats")
    if pair.p < 0.05:
        return f"{nearer} is nearer than {other}, by {by} nats a token (p = {pair.p:.2g})"
    return f"{nearer} and {other} cannot be told apart: {by} nats a token (p = {pair.p:.2g})"


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def notes(found: Comparison) -> Iterator[str]:
    """What must be said beside the figures."""
    r = found.reference
    yield (
        f"{found.positions:,} positions in {found.rows:,} rows of {r.path} ({r.model}, {r.estimator} k={r.k}, "
        f"{r.tail:.1%} of the mass in the tail); in brackets: 95 % intervals, by resampling rows"
    )
    for c in found.candidates:
        least, most = (UNKNOWN if b is None else f"{b:.3g}" for b in (c.kl_least, c.kl_most))
        how = "the kept ids alone, for want of wide rows"
        if c.kl_from == "wide rows":
            error = UNKNOWN if c.kl_error is None else f"{c.kl_error:.1%}"
            how = f"{c.wide_positions:,} positions with more ids (median error of a position {error}, rounding aside)"
        yield (
            f"{c.model.name}: the KL within the tails is estimated from {how}; whatever they are, the mean is between "
            f"{least} and {most} nats"
        )
        if c.impossible:
            yield (
                f"{c.model.name}: gives some ids probability 0 at {c.impossible:,} positions, at {c.infinite:,} of "
                "them one that the reference keeps: there the KL is infinite"
            )


def for_people(found: Comparison) -> str:
    """The table of a terminal."""
    names = [c.model.name for c in found.candidates]
    rows = [("", names), *table(found)]
    first = max(len(name) for name, _ in rows)
    widths = [max(len(values[i]) for _, values in rows) for i in range(len(names))]
    lines = [
        f"{name:>{first}}  " + "  ".join(f"{v:>{w}}" for v, w in zip(values, widths, strict=True))
        for name, values in rows
    ]
    groups: Sequence[tuple[str, Callable[[Candidate], Sequence[Group]]]] = (
        ("by kind of token", lambda c: c.by_class),
        ("by tokens of context", lambda c: c.by_context),
        ("worst documents", lambda c: c.by_document[:3] if c.documents > 1 else []),
    )
    for title, of in groups:
        lines += _grouped(title, found.candidates, of)
    return "\n".join([*lines, "", *notes(found), *map(verdict, neighbours(found))])


def _grouped(
    title: str, candidates: Sequence[Candidate], of: Callable[[Candidate], Sequence[Group]]
) -> Iterator[str]:
    """KL and same-top share of each group."""
    named = [{g.name: g for g in of(c)} for c in candidates]
    if not named[0]:
        return
    yield f"\n{title}: positions, and KL, same most probable token of each candidate"
    width = max(map(len, named[0]))
    for name, group in named[0].items():
        each = "   ".join(
            f"{kl_of(g)} {g.same_top:.1%}" if (g := by.get(name)) else "-" for by in named
        )
        yield f"  {printable(name):>{width}}  {group.positions:>8,}   {each}"


def kl_of(group: Group) -> str:
    """Mean KL of a group."""
    return INFINITE if group.kl is None else shown(group.kl, "nats")


def markdown(found: Comparison) -> str:
    """A block for a model card: what was compared with what, and how to do it again."""
    r = found.reference
    names = {key: (name, unit) for name, key, unit in ROWS}
    heads = [names[key][0] for key in CARD]
    lines = [
        f"KL divergence from {for_markdown(r.model)} ({r.dtype}) over {found.positions:,} tokens, "
        f"`softlabels kld` {found.softlabels} on a reference with sha256 `{r.digest[:16]}`:",
        "",
        "| model | size | " + " | ".join(heads) + " |",
        "|---|" + "---|" * (len(heads) + 1),
    ]
    for c in found.candidates:
        cells = [figure_of(c, key, names[key][1]) for key in CARD]
        lines.append(
            f"| {for_markdown(c.model.name)} | {megabytes(c.model.bytes)} | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join([*lines, "", "In brackets: 95 % intervals, by resampling rows.", ""])
