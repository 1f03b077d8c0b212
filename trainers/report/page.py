"""The report of one or several runs: what a stranger should know first, then the evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import softlabels
from softlabels.report.charts import Dot, dots, style_of
from softlabels.report.html import Child, Markup
from softlabels.report.page import Cell, charts, facts, figure, note, page, section, table
from trainers.evaluation.evaluations import Interval
from trainers.report import sections as parts
from trainers.report.runs import ReportedRun, difference, is_hard_only
from trainers.report.speed import Speed, speed

__all__ = ["render"]


class Score(NamedTuple):
    name: str
    words: str
    form: str
    lower: bool | None
    """Whether lower is better; None: neither."""
    teacher: str | None = None
    """The teacher's own."""


SCORES = (
    Score("nll", "loss on held-out text, nats", "{:.3f}", True, "teacher_nll"),
    Score("perplexity", "perplexity", "{:,.1f}", True),
    Score("accuracy", "first choice is right", "{:.1%}", False, "teacher_accuracy"),
    Score("macro_f1", "macro-F1", "{:.4f}", False),
    Score("ece", "calibration error (ECE)", "{:.1%}", True, "teacher_ece"),
    Score("kl", "KL from the teacher, nats", "{:.3f}", True),
    Score("agreement", "first choice is the teacher's", "{:.1%}", False),
    Score("top_k_agreement", "teacher's choice among its first 5", "{:.1%}", False),
    Score("acceptance_low", "drafts a teacher accepts, at least", "{:.1%}", False),
    Score("acceptance_high", "drafts a teacher accepts, at most", "{:.1%}", False),
)


def render(runs: Sequence[ReportedRun], *, command: str, latency: Speed | None = None) -> str:
    """The page.

    Args:
        runs: in the order in which they are to be shown; the best of those that had soft targets is put first.
        command: that made the report, to repeat it.
        latency: figures of `softtrain latency`, if there are any.
    """
    ordered = sorted(runs, key=lambda r: (is_hard_only(r), r.found.scores.nll))
    headline, comparison = _headline(ordered)
    body = [
        _key_figures(ordered),
        _comparison(ordered, comparison),
        parts.blind_spots(ordered),
        parts.calibration(ordered),
        parts.hard_places(ordered),
        parts.curves(ordered),
        parts.fidelity(ordered),
        parts.sizes(ordered),
        None if latency is None else speed(latency),
        parts.repeat(ordered, command),
    ]
    return page(
        f"Report: {', '.join(r.name for r in ordered)}",
        eyebrow="Distillation report",
        headline=headline,
        lead=_lead(ordered),
        body=[b for b in body if b is not None],
        version=softlabels.__version__,
    )


def _per(run: ReportedRun) -> str:
    return "nats per token" if run.found.store.domain.endswith("-lm") else "nats per answer"


def _trained_on(runs: Sequence[ReportedRun]) -> bool:
    """Whether a student was trained on the store that it was evaluated on."""
    digests = {m.content_digest for r in runs for _, m in r.training_stores if m is not None}
    return runs[0].found.store.digest in digests | {r.record.store_digest for r in runs}


def _where(runs: Sequence[ReportedRun]) -> str:
    if _trained_on(runs):
        return "on rows that were trained on"
    return (
        "on held-out text"
        if runs[0].found.store.domain != "image-classification"
        else "on held-out images"
    )


def _headline(runs: Sequence[ReportedRun]) -> tuple[str, str | None]:
    """One sentence, and one that says how sure it is."""
    first, per = runs[0], _per(runs[0])
    soft = [r for r in runs if not is_hard_only(r)]
    hard = [r for r in runs if is_hard_only(r)]
    if soft and hard:
        d = difference(soft[0], hard[0])
        sure = _sure(d.low, d.high, first.found.level, f"{soft[0].name} against {hard[0].name}")
        if not d.clear:
            return (
                f"Soft targets made no clear difference {_where(runs)}: {d.value:+.3f} {per} to hard labels only.",
                sure,
            )
        word = "beat" if d.value > 0 else "lose to"
        return (
            f"Soft targets {word} hard labels by {abs(d.value):.2f} {per} {_where(runs)}.",
            sure,
        )
    if len(runs) > 1:
        d = difference(first, runs[1])
        sure = _sure(d.low, d.high, first.found.level, f"{first.name} against {runs[1].name}")
        if not d.clear:
            return (
                f"{first.name} and {runs[1].name} are equally good {_where(runs)}, as far as these rows can tell.",
                sure,
            )
        return f"Of {len(runs)} students {first.name} is the best, by {d.value:.2f} {per}.", sure
    teacher = first.found.scores.teacher_nll
    smaller = first.found.store.teacher_parameters / max(first.found.parameters, 1)
    text = f"{first.name} reaches a loss of {first.found.scores.nll:.2f} {per} {_where(runs)}"
    if teacher is None:
        return f"{text}.", None
    size = f", {smaller:.0f} times its size," if smaller >= 1.5 else ""
    return f"{text}; its teacher{size} at {teacher:.2f}.", None


def _sure(low: float | None, high: float | None, level: float, what: str) -> str:
    if low is None or high is None:
        return f"{what}: the rows are too few, or not the same, to say how sure that is."
    told = f"{level:.0%} interval; above 0: the first is better"
    return f"{what}, on the same rows: {low:+.3f} to {high:+.3f} nats ({told})."


