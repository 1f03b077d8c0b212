"""Where a run's numbers go besides metrics.jsonl: `--track NAME`, or `NAME?parameter=value`, as often as wanted.

Each tracker is a thin adapter of one library, imported in its file only. metrics.jsonl stays what a run is resumed and
reported from: a tracker that fails while a run goes on is left out from then on, and that is said; one that cannot even
begin is refused before the first step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from softlabels.core.registry import Registry, name_of
from softlabels.errors import ConfigError, MissingExtraError, SoftLabelsError, first_line
from trainers.run.record import named_store

NONE = "none"
"""`--track none`: metrics.jsonl only."""


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """A run, as a tracker needs to know it."""

    run: Path
    """Its folder."""
    step: int
    """The last step that is kept: what was logged of later ones is dropped."""
    facts: Mapping[str, Any]
    """What `run.json` says."""

    @property
    def name(self) -> str:
        """What people call it."""
        return self.run.resolve().name

    @property
    def id(self) -> str:
        """16 letters that are the same when the run is resumed, and another run's are not."""
        store = self.facts.get("plan_digest") or self.facts.get("store_digest")
        where = json.dumps([str(self.run.resolve()), store])
        return hashlib.sha256(where.encode()).hexdigest()[:16]

    @property
    def settings(self) -> dict[str, Any]:
        """Its settings, with the digest of the store, or of its plan where that alone is known."""
        return {**self.facts.get("config", {}), **named_store(self.facts)}


class Tracker(Protocol):
    """Takes the numbers of one run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take a step's numbers by name; NaN and infinities are among them."""

    def flush(self) -> None:
        """See to it that what was logged is not lost with the process: a checkpoint follows."""

    def close(self) -> None:
        """End; the run may be resumed later."""


TRACKERS: Registry[Callable[..., Tracker]] = Registry(
    "trainers.trackers",
    {
        "tensorboard": "trainers.trackers.tensorboard:TensorBoard",
        "wandb": "trainers.trackers.wandb:WandB",
        "trackio": "trainers.trackers.trackio:Trackio",
        "mlflow": "trainers.trackers.mlflow:MLflow",
    },
    flag="--track",
)


def check_track(specs: Sequence[str]) -> None:
    """Refuse what is no tracker, before anything else is done; nothing is imported.

    Raises:
        ConfigError: names the flag.
    """
    names = [name_of(spec)[0] for spec in specs]
    for name in names:
        if name != NONE and name not in TRACKERS:
            raise ConfigError(
                f"--track {name}: expected one of {', '.join(TRACKERS.names())}, or {NONE}"
            )
    if len(set(names)) < len(names) or (NONE in names and len(names) > 1):
        raise ConfigError(
            f"--track {' '.join(names)}: each goes once, and {NONE} alone; leave one of them out"
        )


def open_trackers(
    specs: Sequence[str], tracked: Tracked, notice: Callable[[str], None]
) -> list[Tracker]:
    """The trackers of a run; of no spec TensorBoard, where it is installed.

    Raises:
        ConfigError: one cannot begin, or has no such parameter.
        MissingExtraError: its library is not installed.
        OSError: it cannot write.
    """
    if not specs:
        try:
            return [TRACKERS.make("tensorboard", tracked=tracked)]
        except MissingExtraError:
            return []
    made = list[Tracker]()
    for spec in specs:
        if spec == NONE:
            continue
        try:
            made.append(Careful(spec, TRACKERS.make(spec, tracked=tracked), notice))
        except (SoftLabelsError, OSError):
            raise
        except Exception as e:  # another project's library: it may raise anything
            raise ConfigError(
                f"--track {spec}: cannot begin ({type(e).__name__}: {first_line(e)}); mend that, or leave it out"
            ) from e
    return made


class Careful:
    """A tracker whose library's failures do not end the run; a full disk does, as everywhere."""

    def __init__(self, spec: str, inner: Tracker, notice: Callable[[str], None]) -> None:
        self._spec, self._notice = spec, notice
        self._inner: Tracker | None = inner

    def _try(self, do: Callable[[Tracker], None]) -> None:
        if self._inner is None:
            return
        try:
            do(self._inner)
        except OSError:
            raise
        except Exception as e:  # as above
            self._inner = None
            self._notice(
                f"--track {self._spec}: failed ({type(e).__name__}: {first_line(e)}), and gets nothing from now on; "
                "metrics.jsonl has everything"
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take a step's numbers."""
        self._try(lambda t: t.log(step, values))

    def flush(self) -> None:
        """Make them durable."""
        self._try(lambda t: t.flush())

    def close(self) -> None:
        """End."""
        self._try(lambda t: t.close())
