"""What a build reports to whoever watches it, and how progress reads in a log file.

A log gets one line when a stage begins, one every 30 seconds, and one when it ends, so that whoever opens the file
later can tell how far a job is, how fast it goes and when it will be done.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Protocol

from softlabels.errors import ConfigError

INTERVAL = "SOFTLABELS_PROGRESS_SECONDS"
"""Environment variable: seconds between two lines of progress where stderr is no terminal; default 30."""
DEFAULT_SECONDS = 30.0


class Reporter(Protocol):
    """Receives the progress of a job: of either package, and of every command."""

    def notice(self, message: str) -> None:
        """A line for people."""

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> None:
        """A new stage begins, of `total` units if that is known, of which `done` were done before."""

    def advance(self, amount: int, note: str | None = None) -> None:
        """Progress in the present stage; `note` says what else is known by now and replaces the note before."""


class Silent:
    """Reports nothing; derive from it to report a part."""

    def notice(self, message: str) -> None:
        """Say nothing."""

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> None:
        """Say nothing."""

    def advance(self, amount: int, note: str | None = None) -> None:
        """Say nothing."""


def interval() -> float:
    """Seconds between two lines; `ConfigError` if the environment variable holds no number of 0 or more."""
    given = os.environ.get(INTERVAL, "")
    try:
        seconds = float(given) if given else DEFAULT_SECONDS
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"{INTERVAL}={given}: expected seconds, a number of 0 or more")
    return seconds


class Lines:
    """Progress as lines of text.

    Args:
        write: prints one line.
        seconds: between two lines of one stage; default as the environment says.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._clock = write, clock
        self._seconds = interval() if seconds is None else seconds
        self._name = ""

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> None:
        """Begin a stage, of which `done` was done before (it does not count in the rate)."""
        self.close()
        self._name, self._total, self._unit, self._note = name, total, unit, ""
        self._done = self._before = done
        self._start = self._last = self._clock()
        much = "begins" if total is None else f"{amount_of(total, unit)} to do"
        self._write(f"{name}: {much}" + (f", {amount_of(done, unit)} done before" if done else ""))

    def advance(self, amount: int, note: str | None = None) -> None:
        """Count, and write a line if it is time."""
        if not self._name:
            return
        self._done += amount
        self._note = self._note if note is None else note
        now = self._clock()
        if now - self._last >= self._seconds:
            self._last = now
            self._write(self._line(now))

    def close(self, *, stopped: bool = False) -> None:
        """End the stage with a line of its own."""
        if not self._name:
            return
        spent = self._clock() - self._start
        end = "stopped" if stopped else "done"
        parts = [f"{amount_of(self._done, self._unit)} in {duration(spent)}", *self._told(spent)]
        self._write(f"{self._name}: {end}, {', '.join(parts)}")
        self._name = ""

    def _line(self, now: float) -> str:
        spent, total = now - self._start, self._total
        if total is None:
            much = f"{amount_of(self._done, self._unit)} so far"
        else:
            share = self._done / total if total else 1.0
            much = f"{amount_of(self._done, self._unit, of=total)} ({share:.0%})"
        parts = [much, *self._told(spent)]
        fresh = self._done - self._before
        if total is not None and fresh > 0 and spent > 0:
            left = max(0, total - self._done) * spent / fresh
            parts.insert(2, f"{duration(left)} left")
        return f"{self._name}: {', '.join(parts)}"

    def _told(self, spent: float) -> list[str]:
        """The rate, and what else is known."""
        fresh = self._done - self._before
        parts = [rate_of(fresh / spent, self._unit)] if fresh > 0 and spent > 0 else []
        return [*parts, self._note] if self._note else parts


def amount_of(amount: float, unit: str, *, of: int | None = None) -> str:
    """A count with its unit, bytes as MB or kB."""
    if unit == "bytes":
        size, name = (1e6, "MB") if max(amount, of or 0) >= 1e6 else (1e3, "kB")
        scaled = "" if of is None else f" of {of / size:,.1f}"
        return f"{amount / size:,.1f}{scaled} {name}"
    whole = "" if of is None else f" of {of:,}"
    return f"{amount:,.0f}{whole} {unit}"


def rate_of(speed: float, unit: str) -> str:
    """How much a second."""
    if unit == "bytes":
        return f"{speed / 1e6:,.2f} MB/s"
    return f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2f}/s"


def duration(seconds: float) -> str:
    """Seconds as people say them, in two units at most."""
    whole = round(seconds)
    for size, name, smaller, below in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size:,} {name}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s" if whole >= 10 or whole == seconds else f"{seconds:.1f} s"
