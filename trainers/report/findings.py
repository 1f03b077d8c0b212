"""What a page about runs has to say, before it says it: which run is compared with which, and with what result."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from softlabels.report.charts import Dot, Series, style_of
from trainers.evaluation.evaluations import Bin, Cells, Group, Interval
from trainers.report.runs import ReportedRun, difference

OF_TEACHER = ("soft", "agreement")


class Score(NamedTuple):
    """A line of the table of scores."""

    name: str
    words: str
    form: str
    lower: bool
    """Whether lower is better."""
    teacher: str | None = None
    """Name of the teacher's own."""


SCORES = (
    Score("nll", "loss on held-out text, nats", ".3f", True, "teacher_nll"),
    Score("perplexity", "perplexity", ",.1f", True),
    Score("accuracy", "first choice is right", ".1%", False, "teacher_accuracy"),
    Score("macro_f1", "macro-F1", ".4f", False),
    Score("ece", "calibration error (ECE)", ".1%", True, "teacher_ece"),
    Score("kl_dense", "KL from the teacher, nats", ".3f", True),
    Score("kl", "KL over kept ids and tail, a lower bound", ".3f", True),
    Score("agreement", "first choice is the teacher's", ".1%", False),
    Score("top_k_agreement", "teacher's choice among its first 5", ".1%", False),
    Score("acceptance_low", "drafts a teacher accepts, at least", ".1%", False),
    Score("acceptance_high", "drafts a teacher accepts, at most", ".1%", False),
)


class ScoreLine(NamedTuple):
    """One score of all runs."""

    score: Score
    teacher: float | None
    found: list[Interval | None]
    best: float | None
    """None: there is nothing to be better than."""


class Matched(NamedTuple):
    """One part of the held-out rows, as each run did on it; None: the run's evaluation does not list it."""

    name: str
    positions: int
    teacher_accuracy: float | None
    groups: list[Group | None]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Runs, and how the first of them compares."""

    runs: list[ReportedRun]
    """The best of those that had soft targets first."""
    best: ReportedRun
    other: ReportedRun | None
    """What `best` is compared with; None: there is one run only."""
    difference: Interval | None
    """Of the two."""
    soft_against_hard: bool
    """Whether the two are soft targets and hard labels only."""
    trained_on: bool
    """Whether a student was trained on the store that it was evaluated on."""

    @classmethod
    def of(cls, runs: Sequence[ReportedRun]) -> Findings:
        """Put in order, and compared."""
        ordered = sorted(runs, key=lambda r: (r.hard_only, r.found.scores.nll))
        hard = next((r for r in ordered if r.hard_only), None)
        both = hard is not None and hard is not ordered[0]
        other = hard if both else ordered[1] if len(ordered) > 1 else None
        digests = {m.content_digest for r in ordered for _, m in r.training_stores if m is not None}
        digests |= {r.record["store_digest"] for r in ordered}
        return cls(
            runs=ordered,
            best=ordered[0],
            other=other,
            difference=None if other is None else difference(ordered[0], other),
            soft_against_hard=both,
            trained_on=ordered[0].found.store.digest in digests,
        )

    @property
    def times(self) -> float | None:
        """How many times as likely the first holds what is right as the other does, or the teacher as the only run.

        A geometric mean; None: the difference is not clear, or the teacher's own loss is not known.
        """
        scores = self.best.found.scores
        if self.soft_against_hard and self.difference is not None:
            nats = self.difference.value if self.difference.clear else None
        else:
            nats = None if scores.teacher_nll is None else scores.nll - scores.teacher_nll
        return None if nats is None else math.exp(min(nats, 700))

    @property
    def missing(self) -> list[str]:
        """Training stores that are not where the runs have them."""
        return [s for run in self.runs for s, m in run.training_stores if m is None]

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Which colour is which run."""
        return [(style_of(i), run.name) for i, run in enumerate(self.runs)]

    def beside(self, name: str) -> float | None:
        """A score of the run that the first is compared with."""
        return None if self.other is None else getattr(self.other.found.scores, name)

    def dots(self, name: str, teacher: float | None = None) -> list[Dot]:
        """A score of each run that has it, and the teacher's own."""
        items = [
            Dot(run.described, style_of(i), x.value, x.low, x.high)
            for i, run in enumerate(self.runs)
            if (x := run.score(name)) is not None and x.value is not None
        ]
        if items and teacher is not None:
            items.insert(0, Dot("the teacher itself", "t", teacher, None, None))
        return items

    def table(self) -> list[ScoreLine]:
        """The scores that a run has."""
        return [line for score in SCORES if (line := self._line(score)) is not None]

    def _line(self, score: Score) -> ScoreLine | None:
        found = [run.score(score.name) for run in self.runs]
        values = [x.value for x in found if x is not None and x.value is not None]
        first = self.runs[0].found
        if not values or (score.name == "macro_f1" and not first.by_class):
            return None
        teacher = None if score.teacher is None else getattr(first.scores, score.teacher)
        best = (min if score.lower else max)(values) if len(values) > 1 else None
        return ScoreLine(score, teacher, found, best)

    def curves(self, key: str) -> list[Series]:
        """What was logged; none, where no run logged it twice."""
        return _worth_drawing(
            Series(run.name, style_of(i), run.curves.get(key, []))
            for i, run in enumerate(self.runs)
            if key not in OF_TEACHER or not run.hard_only  # which compares nothing, and logs 0
        )

    def by_length(self, key: str) -> list[Series]:
        """A score by tokens of context."""
        return _worth_drawing(
            Series(run.name, style_of(i), _by_length(run.found.by_context, key))
            for i, run in enumerate(self.runs)
        )

    def judged(self) -> list[ReportedRun]:
        """Runs of which it is known what they do where teacher and truth disagree."""
        return [r for r in self.runs if r.found.blind_spots and r.found.blind_spots.cells.n]

    def by_confidence(self) -> list[Matched]:
        """Bins of the teacher's confidence, over `judged`."""
        return _matched([r.found.blind_spots.by_confidence for r in self.judged()])  # type: ignore[union-attr]

    def groups(self, which: str) -> list[Matched]:
        """`by_class` or `by_document`."""
        return _matched([getattr(run.found, which) for run in self.runs])


