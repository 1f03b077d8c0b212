"""The parts of a report of runs, from learning curves to the commands that repeat it."""

from __future__ import annotations

from collections.abc import Sequence

from softlabels.report.charts import Series, lines, scatter, shares, style_of
from softlabels.report.fidelity import fidelity_table
from softlabels.report.html import Child, Markup, element
from softlabels.report.page import (
    Cell,
    charts,
    commands,
    figure,
    legend,
    more,
    note,
    quote,
    section,
    table,
)
from trainers.evaluation.evaluations import Bin, Cells, Group, Place
from trainers.report.runs import ReportedRun, fidelity_of, is_hard_only

__all__ = ["blind_spots", "calibration", "curves", "fidelity", "hard_places", "repeat", "sizes"]

CURVES = (
    ("hard", "cross-entropy with the labels, nats", "What the training rows' labels cost"),
    ("soft", "divergence from the teacher, nats", "How far from the teacher on training rows"),
    ("heldout_nll", "nll, nats", "Held-out rows"),
    ("agreement", "share of positions", "First choice is the teacher's"),
)
OF_TEACHER = ("soft", "agreement")
SEGMENTS = (("s0", "right"), ("s2", "the teacher's own error"), ("g3", "another error"))


def run_legend(runs: Sequence[ReportedRun]) -> Markup | None:
    """Which colour is which run; nothing where there is one."""
    if len(runs) < 2:
        return None
    return legend([(style_of(i), run.name) for i, run in enumerate(runs)])


def curves(runs: Sequence[ReportedRun]) -> Markup | None:
    """Learning curves, of what was logged."""
    figures = []
    for key, y_name, title in CURVES:
        series = [
            Series(run.name, style_of(i), run.curves.get(key, []))
            for i, run in enumerate(runs)
            if key not in OF_TEACHER or not is_hard_only(run)  # which compares nothing, and logs 0
        ]
        if any(len(s.points) > 1 for s in series):
            drawing = lines(
                series, x_name="step", y_name=y_name, label=f"{title}: {y_name} by step"
            )
            figures.append(figure(title, drawing))
    if not figures:
        return None
    return section(
        "Learning curves",
        "As logged during training. The first is comparable between runs; a run that weighs soft targets more learns "
        "the labels more slowly.",
        run_legend(runs),
        charts(*figures),
    )


def calibration(runs: Sequence[ReportedRun]) -> Markup:
    """Reliability diagrams: student filled, teacher hollow."""
    figures = []
    for i, run in enumerate(runs):
        ece = run.found.scores.ece
        teacher = run.found.scores.teacher_ece
        drawing = scatter(
            _points(run.found.reliability),
            style=style_of(i),
            x_name="how sure it was",
            y_name="how often it was right",
            label=f"reliability of {run.name}",
            behind=_points(run.found.teacher_reliability),
        )
        said = f"Calibration error {ece:.1%}"
        said += "." if teacher is None else f"; the teacher's {teacher:.1%} (hollow)."
        figures.append(figure(run.name, drawing, said))
    return section(
        "Can its confidence be believed?",
        "On the diagonal, what is said with 60 % confidence is right 60 % of the time; below it, it is too sure. "
        "Areas are numbers of positions.",
        charts(*figures),
    )


def _points(bins: Sequence[Bin]) -> list[tuple[float, float, int]]:
    return [
        (b.confidence, b.accuracy, b.count)
        for b in bins
        if b.count > 0 and b.confidence is not None and b.accuracy is not None
    ]


# -- blind spots ----------------------------------------------------------------------------------


def blind_spots(runs: Sequence[ReportedRun]) -> Markup | None:
    """What the students do where teacher and truth disagree."""
    seen = [
        run for run in runs if run.found.blind_spots is not None and run.found.blind_spots.cells.n
    ]
    if not seen:
        return None
    figures = []
    for run in seen:
        assert run.found.blind_spots is not None
        figures.append(figure(run.name, _cells(run.found.blind_spots.cells, run.name)))
    first = seen[0]
    assert first.found.blind_spots is not None
    c = first.found.blind_spots.cells
    lead = (
        f"A student inherits its teacher's errors. Here its first choice is wrong at {c.teacher_wrong / c.n:.1%} "
        f"of the positions; {first.name} repeats its error at {_share(c.copied, c.teacher_wrong)} of those, and "
        f"is right at {_share(c.student_only, c.teacher_wrong)}."
    )
    parts: list[Child] = [
        legend(SEGMENTS),
        charts(*figures),
        element("h3", "By how sure the teacher was", class_="top"),
        _by_confidence(seen),
        note(
            "An error that is repeated: of the positions where the teacher is wrong, the share with its very answer."
        ),
    ]
    for i, run in enumerate(seen):
        places = _places(run)
        if places:
            parts.append(places if i == 0 else more(f"The same for {run.name}", places))
    return section("Blind spots", lead, *parts)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _cells(c: Cells, name: str) -> Markup:
    right = c.both_right + c.teacher_only
    wrong = c.teacher_wrong
    rows = []
    if right:
        segments = [("s0", c.both_right / right), ("g3", c.teacher_only / right)]
        rows.append(("where the teacher is right", f"{right:,} positions", segments))
    if wrong:
        parts = (("s0", c.student_only), ("s2", c.copied), ("g3", c.both_wrong))
        segments = [(style, n / wrong) for style, n in parts]
        rows.append(("where the teacher is wrong", f"{wrong:,} positions", segments))
    return shares(
        rows, label=f"answers of {name} where the teacher is right, and where it is wrong"
    )


