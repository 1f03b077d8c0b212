"""Runs that differ in their seeds only, as one entry of a report; and whether two entries differ.

What several seeds scored is shown as their mean, with the lowest and the highest of them; what one run scored, with
the interval of its evaluation. A difference is judged by rows drawn for both entries together, and, of an entry of
several seeds, by seeds drawn as well: so neither the choice of the rows nor the luck of a seed passes for an effect.
Shapes: b replicates, S seeds, R rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.core.resampling import bootstrap
from softlabels.report.charts import Series
from trainers.data.arrangement import EARLIER
from trainers.evaluation.evaluations import Assessment, Interval
from trainers.report.runs import ReportedRun

REPLICATES = 1000
"""Replicates of a difference, at most: how many an evaluation had is what a file says."""
PLACES = frozenset(
    {
        "store",
        "heldout",
        "images",
        "heldout_images",
        "inputs",
        "cache",
        "cache_gib",
        "key",
        "follow",
    }
)
"""Settings that say where files lie, or whether they did yet: what was trained on is known by its digest."""
NUMBERED = re.compile(r"[-_. ]*(seed|s)?[-_.=]*\d*$")
"""What a common beginning of the names of several seeds ends in."""

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One setting, with a run for each seed."""

    runs: list[ReportedRun]
    name: str

    @property
    def shown(self) -> ReportedRun:
        """The run that stands for all where means say nothing: that of the middle held-out loss."""
        ordered = sorted(self.runs, key=lambda r: r.found.scores.nll)
        return ordered[(len(ordered) - 1) // 2]

    @property
    def several(self) -> bool:
        """Whether there is more than one seed."""
        return len(self.runs) > 1

    @property
    def found(self) -> Assessment:
        """The evaluation of the run that is shown."""
        return self.shown.found

    @property
    def hard_only(self) -> bool:
        """Whether it learnt from labels alone."""
        return self.runs[0].hard_only

    @property
    def counted(self) -> str:
        """How many seeds it has, if more than one."""
        return f"{len(self.runs)} seeds" if self.several else ""

    @property
    def described(self) -> str:
        """Its name, what it learnt from, and how often."""
        said = self.runs[0].described.removeprefix(self.runs[0].name)
        return f"{self.name}{said}" + (f" · {self.counted}" if self.several else "")

    def score(self, name: str) -> Interval | None:
        """A score: of one run with its interval, of several their mean with the lowest and the highest."""
        found = [x for run in self.runs if (x := run.score(name)) is not None]
        values = [x.value for x in found if x.value is not None]
        if len(values) < len(self.runs):
            return None
        if len(values) == 1:
            return found[0]
        return Interval(value=fmean(values), low=min(values), high=max(values))

    def mean(self, name: str) -> float | None:
        """A score, without what surrounds it."""
        found = self.score(name)
        return None if found is None else found.value

    @property
    def nll(self) -> float:
        """The held-out loss."""
        return fmean(run.found.scores.nll for run in self.runs)

    def curve(self, key: str, style: str) -> Series:
        """What was logged, at the steps that all seeds logged: their mean, with a band from lowest to highest."""
        return joined(self.name, style, [run.curves.get(key, []) for run in self.runs])


def joined(name: str, style: str, lines: Sequence[Sequence[tuple[float, float]]]) -> Series:
    """Lines as one, over the x that all of them have."""
    if len(lines) == 1:
        return Series(name, style, lines[0])
    tables = [dict(line) for line in lines]
    xs = sorted(set.intersection(*(set(t) for t in tables)))
    values = [(x, [t[x] for t in tables]) for x in xs]
    return Series(
        name,
        style,
        [(x, fmean(ys)) for x, ys in values],
        band=[(x, min(ys), max(ys)) for x, ys in values],
    )


def entries_of(runs: Sequence[ReportedRun]) -> list[Entry]:
    """Runs by their settings, in order of their first runs; runs of the same seed are never one entry."""
    groups: dict[str, list[ReportedRun]] = {}
    for run in runs:
        groups.setdefault(_setting(run), []).append(run)
    entries = list[Entry]()
    for group in groups.values():
        seeds = {run.record["config"].get("seed", 0) for run in group}
        together = [group] if len(seeds) == len(group) else [[run] for run in group]
        entries += [Entry(runs=some, name=_name(some, len(runs))) for some in together]
    if len({e.name for e in entries}) < len(entries):
        entries = [Entry(runs=e.runs, name=e.runs[0].name) for e in entries]
    return entries


def _setting(run: ReportedRun) -> str:
    config = settings_of(run.record)
    store = run.record.get("plan_digest") or run.record["store_digest"]
    facts = [store, run.record["parameters"], run.record["dtype"]]
    kept = {k: v for k, v in config.items() if k != "seed" and k not in PLACES}
    return json.dumps([kept, facts], sort_keys=True, default=str)


def settings_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a run, with what earlier versions did where they had none."""
    return {**EARLIER, **record["config"]}


def _name(runs: Sequence[ReportedRun], of: int) -> str:
    """What the names begin with that the seeds share; of one run its own."""
    if len(runs) == 1:
        return runs[0].name
    letters = zip(*(run.name for run in runs), strict=False)
    beginning = "".join(same[0] for same in takewhile(lambda c: len(set(c)) == 1, letters))
    shared = NUMBERED.sub("", beginning.rstrip("-_. "))
    return shared or (runs[0].name if len(runs) < of else "all runs")


def difference(one: Entry, other: Entry, name: str = "nll") -> Interval | None:
    """How much more `other` has of a score than `one`, with its paired interval; None: a score is not known.

    The interval is missing where the two were not evaluated on the same rows, or these are too few, or the sums of the
    score are not kept.
    """
    values = one.mean(name), other.mean(name)
    if values[0] is None or values[1] is None:
        return None
    value = values[1] - values[0]
    sides = [[run.found.sums(name) for run in entry.runs] for entry in (one, other)]
    every = [s for side in sides for s in side]
    positions = {tuple(run.found.row_positions) for e in (one, other) for run in e.runs}
    rows = {len(part) for s in every if s is not None for part in s}
    if None in every or len(positions) != 1 or rows != {len(next(iter(positions)))}:
        return Interval(value=value)
    sums = {
        f"{side}{i}{part}": np.array(s[j], np.float64)
        for side, found in enumerate(sides)
        for i, s in enumerate(found)
        if s is not None
        for j, part in enumerate("nd")
    }
    a = one.runs[0].found
    draws = np.random.default_rng(a.seed)

    def of(side: int, s: Mapping[str, Float64]) -> Float64:
        seeds = range(len(sides[side]))
        with np.errstate(invalid="ignore", divide="ignore"):
            each = np.stack([s[f"{side}{i}n"] / s[f"{side}{i}d"] for i in seeds], axis=1)
        return _over_seeds(each, draws)

    found = bootstrap(
        sums,
        lambda s: {"difference": of(1, s) - of(0, s)},
        replicates=min(a.replicates, REPLICATES),
        seed=a.seed,
        level=a.level,
    )
    low, high = found.get("difference", (None, None))
    return Interval(value=value, low=low, high=high)


def _over_seeds(each: Float64, draws: np.random.Generator) -> Float64:
    """`[b]`: mean of `each [b, S]` over S seeds drawn anew, around the mean of all.

    Drawn with replacement S seeds vary less than seeds do, by (S - 1) / S of the variance; that is made good.
    """
    b, s = each.shape
    centre = np.asarray(each.mean(axis=1))
    if s == 1:
        return centre
    drawn = np.take_along_axis(each, draws.integers(s, size=(b, s)), axis=1).mean(axis=1)
    return np.asarray(centre + (drawn - centre) * np.sqrt(s / (s - 1)))
