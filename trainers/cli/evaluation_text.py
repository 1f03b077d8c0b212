"""An evaluation as a person reads it in a terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlabels.core.printable import printable

if TYPE_CHECKING:
    from trainers.evaluation.evaluations import Assessment, Cells, Group

SCORES = (
    ("nll", "nll, nats per {}", "{:.4f}"),
    ("perplexity", "perplexity", "{:.1f}"),
    ("accuracy", "accuracy", "{:.2%}"),
    ("macro_f1", "macro-F1", "{:.4f}"),
    ("ece", "calibration error (ECE)", "{:.2%}"),
    ("kl", "KL from the teacher, nats", "{:.4f}"),
    ("agreement", "agrees with the teacher", "{:.2%}"),
    ("top_k_agreement", "teacher's choice in its top 5", "{:.2%}"),
    ("acceptance_low", "drafts accepted, at least", "{:.2%}"),
    ("acceptance_high", "drafts accepted, at most", "{:.2%}"),
    ("teacher_nll", "the teacher's own nll", "{:.4f}"),
    ("teacher_accuracy", "the teacher's own accuracy", "{:.2%}"),
    ("teacher_ece", "the teacher's own ECE", "{:.2%}"),
)
WORST = 3
"""Documents shown."""


def evaluation_text(a: Assessment, saved: Path | None) -> str:
    """Tables of scores with intervals, of blind spots, and of context lengths."""
    from rich.console import Console
    from rich.table import Table

    soft = a.scores.soft_positions
    some = "" if soft == a.scores.positions else f", {soft:,} of them soft"
    table = Table(
        title=f"{a.scores.positions:,} positions in {a.store.rows:,} rows{some}", box=None
    )
    one = "token" if a.store.domain.endswith("-lm") else "label"
    table.add_column("")
    table.add_column("score", justify="right")
    table.add_column(f"{a.level:.0%} interval", justify="right")
    for name, label, form in SCORES:
        value = getattr(a.scores, name)
        if value is not None:
            x = a.intervals.get(name)
            both = "" if x is None else f"{form.format(x.low)} to {form.format(x.high)}"
            table.add_row(label.format(one), form.format(value), both)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table)
    if a.blind_spots is not None:
        console.print(_cells(a.blind_spots.cells, Table))
    for title, groups in (
        ("by tokens of context", a.by_context),
        ("by class", a.by_class),
        (f"worst of {a.documents:,} documents", a.by_document[:WORST] if a.documents > 1 else []),
    ):
        if groups:
            console.print(_groups(title, groups, Table))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    if a.scores.dropped is not None:
        d = a.scores.dropped
        each = ", ".join(
            f"{mean:.2g} at T={t:g} (at most {most:.2g})"
            for t, mean, most in zip(d["temperatures"], d["mean"], d["largest"], strict=True)
        )
        lines.append(f"dropped  {each}; {d['emptied']} positions kept no id")
    if saved is not None:
        lines.append(f"kept in {saved}")
    return "\n".join(lines)


def _cells(c: Cells, table_of: Any) -> Any:
    table = table_of(title="blind spots: who was right", box=None)
    table.add_column("")
    table.add_column("teacher right", justify="right")
    table.add_column("teacher wrong", justify="right")
    table.add_row("student right", f"{c.both_right / c.n:.1%}", f"{c.student_only / c.n:.1%}")
    table.add_row(
        "student wrong",
        f"{c.teacher_only / c.n:.1%}",
        f"{(c.copied + c.both_wrong) / c.n:.1%} (the same error: {c.copied / c.n:.1%})",
    )
    return table


def _groups(title: str, groups: list[Group], table_of: Any) -> Any:
    from rich.text import Text

    table = table_of(title=title, box=None)
    for name in ("", "positions", "nll", "accuracy", "KL", "agreement", "F1"):
        table.add_column(name, justify="right")
    for g in groups:
        table.add_row(
            Text(printable(g.name)),  # not its markup
            f"{g.positions:,}",
            "" if g.nll is None else f"{g.nll:.3f}",
            "" if g.accuracy is None else f"{g.accuracy:.1%}",
            "" if g.kl is None else f"{g.kl:.3f}",
            "" if g.agreement is None else f"{g.agreement:.1%}",
            "" if g.f1 is None else f"{g.f1:.3f}",
        )
    return table