def _by_confidence(runs: Sequence[ReportedRun]) -> Markup:
    head = ["teacher's confidence", "positions", "teacher right"]
    for run in runs:
        head += [f"{run.name}: right", "repeats the teacher's error"]
    by_name: list[dict[str, Group]] = []
    for run in runs:
        assert run.found.blind_spots is not None
        by_name.append({g.name: g for g in run.found.blind_spots.by_confidence})
    rows = []
    for name, g in by_name[0].items():
        row: list[Child] = [name, f"{g.positions:,}", _percent(g.teacher_accuracy)]
        for groups in by_name:
            mine = groups.get(name)
            cells = None if mine is None else mine.cells
            right = "" if mine is None else _percent(mine.accuracy)
            row += [right, "" if cells is None else _share(cells.copied, cells.teacher_wrong)]
        rows.append(row)
    return table(head, rows)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _places(run: ReportedRun) -> Markup | None:
    spots = run.found.blind_spots
    assert spots is not None
    parts: list[Markup] = []
    for title, places in (
        (f"Inherited errors of which {run.name} is surest", spots.inherited),
        (f"What the teacher knew and {run.name} did not", spots.lost),
    ):
        if places:
            parts.append(element("h3", title, class_="top"))
            parts.append(_place_table(places))
    if spots.worst_rows:
        rows = [
            [
                g.name,
                f"{g.positions:,}",
                "" if g.kl is None else f"{g.kl:.3f}",
                "" if g.nll is None else f"{g.nll:.3f}",
                _percent(g.agreement),
            ]
            for g in spots.worst_rows
        ]
        head = ["row", "positions", "KL from the teacher", "nll", "agreement"]
        parts.append(more("Rows furthest from the teacher", table(head, rows)))
    return Markup("".join(parts)) if parts else None


def _place_table(places: Sequence[Place]) -> Markup:
    rows = [
        [
            Cell.words(
                quote(p.context, class_="context"), " ", quote(_shown(p.label), name="mark")
            ),
            Cell(element("td", _answer(p.teacher, p.teacher_confidence, p.label))),
            Cell(element("td", _answer(p.student, p.confidence, p.label))),
            f"{p.times:,}",
            f"{p.row}:{p.position}",
        ]
        for p in places
    ]
    head = ["text, and what came", "teacher", "student", "times", "row:token"]
    return table(head, rows, numbers_from=3)


def _shown(words: str) -> str:
    """A token; white space alone as signs for it."""
    return words if words.strip() else words.replace(" ", "␣").replace("\n", "↵")


def _answer(words: str, confidence: float, truth: str) -> list[Child]:
    class_ = None if words == truth else "bad"
    return [
        quote(_shown(words), class_=class_, name="mark"),
        element("small", f"{confidence:.0%} sure"),
    ]


# -- where it is hard ------------------------------------------------------------------------------


def hard_places(runs: Sequence[ReportedRun]) -> Markup | None:
    """By length of context, by class, by document."""
    figures: list[Markup] = []
    for key, y_name, title in (("nll", "nll, nats", "Loss"), ("agreement", "share", "Agreement")):
        series = [Series(run.name, style_of(i), _by_length(run, key)) for i, run in enumerate(runs)]
        if any(len(s.points) > 1 for s in series):
            drawing = lines(
                series,
                x_name="tokens of context (logarithmic)",
                y_name=y_name,
                label=f"{title} by tokens of context",
                log_x=True,
            )
            figures.append(figure(f"{title}, by how much text was seen", drawing))
    parts: list[Child] = []
    if figures:
        parts += [run_legend(runs), charts(*figures)]
    first = runs[0].found
    if first.by_class:
        parts += [element("h3", "By class", class_="top"), _group_table(runs, "by_class", "class")]
    if first.documents > 1:
        listed = f"{len(first.by_document)} of {first.documents:,} documents with the highest loss"
        parts.append(more(f"The {listed}", _group_table(runs, "by_document", "document")))
    if not parts:
        return None
    return section("Where it is hard", "The same scores over parts of the held-out rows.", *parts)