def answers(cells: Cells) -> list[tuple[str, str, list[tuple[str, float]]]]:
    """What a student says where the teacher is right, and where it is wrong: rows of `charts.shares`."""
    c, rows = cells, []
    for where, parts in (
        ("right", {"s0": c.both_right, "g3": c.teacher_only}),
        ("wrong", {"s0": c.student_only, "s2": c.copied, "g3": c.both_wrong}),
    ):
        if n := sum(parts.values()):
            shares = [(style, part / n) for style, part in parts.items()]
            rows.append((f"where the teacher is {where}", f"{n:,} positions", shares))
    return rows


def _worth_drawing(series: Iterable[Series]) -> list[Series]:
    found = list(series)
    return found if any(len(s.points) > 1 for s in found) else []


def _by_length(groups: Sequence[Group], key: str) -> list[tuple[float, float]]:
    found = []
    for g in groups:
        value = getattr(g, key)
        first = g.name.split("-")[0]
        if value is not None and first.isdigit() and int(first) > 0:
            found.append((float(first), float(value)))
    return found


def points(bins: Sequence[Bin]) -> list[tuple[float, float, int]]:
    """Confidence, accuracy and number of positions of the bins that hold any."""
    return [
        (b.confidence, b.accuracy, b.count)
        for b in bins
        if b.count > 0 and b.confidence is not None and b.accuracy is not None
    ]


def _matched(groups: Sequence[Sequence[Group]]) -> list[Matched]:
    by_name = [{g.name: g for g in of_run} for of_run in groups]
    return [
        Matched(name, g.positions, g.teacher_accuracy, [of_run.get(name) for of_run in by_name])
        for name, g in by_name[0].items()
    ]
