"""How many steps a run takes, and what happens to its schedule when it is lengthened.

    --epochs N            becomes steps: the rows of N passes over the store, by --batch-size, rounded up
    --steps M --resume    a run, finished or not, goes on to M

1. Warm-up stays as it was at the beginning, whatever share of the run it is now.
2. The cosine of the learning rate, and the schedules of alpha and temperature, end at the new last step. They are
   functions of the step and of the last step alone, so a lengthened run that is interrupted goes on to the bit.
3. The learning rate therefore jumps where the run goes on, after a finished run from its low end back up; that is said.
   Steps that were taken keep what they were taken with: a run that was lengthened is not the run that was long at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from softlabels.errors import RunError
from softlabels.store.reader import Store
from trainers.data.mixing import Pattern, Weight
from trainers.run.config import RunConfig
from trainers.run.record import RUN_RECORD, read_run_record, write_json

Change = dict[str, int]


def in_steps(
    config: RunConfig, stores: Sequence[tuple[Store, Weight]]
) -> tuple[RunConfig, str | None]:
    """A config whose `--epochs` have become steps, and a line that says how; as it is without them."""
    if config.epochs is None:
        return config, None
    turns = Pattern([weight for _, weight in stores]).turns
    rows = min(Fraction(len(s) * sum(turns), n) for (s, _), n in zip(stores, turns, strict=True))
    steps = max(1, math.ceil(Fraction(str(config.epochs)) * rows / config.batch_size))
    line = (
        f"--epochs {config.epochs:g}: {steps:,} steps of {config.batch_size} rows, "
        f"{math.ceil(rows):,} rows an epoch"
    )
    return replace(config, steps=steps, epochs=None), line


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long a run is now, and how long it was."""

    steps: int
    before: int
    """Steps that it was to take when it was last begun or resumed; as many where it is new."""
    warmup: int
    """Steps of warm-up, as they were when it was begun."""
    changes: tuple[Change, ...]
    """How it was lengthened or shortened before: `after` so many steps, `from` so many in all, `to` so many."""

    @classmethod
    def of(cls, config: RunConfig, recorded: Mapping[str, Any] | None) -> Length:
        """A run's, from its config and what `run.json` recorded."""
        if not recorded:
            return cls(
                steps=config.steps, before=config.steps, warmup=config.warmup_steps, changes=()
            )
        before = int(recorded["config"]["steps"])
        length = recorded.get("length", {})  # older runs have none
        warmup = length.get("warmup")
        if warmup is None:
            given = recorded["config"].get("warmup")
            warmup = replace(config, steps=before, warmup=given).warmup_steps
        changes = tuple(length.get("changes", ()))
        return cls(steps=config.steps, before=before, warmup=int(warmup), changes=changes)

    def settle(self, run: Path, config: RunConfig, taken: int) -> str | None:
        """Record in `run.json` that the run, of which so many steps are taken, is now longer or shorter.

        Returns:
            What to know of the change; None if there is none.

        Raises:
            RunError: it would end before what was taken.
        """
        if self.steps < taken:
            raise RunError(
                f"{run}: has taken {taken:,} steps already, and --steps {self.steps} is less; resume it with --steps "
                f"{taken} or more, or choose another --out"
            )
        if self.steps == self.before:
            return None
        facts = read_run_record(run)
        change = {"after": taken, "from": self.before, "to": self.steps}
        facts["config"]["steps"] = self.steps
        facts["length"] = replace(self, changes=(*self.changes, change)).to_dict()
        write_json(run / RUN_RECORD, facts)
        old = replace(config, steps=self.before).learning_rate(max(0, taken - 1))
        new = config.learning_rate(taken)
        how = "lengthened" if self.steps > self.before else "shortened"
        return (
            f"{how} from {self.before:,} to {self.steps:,} steps, after {taken:,}: warm-up ends at step "
            f"{self.warmup:,} as before, the schedules now end at step {self.steps:,}; the learning rate goes from "
            f"{old:.3g} to {new:.3g}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For `run.json`."""
        return {"warmup": self.warmup, "changes": list(self.changes)}