def _by_length(run: ReportedRun, key: str) -> list[tuple[float, float]]:
    found = []
    for g in run.found.by_context:
        value = getattr(g, key)
        first = g.name.split("-")[0]
        if value is not None and first.isdigit() and int(first) > 0:
            found.append((float(first), float(value)))
    return found


def _group_table(runs: Sequence[ReportedRun], which: str, what: str) -> Markup:
    head = [what, "positions", "teacher right"]
    for run in runs:
        head += [f"{run.name}: nll", "right", *(["F1"] if which == "by_class" else [])]
    others = [{g.name: g for g in getattr(run.found, which)} for run in runs]
    rows = []
    for name, g in others[0].items():
        row: list[Child] = [quote(name), f"{g.positions:,}", _percent(g.teacher_accuracy)]
        for groups in others:
            mine = groups.get(name)
            if mine is None:
                row += ["", ""] + ([""] if which == "by_class" else [])
                continue
            row += ["" if mine.nll is None else f"{mine.nll:.3f}", _percent(mine.accuracy)]
            if which == "by_class":
                row.append("" if mine.f1 is None else f"{mine.f1:.3f}")
        rows.append(row)
    return table(head, rows)


# -- stores, sizes, commands -----------------------------------------------------------------------


def fidelity(runs: Sequence[ReportedRun]) -> Markup | None:
    """Certificates of the training stores that have one."""
    parts: list[Child] = []
    seen = set()
    for run in runs:
        for spec, manifest in run.training_stores:
            record = fidelity_of(manifest)
            if record is not None and spec not in seen:
                seen.add(spec)
                parts += [element("h3", spec), fidelity_table(record)]
    if not parts:
        return None
    return section(
        "How faithful the store is",
        "The teacher was run again on some of the store's rows, and what is stored compared with what it said.",
        *parts,
    )


def sizes(runs: Sequence[ReportedRun]) -> Markup:
    """Parameters and bytes, of models and stores."""
    store = runs[0].found.store
    rows: list[list[Child]] = []
    if store.teacher_parameters:
        rows.append([f"teacher: {store.teacher}", f"{store.teacher_parameters:,}", "", ""])
    for run in runs:
        smaller = (
            f"1 : {store.teacher_parameters / run.found.parameters:.1f}"
            if run.found.parameters
            else ""
        )
        size = f"{run.found.student_bytes / 1e6:,.1f} MB"
        rows.append([run.name, f"{run.found.parameters:,}", size, smaller])
    parts: list[Child] = [table(["model", "parameters", "weights on disk", "to the teacher"], rows)]
    stores: dict[str, list[Child]] = {}
    for run in runs:
        for spec, manifest in run.training_stores:
            if manifest is not None:
                n = max(manifest.identity.corpus.positions, 1)
                dense = 2 * manifest.identity.teacher.vocab_size
                each = manifest.data_bytes / n
                stores[spec] = [
                    spec,
                    f"{n:,}",
                    f"{manifest.data_bytes / 1e6:,.1f} MB",
                    f"{each:.1f}",
                    f"1 : {dense / each:,.0f}" if each else "",
                ]
    if stores:
        head = ["store trained on", "positions", "size", "bytes each", "to dense fp16 logits"]
        parts += [element("h3", "Soft targets", class_="top"), table(head, list(stores.values()))]
    return section("Sizes", "What ships, and what it was made from.", *parts)


def repeat(runs: Sequence[ReportedRun], command: str) -> Markup:
    """Exact commands and digests."""
    found, record = runs[0].found, runs[0].record
    missing = [s for run in runs for s, m in run.training_stores if m is None]
    rows: list[list[Child]] = [
        ["held-out store", found.store.path, element("code", found.store.digest)]
    ]
    for run in runs:
        rows.append([f"{run.name}: store", "", element("code", run.record.store_digest)])
        rows.append(
            [f"{run.name}: weights", run.found.weights, element("code", run.found.weights_sha256)]
        )
    return section(
        "Repeat it",
        "These commands, run where these paths are, give these numbers; to the bit on the same machine and versions.",
        commands(*(run.command for run in runs), *(run.found.command for run in runs), command),
        table(["", "", "sha256"], rows, numbers_from=9),
        note(
            f"Trained with softlabels {record.softlabels}, torch {record.torch}, in {record.dtype}; "
            "evaluated in float32. "
            f"Intervals: {found.level:.0%}, {found.replicates:,} bootstrap replicates of whole rows, seed {found.seed}."
        ),
        note(f"Not found where the run has it: {', '.join(missing)}.") if missing else None,
    )