def _lead(runs: Sequence[ReportedRun]) -> list[Child]:
    found = runs[0].found
    what = "predictions" if found.store.domain == "causal-lm" else "answers"
    told = f"Measured on {found.scores.positions:,} {what} in {found.store.rows:,} rows"
    if found.store.corpus:
        told += f" ({', '.join(found.store.corpus)})"
    if _trained_on(runs):
        return [f"{told}. Beware: these are rows that a student was trained on."]
    students = "the student" if len(runs) == 1 else "the students"
    lead = f"{told}, which {students} did not train on. The teacher: {found.store.teacher}."
    return [f"{_meaning(runs)} {lead}".strip()]


def _meaning(runs: Sequence[ReportedRun]) -> str:
    """The headline's nats as a ratio of probabilities."""
    what = "token that came" if runs[0].found.store.domain == "causal-lm" else "right answer"
    soft, hard = ([r for r in runs if is_hard_only(r) == side] for side in (False, True))
    if soft and hard:
        d = difference(soft[0], hard[0])
        if not d.clear:
            return ""
        return (
            f"With them, the student held each {what} {_times(d.value)} as likely (geometric mean)."
        )
    teacher = runs[0].found.scores.teacher_nll
    if teacher is None:
        return ""
    return f"The teacher held each {what} {_times(runs[0].found.scores.nll - teacher)} as likely (geometric mean)."


def _times(nats: float) -> str:
    return f"{math.exp(min(nats, 700)):.2f} times"


def _key_figures(runs: Sequence[ReportedRun]) -> Markup:
    first, s = runs[0], runs[0].found.scores
    baseline = next((r for r in runs[1:] if is_hard_only(r) != is_hard_only(first)), None)
    than = baseline or (runs[1] if len(runs) > 1 else None)

    def beside(name: str, form: str, teacher: float | None = None) -> str:
        said = []
        if than is not None and (other := getattr(than.found.scores, name)) is not None:
            who = "hard labels only" if than is baseline and is_hard_only(than) else than.name
            said.append(f"{who}: {form.format(other)}")
        if teacher is not None:
            said.append(f"teacher: {form.format(teacher)}")
        return "\n".join(said)

    items = [
        ("loss on held-out text, nats", f"{s.nll:.3f}", beside("nll", "{:.3f}", s.teacher_nll))
    ]
    if s.kl is not None:
        items.append(
            ("distance from the teacher (KL), nats", f"{s.kl:.3f}", beside("kl", "{:.3f}"))
        )
    if s.agreement is not None:
        words = "first choice is the teacher's"
        items.append((words, f"{s.agreement:.1%}", beside("agreement", "{:.1%}")))
    else:
        items.append(("first choice is right", f"{s.accuracy:.1%}", beside("accuracy", "{:.1%}")))
    teacher = first.found.store.teacher_parameters
    size = _millions(first.found.parameters)
    ratio = teacher / max(first.found.parameters, 1)
    items.append(("parameters", size, f"teacher: {_millions(teacher)}\n{ratio:.1f} times as many"))
    return facts(items)


def _millions(n: int) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= scale:
            return f"{n / scale:.3g} {unit}"
    return str(n)


def _comparison(runs: Sequence[ReportedRun], sure: str | None) -> Markup:
    figures = []
    for name, title, form in (
        ("nll", "Loss on held-out text, nats (lower is better)", "{:.3f}"),
        ("kl", "Distance from the teacher, KL in nats (lower is better)", "{:.3f}"),
    ):
        items = [
            Dot(_described(run), style_of(i), x.value, x.low, x.high)
            for i, run in enumerate(runs)
            if (x := run.score(name)) is not None and x.value is not None
        ]
        teacher = runs[0].found.scores.teacher_nll if name == "nll" else None
        if items and teacher is not None:
            items.insert(0, Dot("the teacher itself", "t", teacher, None, None))
        if items:
            figures.append(figure(title, dots(items, form=form, label=title)))
    head = ["", "teacher", *(run.name for run in runs)]
    rows = [_row(score, runs) for score in SCORES]
    level = runs[0].found.level
    return section(
        "Teacher and students" if len(runs) > 1 else "Teacher and student",
        "Pale bars, and the small print in the table, are "
        f"{level:.0%} intervals: where the number would lie if other rows had been drawn.",
        charts(*figures),
        note(sure) if sure else None,
        table(head, [r for r in rows if r is not None]),
        note(
            "Accepted drafts: the share of the student's tokens that speculative decoding with this teacher keeps, "
            "the sum of min(p, q). It is exact over the ids that the store keeps; the two bounds are all that the "
            "mass outside them allows."
        )
        if runs[0].found.scores.acceptance_low is not None
        else None,
    )


def _described(run: ReportedRun) -> str:
    config = run.record.config
    if is_hard_only(run):
        return f"{run.name} · hard labels only"
    alpha = config.get("alpha")
    return (
        f"{run.name} · soft targets, alpha {alpha:g}"
        if isinstance(alpha, int | float)
        else run.name
    )


def _row(score: Score, runs: Sequence[ReportedRun]) -> list[Child] | None:
    found = [run.score(score.name) for run in runs]
    values = [x.value for x in found if x is not None and x.value is not None]
    if not values or (score.name == "macro_f1" and not runs[0].found.by_class):
        return None
    teacher = None if score.teacher is None else getattr(runs[0].found.scores, score.teacher)
    best = min(values) if score.lower else max(values)
    cells: list[Child] = [
        score.words,
        Cell.number("" if teacher is None else score.form.format(teacher)),
    ]
    for x in found:
        cells.append(_cell(x, score, best=best if len(values) > 1 else None))
    return cells


def _cell(x: Interval | None, score: Score, *, best: float | None) -> Cell:
    if x is None or x.value is None:
        return Cell.number("")
    under = None
    if x.low is not None and x.high is not None:
        under = f"{score.form.format(x.low)} to {score.form.format(x.high)}"
    return Cell.number(score.form.format(x.value), under, best=x.value == best)
