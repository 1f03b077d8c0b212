"""A run's numbers: metrics.jsonl, and the trackers that it is followed with."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from softlabels.core.durable import explained, replace, sync_folder
from softlabels.core.records import read_file
from softlabels.errors import RunError
from trainers.run.record import RUN_RECORD, read_run_record
from trainers.trackers import Tracked, Tracker, open_trackers

METRICS = "metrics.jsonl"
LARGEST = 1e100
"""Numbers that are shown of what a file says was logged lie between this and its opposite."""


class Metrics:
    """Appends one line per logged step; lines after the step that a run resumes from are dropped.

    Each line is JSON: what is NaN or infinite is null. `elapsed` is added to each: wall seconds of the run so far, over
    all commands that went on with it, without the time between them.

    Args:
        run: its folder.
        track: its trackers, as `--track` has them.
        notice: told of a tracker that fails.
    """

    def __init__(
        self,
        run: Path,
        track: Sequence[str] = (),
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._run, self._path = run, run / METRICS
        self._track, self._notice = track, notice
        self._file: IO[str] | None = None
        self._trackers: list[Tracker] = []
        self._began = 0.0

    def open(self, step: int) -> None:
        """Begin, or go on after `step`.

        Raises:
            RunError: what is there is no log of a run.
            StoreError: the disk is full, read-only, …
        """
        with explained(self._path):
            there = read_metrics(self._run) if self._path.exists() else []
            there = [record for record in there if record["step"] <= step]
            kept = "".join(f"{_spelled(record)}\n" for record in there)
            # always: what lies there may be another name of a file elsewhere
            replace(self._path, kept.encode())
            self._file = self._path.open("a", encoding="utf-8")
            sync_folder(self._run)
            try:
                self._trackers = self._followed(step)
            except BaseException:
                self.close()
                raise
        self._began = time.monotonic() - _elapsed(there)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log one step.

        Raises:
            StoreError: the disk is full, …
        """
        assert self._file is not None, "open first"
        with explained(self._path):
            elapsed = round(time.monotonic() - self._began, 3)
            self._file.write(_spelled({"step": step, **values, "elapsed": elapsed}) + "\n")
            self._file.flush()
            for tracker in self._trackers:
                tracker.log(step, values)

    def flush(self) -> None:
        """Make all lines durable: what is saved next is resumed from, and they are not written again.

        Raises:
            StoreError: the disk is full, …
        """
        with explained(self._path):
            if self._file is not None:
                self._file.flush()
                os.fsync(self._file.fileno())
            for tracker in self._trackers:
                tracker.flush()

    def close(self) -> None:
        """End the log.

        Raises:
            StoreError: the disk is full, …
        """
        file, trackers, self._file, self._trackers = self._file, self._trackers, None, []
        with explained(self._path):
            if file is not None:
                file.close()
            for tracker in trackers:
                tracker.close()

    def _followed(self, step: int) -> list[Tracker]:
        facts = read_run_record(self._run) if (self._run / RUN_RECORD).exists() else {}
        return open_trackers(
            self._track, Tracked(run=self._run, step=step, facts=facts), self._notice
        )


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """What was logged, up to a line that was being written when the run was killed.

    Raises:
        FileNotFoundError: nothing was.
        RunError: names the line that no run wrote.
    """
    path = run / METRICS
    lines = read_file(path).decode("utf-8", errors="replace").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as e:
            if number == len(lines):
                break
            raise RunError(
                f"{path}:{number}: not a line of metrics ({e}); put the file back as it was, or move it away"
            ) from e
        step = record.get("step") if isinstance(record, dict) else None
        if not isinstance(step, int) or not 0 <= step <= 2**53:
            raise RunError(
                f"{path}:{number}: has no step; expected a line that `softtrain run` wrote"
            )
        found.append(record)
    return found


def curves_of(run: Path) -> dict[str, list[tuple[float, float]]]:
    """(step, value) of all that was logged, by name; what is no number, or none that is finite, is left out.

    Raises:
        RunError: as `read_metrics`.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    try:
        records = read_metrics(run)
    except FileNotFoundError:
        return {}
    for record in records:
        for key, value in record.items():
            # comparing refuses NaN and infinities, and does not overflow
            if key != "step" and isinstance(value, int | float) and -LARGEST < value < LARGEST:
                curves.setdefault(str(key), []).append((float(record["step"]), float(value)))
    return curves


def _elapsed(records: list[dict[str, Any]]) -> float:
    """Seconds that a run had taken at its last line; 0 where that line is of a version that did not say."""
    last = records[-1].get("elapsed", 0.0) if records else 0.0
    return float(last) if isinstance(last, int | float) and 0 <= last < 1e9 else 0.0


def _spelled(record: Mapping[str, Any]) -> str:
    """JSON has no NaN and no infinities: null in their place."""
    plain = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()
    }
    return json.dumps(plain, allow_nan=False)
