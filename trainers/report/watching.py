"""How a run is doing, from its own files while it goes: nothing is asked of it, and nothing of it is written to.

metrics.jsonl is read whole each time, up to a line that is being written at that moment. Whether the run's process
lives is told by its name in the run's lock; one that cannot be looked at from here, as on another host, is judged by
whether it wrote anything between two looks of ours, by our own clock alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from softlabels.core.durable import explained
from softlabels.core.folder_lock import LOCK
from softlabels.core.processes import Process, is_alive
from softlabels.core.progress import duration
from trainers.run.metrics import METRICS, curves_of
from trainers.run.record import is_student, read_run_record
from trainers.trackers.tensorboard import FOLDER

WINDOW = 20
"""Lines of metrics.jsonl that the rate is taken from, the last ones."""
LOCK_BYTES = 200

Curve = list[tuple[float, float]]


class State(Enum):
    """What a run is doing."""

    RUNS = "runs"
    FINISHED = "has finished"
    STOPPED = "has stopped"
    """Its process is gone, and it has not finished."""
    ELSEWHERE = "is on another host"
    """Its process cannot be looked at from here, and it has not finished."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """A run at one moment."""

    name: str
    path: Path
    record: dict[str, Any]
    curves: dict[str, Curve]
    state: State
    silent: float
    """Seconds that we have seen no new line."""

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self.state in (State.FINISHED, State.STOPPED)

    @property
    def steps(self) -> int:
        """How many it is to take."""
        return min(max(int(self.record["config"]["steps"]), 1), 2**53)

    @property
    def step(self) -> int:
        """The last that was logged; 0: none was."""
        return int(max((points[-1][0] for points in self.curves.values() if points), default=0))

    @property
    def share(self) -> float:
        """How much of it is done."""
        return min(self.step / self.steps, 1.0)

    @property
    def rate(self) -> float | None:
        """Steps a second lately, evaluations and checkpoints included; None: not known yet."""
        elapsed = self.curves.get("elapsed", [])[-WINDOW:]
        if len(elapsed) >= 2 and elapsed[-1][1] > elapsed[0][1]:
            return (elapsed[-1][0] - elapsed[0][0]) / (elapsed[-1][1] - elapsed[0][1])
        seconds = [s for _, s in self.curves.get("seconds", [])[-WINDOW:]]
        return len(seconds) / sum(seconds) if sum(seconds) > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Until its last step; None: not known, or it is not at work."""
        rate = self.rate
        if self.ended or not rate:
            return None
        return max(self.steps - self.step, 0) / rate

    @property
    def left(self) -> str:
        """The same in words."""
        seconds = self.seconds_left
        return "not known yet" if seconds is None else f"about {duration(seconds)}"

    def last(self, key: str) -> float | None:
        """What was logged last of a kind."""
        points = self.curves.get(key)
        return points[-1][1] if points else None

    def rows(self, keys: Sequence[str], most: int) -> list[tuple[int, list[float | None]]]:
        """The last steps that were logged, the newest first, with some of their numbers."""
        tables = [dict(self.curves.get(key, [])) for key in keys]
        steps = sorted({step for points in self.curves.values() for step, _ in points})
        return [(int(s), [t.get(s) for t in tables]) for s in reversed(steps[-most:])]

    @property
    def board(self) -> Path | None:
        """Where TensorBoard's files lie, if there are any."""
        folder = self.path / FOLDER
        return folder if folder.is_dir() else None


@dataclass(kw_only=True)
class Watch:
    """Looks at one run, again and again."""

    run: Path
    name: str
    _size: int = field(default=-1)
    _since: float = field(default=0.0)

    def look(self, now: float) -> Look:
        """Look once.

        Args:
            now: seconds of a clock of ours that never goes back.

        Raises:
            RunError: it is no run, or what lies there was not written by one.
            StoreError: it cannot be read.
        """
        record = read_run_record(self.run)
        alive = _alive(self.run)  # before what it wrote: of a process that is gone all is there
        curves = curves_of(self.run)
        with explained(self.run):
            path = self.run / METRICS
            size = path.stat().st_size if path.exists() else 0
            finished = is_student(self.run / "student")
        if size != self._size:
            self._size, self._since = size, now
        state = State.FINISHED if finished else State.STOPPED
        if alive:
            state = State.RUNS
        elif alive is None and not finished:
            state = State.ELSEWHERE
        return Look(
            name=self.name,
            path=self.run,
            record=record,
            curves=curves,
            state=state,
            silent=now - self._since,
        )


def _alive(run: Path) -> bool | None:
    """Whether the process of a run lives; None: that cannot be told from here."""
    path = run / LOCK
    with explained(path):
        try:
            with path.open("rb") as f:
                content = f.read(LOCK_BYTES).decode(errors="replace")
        except FileNotFoundError:
            return False
    if not content:
        return False  # given back
    process = Process.parse(content.removesuffix("\n"))
    return None if process is None else is_alive(process)
