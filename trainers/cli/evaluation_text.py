"""An evaluation as a person reads it in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from softlabels.console.tables import table

if TYPE_CHECKING:
    from trainers.evaluation.evaluations import Assessment, Cells, Group

SCORES = (
    ("nll", "nll, nats per {}", "{:.4f}"),
    ("perplexity", "perplexity", "{:.1f}"),
    ("accuracy", "accuracy", "{:.2%}"),
    ("macro_f1", "macro-F1", "{:.4f}"),
    ("ece", "calibration error (ECE)", "{:.2%}"),
    ("kl_dense", "KL from the teacher, nats", "{:.4f}"),
    ("kl", "KL over kept ids and tail, a lower bound", "{:.4f}"),
    ("agreement", "agrees with the teacher", "{:.2%}"),
    ("top_k_agreement", "teacher's choice in its top 5", "{:.2%}"),
    ("acceptance_low", "drafts accepted, at least", "{:.2%}"),
    ("acceptance_high", "drafts accepted, at most", "{:.2%}"),
    ("teacher_nll", "the teacher's own nll", "{:.4f}"),
    ("teacher_accuracy", "the teacher's own accuracy", "{:.2%}"),
    ("teacher_ece", "the teacher's own ECE", "{:.2%}"),
)
GROUPED = ("", "positions", "nll", "accuracy", "KL", "agreement", "F1")
WORST = 3
"""Documents shown."""


def evaluation_text(a: Assessment, saved: Path | None) -> str:
    """Tables of scores with intervals, of blind spots, and of context lengths."""
    tables = [_scores(a)]
    if a.blind_spots is not None:
        tables.append(_cells(a.blind_spots.cells))
    for title, groups in (
        ("by tokens of context", a.by_context),
        ("by class", a.by_class),
        (f"worst of {a.documents:,} documents", a.by_document[:WORST] if a.documents > 1 else []),
    ):
        if groups:
            tables.append(table(title, GROUPED, map(_group, groups)))
    if a.scores.dropped is not None:
        d = a.scores.dropped
        each = ", ".join(
            f"{mean:.2g} at T={t:g} (at most {most:.2g})"
            for t, mean, most in zip(d["temperatures"], d["mean"], d["largest"], strict=True)
        )
        tables.append(f"dropped  {each}; {d['emptied']} positions kept no id")
    if saved is not None:
        tables.append(f"kept in {saved}")
    return "\n".join(tables)


def _scores(a: Assessment) -> str:
    soft = a.scores.soft_positions
    some = "" if soft == a.scores.positions else f", {soft:,} of them soft"
    one = "token" if a.store.domain.endswith("-lm") else "label"
    rows = []
    for name, label, form in SCORES:
        value = getattr(a.scores, name)
        twice = name == "kl" and value == a.scores.kl_dense  # of a store that keeps all ids
        of_tokens = name == "macro_f1" and not a.by_class  # too many classes for a mean over them
        if value is not None and not (twice or of_tokens):
            x = a.intervals.get(name)
            both = "" if x is None else f"{form.format(x.low)} to {form.format(x.high)}"
            rows.append((label.format(one), form.format(value), both))
    title = f"{a.scores.positions:,} positions in {a.store.rows:,} rows{some}"
    return table(title, ("", "score", f"{a.level:.0%} interval"), rows)


def _cells(c: Cells) -> str:
    both_wrong = f"{(c.copied + c.both_wrong) / c.n:.1%} (the same error: {c.copied / c.n:.1%})"
    rows = [
        ("student right", f"{c.both_right / c.n:.1%}", f"{c.student_only / c.n:.1%}"),
        ("student wrong", f"{c.teacher_only / c.n:.1%}", both_wrong),
    ]
    return table("blind spots: who was right", ("", "teacher right", "teacher wrong"), rows)


def _group(g: Group) -> list[str]:
    scores = (g.nll, ".3f"), (g.accuracy, ".1%"), (g.kl, ".3f"), (g.agreement, ".1%"), (g.f1, ".3f")
    return [
        g.name,
        f"{g.positions:,}",
        *("" if value is None else format(value, form) for value, form in scores),
    ]
