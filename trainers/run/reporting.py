"""Who is told how a run goes."""

from __future__ import annotations

from typing import Protocol

__all__ = ["RunReporter", "Silent"]


class RunReporter(Protocol):
    """Told how a run goes."""

    def notice(self, message: str) -> None:
        """A line for people."""

    def start(self, done: int, steps: int) -> None:
        """Training begins after `done` of `steps`."""

    def step(self, metrics: dict[str, float] | None) -> None:
        """A step was taken; metrics on the steps that are logged."""


class Silent:
    """Reports nothing."""

    def notice(self, message: str) -> None:
        """Say nothing."""

    def start(self, done: int, steps: int) -> None:
        """Say nothing."""

    def step(self, metrics: dict[str, float] | None) -> None:
        """Say nothing."""
