"""What a page about runs has to say, before it says it: which run is compared with which, and with what result."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from softlabels.domains import DOMAINS
from softlabels.report.charts import Dot, Series, same_lines, style_of
from trainers.evaluation.evaluations import RATIOS, Bin, Cells, Group, Interval
from trainers.report.entries import Entry, difference, entries_of, joined
from trainers.report.runs import ReportedRun

OF_TEACHER = ("soft", "agreement")
OF_DRAFTS = ("acceptance_low", "acceptance_high")
"""Of students that write: nobody drafts a class."""


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
    best: int | None
    """Which entry is surely better than every other; None: none is, as far as the rows (and seeds) can tell."""
    beyond: Interval | None
    """Of two entries: how much more the second has."""


class Matched(NamedTuple):
    """One part of the held-out rows, as each entry did on it; None: its evaluation does not list it."""

    name: str
    positions: int
    teacher_accuracy: float | None
    groups: list[Group | None]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Entries, and how the first of them compares."""

    entries: list[Entry]
    """The best of those that had soft targets first."""
    best: Entry
    other: Entry | None
    """What `best` is compared with; None: there is one only."""
    difference: Interval | None
    """Of the two."""
    soft_against_hard: bool
    """Whether the two are soft targets and hard labels only."""
    trained_on: bool
    """Whether a student was trained on the store that it was evaluated on."""

    @classmethod
    def of(cls, runs: Sequence[ReportedRun]) -> Findings:
        """Put in order, and compared."""
        ordered = sorted(entries_of(runs), key=lambda e: (e.hard_only, e.nll))
        hard = next((e for e in ordered if e.hard_only), None)
        both = hard is not None and hard is not ordered[0]
        other = hard if both else ordered[1] if len(ordered) > 1 else None
        digests = {m.content_digest for r in runs for _, m in r.training_stores if m is not None}
        digests |= {r.record["store_digest"] for r in runs}
        return cls(
            entries=ordered,
            best=ordered[0],
            other=other,
            difference=None if other is None else difference(ordered[0], other),
            soft_against_hard=both,
            trained_on=ordered[0].found.store.digest in digests,
        )

    @property
    def runs(self) -> list[ReportedRun]:
        """All runs, entry by entry."""
        return [run for entry in self.entries for run in entry.runs]

    @property
    def styled(self) -> list[tuple[Entry, str]]:
        """Entries with the styles of their colours."""
        return [(entry, style_of(i)) for i, entry in enumerate(self.entries)]

    @property
    def seeded(self) -> list[Entry]:
        """Entries of several seeds."""
        return [entry for entry in self.entries if entry.several]

    @property
    def times(self) -> float | None:
        """How many times as likely the first holds what is right as the other does, or the teacher as the only run.

        A geometric mean; None: the difference is not clear, or the teacher's own loss is not known.
        """
        scores = self.best.found.scores
        if self.soft_against_hard and self.difference is not None:
            nats = self.difference.value if self.difference.clear else None
        else:
            nats = None if scores.teacher_nll is None else self.best.nll - scores.teacher_nll
        return None if nats is None else math.exp(min(nats, 700))

    @property
    def missing(self) -> list[str]:
        """Training stores that are not where the runs have them."""
        return [s for run in self.runs for s, m in run.training_stores if m is None]

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Which colour is which entry."""
        return [(style, entry.name) for entry, style in self.styled]

    def beside(self, name: str) -> float | None:
        """A score of what the first is compared with."""
        return None if self.other is None else self.other.mean(name)

    def dots(self, name: str, teacher: float | None = None) -> list[Dot]:
        """A score of each entry that has it, and the teacher's own."""
        items = [
            Dot(entry.described, style, x.value, x.low, x.high)
            for entry, style in self.styled
            if (x := entry.score(name)) is not None and x.value is not None
        ]
        if items and teacher is not None:
            items.insert(0, Dot("the teacher itself", "t", teacher, None, None))
        return items

    def table(self) -> list[ScoreLine]:
        """The scores that an entry has."""
        return [
            line
            for score in SCORES
            if (self.writes or score.name not in OF_DRAFTS)
            and (line := self._line(score)) is not None
        ]

    @property
    def writes(self) -> bool:
        """Whether the students write, a token after a token; of a domain that is not installed they may."""
        domain = self.best.found.store.domain
        return domain not in DOMAINS.names() or DOMAINS.load(domain).chained

    def _line(self, score: Score) -> ScoreLine | None:
        found = [entry.score(score.name) for entry in self.entries]
        first = self.entries[0].found
        known = [x is not None and x.value is not None for x in found]
        if not any(known) or (score.name == "macro_f1" and not first.by_class):
            return None
        if score.name == "kl" and self._whole():
            return None
        teacher = None if score.teacher is None else getattr(first.scores, score.teacher)
        beyond = self._beyond(score, 0, 1) if len(found) == 2 else None
        return ScoreLine(score, teacher, found, self._surely_best(score), beyond)

    def _whole(self) -> bool:
        """Whether the bins of the KL are the whole distribution, so that it is no bound."""
        pairs = [(entry.mean("kl"), entry.mean("kl_dense")) for entry in self.entries]
        return all(a is not None and b is not None and abs(a - b) < 1e-6 for a, b in pairs)

    def _beyond(self, score: Score, one: int, other: int) -> Interval | None:
        """How much more an entry has of a score than another; None: it is no ratio of sums, or not known."""
        if score.name not in RATIOS:
            return None
        return difference(self.entries[one], self.entries[other], score.name)

    def _surely_best(self, score: Score) -> int | None:
        """The entry whose difference to each of the others is clear, and in its favour."""
        # a perplexity is as certain as the loss that it is the exponential of
        asked = score._replace(name="nll") if score.name == "perplexity" else score
        values = [entry.mean(asked.name) for entry in self.entries]
        known = [(v if score.lower else -v, i) for i, v in enumerate(values) if v is not None]
        if len(known) < 2:
            return None
        _, best = min(known)
        beyond = [self._beyond(asked, best, i) for _, i in known if i != best]
        return best if all(d is not None and d.clear for d in beyond) else None

    def curves(self, key: str) -> list[Series]:
        """What was logged; none, where no run logged it twice."""
        return _worth_drawing(
            entry.curve(key, style)
            for entry, style in self.styled
            if key not in OF_TEACHER or not entry.hard_only  # which compares nothing, and logs 0
        )

    def by_length(self, key: str) -> list[Series]:
        """A score by tokens of context."""
        return _worth_drawing(
            joined(entry.name, style, [_by_length(r.found.by_context, key) for r in entry.runs])
            for entry, style in self.styled
        )

    def judged(self) -> list[Entry]:
        """Entries of which it is known what they do where teacher and truth disagree."""
        return [e for e in self.entries if e.found.blind_spots and e.found.blind_spots.cells.n]

    def by_confidence(self) -> list[Matched]:
        """Bins of the teacher's confidence, over `judged`."""
        return _matched([r.found.blind_spots.by_confidence for r in self.judged()])  # type: ignore[union-attr]

    def groups(self, which: str) -> list[Matched]:
        """`by_class` or `by_document`."""
        return _matched([getattr(entry.found, which) for entry in self.entries])


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
    found = same_lines(series)
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
