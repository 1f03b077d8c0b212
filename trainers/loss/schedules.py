"""The share of the soft loss and its temperature over the steps of a run.

A schedule is a function of the step's number alone, so a resumed run goes on exactly as it would have.

A store knows its teacher's tail only at the temperatures of its grid. So a scheduled temperature goes through the
grid in stairs: at each step the value of the grid that is nearest to the line or cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from softlabels.errors import ConfigError
from softlabels.format.identity import TargetRecord
from trainers.loss.losses import DistillLoss


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A number over the steps, from a start to an end."""

    kind: str
    """`constant`, `linear` or `cosine`."""
    start: float
    """At the first step."""
    end: float
    """At the last step."""

    @classmethod
    def parse(cls, text: str | None, start: float, *, flag: str) -> Schedule:
        """From what a user types: `constant`, `linear:END` or `cosine:END`.

        Raises:
            ConfigError: something else; it names the flag.
        """
        kind, _, end = (text or "constant").partition(":")
        if kind == "constant" and not end:
            return cls(kind=kind, start=start, end=start)
        try:
            value = float(end)
        except ValueError:
            value = math.nan
        if kind not in ("linear", "cosine") or not math.isfinite(value):
            raise ConfigError(
                f"{flag} {text!r}: expected constant, linear:END or cosine:END, as in linear:0.5"
            )
        return cls(kind=kind, start=start, end=value)

    def at(self, step: int, steps: int) -> float:
        """Value at the step numbered from 0, of `steps` in all."""
        progress = min(1.0, step / max(1, steps - 1))
        if self.kind == "constant" or progress == 0.0:
            return self.start
        if progress == 1.0:
            return self.end
        if self.kind == "cosine":
            progress = 0.5 * (1.0 - math.cos(math.pi * progress))
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True, kw_only=True)
class LossSchedule:
    """The loss of each step of a run."""

    loss: DistillLoss
    """At the first step."""
    alpha: Schedule
    temperature: Schedule
    steps: int
    """Optimiser steps of the whole run."""
    grid: tuple[float, ...] = ()
    """The store's temperatures; empty until `on` has met the store."""
    whole: bool = False
    """Whether all of the teacher's distribution is there, at any temperature."""

    @classmethod
    def parse(
        cls, loss: DistillLoss, steps: int, alpha: str | None, temperature: str | None
    ) -> LossSchedule:
        """A loss and what its flags `--alpha-schedule` and `--temperature-schedule` say.

        Raises:
            ConfigError: not a schedule, an end that is no value of the flag, or settings that would never count.
        """
        a = Schedule.parse(alpha, loss.alpha, flag="--alpha-schedule")
        t = Schedule.parse(temperature, loss.temperature, flag="--temperature-schedule")
        if not 0.0 <= a.end <= 1.0:
            raise ConfigError(f"--alpha-schedule {alpha!r}: its end must be 0 to 1")
        if not t.end > 0.0:
            raise ConfigError(f"--temperature-schedule {temperature!r}: its end must be above 0")
        for flag, value in (
            ("--label-smoothing", loss.label_smoothing),
            ("--z-loss", loss.z_loss),
        ):
            if value and a.start == a.end == 1.0:
                raise ConfigError(
                    f"{flag} {value:g}: is part of the hard loss, which --alpha 1 leaves out; use an --alpha below 1"
                )
        if loss.weight != "even" and a.start == a.end == 0.0:
            raise ConfigError(
                f"--weight {loss.weight}: weighs the soft loss, which --alpha 0 leaves out; use an --alpha above 0"
            )
        return cls(loss=loss, alpha=a, temperature=t, steps=steps)

    def on(self, targets: TargetRecord, *, whole: bool = False) -> LossSchedule:
        """The same, on a store that can serve every step of it; it need not, if the `whole` teacher is there.

        Raises:
            PairingError: the divergence does not go with the estimator, or a temperature is not in the grid.
        """
        if self.alpha.start == self.alpha.end == 0.0:  # nothing is asked of the store
            return self
        if whole:
            return replace(self, whole=True)
        loss = replace(self.loss, alpha=1.0)
        loss.check(targets)
        end = replace(loss, temperature=self.temperature.end)
        end.check(targets, flag="--temperature-schedule: its end")
        return replace(self, grid=tuple(targets.temperatures))

    def notices(self, targets: TargetRecord) -> list[str]:
        """What to know of this loss on this store, in one sentence each."""
        if self.whole:
            return []
        alpha = max(self.alpha.start, self.alpha.end)
        return replace(self.loss, alpha=alpha).notices(targets)

    def at(self, step: int) -> DistillLoss:
        """The loss of the step numbered from 0."""
        if self.alpha.kind == self.temperature.kind == "constant":
            return self.loss
        return replace(
            self.loss, alpha=self.alpha.at(step, self.steps), temperature=self._stair(step)
        )

    def _stair(self, step: int) -> float:
        value = self.temperature.at(step, self.steps)
        if self.whole:
            return value
        if not self.grid:
            return value if self.temperature.kind == "constant" else self.loss.temperature
        low, high = sorted((self.temperature.start, self.temperature.end))
        return min((t for t in self.grid if low <= t <= high), key=lambda t: abs(t - value))
