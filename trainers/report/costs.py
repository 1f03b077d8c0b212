"""What runs cost: time, speed and memory from what they logged, and money where a price is given."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

from softlabels.core.progress import duration
from trainers.report.entries import Entry
from trainers.report.runs import ReportedRun


class Cost(NamedTuple):
    """The costs of an entry; of several seeds the mean of a run. None: it was not logged."""

    name: str
    counted: str
    seconds: float | None
    about: bool
    """Whether the time is told from the steps that were logged, evaluations and checkpoints left out."""
    rate: float | None
    """Tokens (positions) learnt from in a second: the median of the steps that were logged."""
    memory: float | None
    """Peak MiB of a process."""
    gpu_memory: float | None
    """Peak MiB on a GPU."""
    money: float | None
    """At the price of an hour, of all its seeds."""

    @property
    def time(self) -> str:
        """The time in words."""
        if self.seconds is None:
            return ""
        return ("about " if self.about else "") + duration(self.seconds)


def costs_of(entries: Sequence[Entry], price: float | None) -> list[Cost]:
    """A line for each entry."""
    return [_cost(entry, price) for entry in entries]


def _cost(entry: Entry, price: float | None) -> Cost:
    times = [seconds_of(run) for run in entry.runs]
    known = [t for t, _ in times if t is not None]
    whole = len(known) == len(times)
    return Cost(
        entry.name,
        entry.counted,
        fmean(known) if whole else None,
        any(about for _, about in times),
        _mean([_logged(run, "positions_per_second", median) for run in entry.runs]),
        _mean([_logged(run, "peak_rss_mib", max) for run in entry.runs]),
        _mean([_logged(run, "peak_gpu_mib", max) for run in entry.runs]),
        sum(known) / 3600 * price if whole and price is not None else None,
    )


def seconds_of(run: ReportedRun) -> tuple[float | None, bool]:
    """Wall seconds of a run, and whether they are told from its steps alone, as of runs that did not log them."""
    elapsed, steps = run.curves.get("elapsed"), run.curves.get("seconds")
    if elapsed:
        return elapsed[-1][1], False
    if not steps:
        return None, False
    return fmean(seconds for _, seconds in steps) * steps[-1][0], True


def _logged(run: ReportedRun, key: str, of: object) -> float | None:
    values = [value for _, value in run.curves.get(key, [])]
    return float(of(values)) if values and callable(of) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known and len(known) == len(values) else None
