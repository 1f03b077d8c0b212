"""What a report of runs is drawn from: their records, learning curves and evaluations on one held-out store."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from softlabels.core.durable import error_number
from softlabels.core.settings import flags_of
from softlabels.errors import RunError, SoftLabelsError
from softlabels.format.manifest import Manifest, load_manifest
from trainers.data.arrangement import EARLIER
from trainers.evaluation.evaluations import Assessment, Interval, find_assessments, weights_digest
from trainers.run.config import RunConfig
from trainers.run.metrics import curves_of
from trainers.run.record import WEIGHTS, read_run_record


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportedRun:
    """A run, and its evaluation."""

    name: str
    path: Path
    record: dict[str, Any]
    """Of `run.json`."""
    curves: dict[str, list[tuple[float, float]]]
    """By metric: (step, value) of the steps that were logged."""
    found: Assessment
    command: str
    """That repeats the run."""
    training_stores: list[tuple[str, Manifest | None]]
    """Paths as the run has them, with what is there now."""

    @property
    def hard_only(self) -> bool:
        """Whether the run learnt from labels alone."""
        return is_hard_only(self.record)

    @property
    def described(self) -> str:
        """Its name, and what it learnt from."""
        alpha = self.record["config"].get("alpha")
        if self.hard_only:
            return f"{self.name} · hard labels only"
        known = isinstance(alpha, int | float)
        return f"{self.name} · soft targets, alpha {alpha:g}" if known else self.name

    @property
    def lengthened(self) -> str:
        """How many steps it was to take first, and then; nothing, if that was never changed."""
        changes = self.record.get("length", {}).get("changes", [])
        return ", ".join(
            f"{c['from']:,} to {c['to']:,}" for c in changes if c.keys() >= {"from", "to"}
        )

    @property
    def smaller(self) -> float:
        """Parameters of the teacher for each of its own."""
        return self.found.store.teacher_parameters / max(self.found.parameters, 1)

    def score(self, name: str) -> Interval | None:
        """A score with its interval, where the evaluation has it."""
        value = getattr(self.found.scores, name)
        return None if value is None else self.found.intervals.get(name) or Interval(value=value)


def is_hard_only(record: Mapping[str, Any]) -> bool:
    """Whether a run learns from labels alone, and what it logs of a teacher compares nothing."""
    config = record["config"]
    return config.get("alpha") == 0 and config.get("alpha_schedule") is None


def gather(
    runs: Sequence[Path],
    *,
    digest: str | None,
    weights: str,
    made: Mapping[Path, Assessment] = MappingProxyType({}),
) -> list[ReportedRun]:
    """Read runs and their evaluations on one store.

    Args:
        runs: their folders.
        digest: of the store; None where all were evaluated on one and the same.
        weights: which of a run's weights: `student`, `ema` or `best`.
        made: evaluations of these weights made just now, which a run need not hold.

    Raises:
        RunError: not a run; not evaluated, or evaluated before it changed; no store, or several, in common.
    """
    evaluated = {run: [made[run]] if run in made else _assessments(run, weights) for run in runs}
    common = set.intersection(*({a.store.digest for a in found} for found in evaluated.values()))
    if digest is not None:
        common &= {digest}
    if not common:
        raise RunError(
            f"{', '.join(map(str, runs))}: not evaluated on {'it' if digest else 'one store'}; give --store HELDOUT, "
            "or run `softtrain eval RUN --store HELDOUT` for each"
        )
    if len(common) > 1:
        paths = sorted({a.store.path for found in evaluated.values() for a in found})
        raise RunError(
            f"{', '.join(map(str, runs))}: evaluated on several stores ({', '.join(paths)}); choose with --store"
        )
    (chosen,) = common
    names = names_of(runs)
    return [
        _reported(run, name, next(a for a in evaluated[run] if a.store.digest == chosen))
        for run, name in zip(runs, names, strict=True)
    ]


def is_evaluated(run: Path, digest: str, weights: str) -> bool:
    """Whether a run holds an evaluation, on the store of that digest, of the weights it has now.

    Raises:
        RunError: not a run, or without such weights.
    """
    return any(a.store.digest == digest for a in _fresh(run, weights)[1])


def _assessments(run: Path, weights: str) -> list[Assessment]:
    every, fresh, digest = _fresh(run, weights)
    if every and not fresh:
        raise RunError(
            f"{run}: its evaluation is of other weights than {run / WEIGHTS[weights][0]} holds now (sha256 "
            f"{digest[:12]}…); run `softtrain eval` again"
        )
    return fresh


def _fresh(run: Path, weights: str) -> tuple[list[Assessment], list[Assessment], str]:
    """All evaluations of these weights, those of what they are now, and their digest."""
    folder = run / WEIGHTS[weights][0]
    if not (run / "run.json").is_file():
        raise RunError(f"{run}: not a run; give a folder that `softtrain run --out` made")
    digest = weights_digest(folder)
    every = [a for a in find_assessments(run) if a.weights == weights]
    fresh = [a for a in every if a.weights_sha256 == digest]
    return every, fresh, digest


def names_of(runs: Sequence[Path]) -> list[str]:
    """The folders' names, or whole paths where these would be the same."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _reported(run: Path, name: str, found: Assessment) -> ReportedRun:
    record = read_run_record(run)
    stores = record["config"]["store"]
    specs = [stores] if isinstance(stores, str) else stores
    return ReportedRun(
        name=name,
        path=run,
        record=record,
        curves=curves_of(run),
        found=found,
        command=shlex.join(
            [
                "softtrain",
                "run",
                *flags_of(RunConfig, EARLIER | record["config"]),
                "--out",
                str(run),
            ]
        ),
        training_stores=[(s, _manifest(s)) for s in specs],
    )


def _manifest(spec: str) -> Manifest | None:
    """Of a training store, if it is still where the run found it; `PATH=WEIGHT` names PATH."""
    for path in (spec, spec.rpartition("=")[0]):
        try:
            return load_manifest(Path(path)) if path else None
        except (
            SoftLabelsError,
            ValueError,
        ) as e:  # no store there, or nothing that could be a path
            cause = e if e.__cause__ is None else e.__cause__
            if error_number(cause) and not isinstance(
                cause, FileNotFoundError | NotADirectoryError
            ):
                raise  # there may be one: it cannot be looked at
    return None
