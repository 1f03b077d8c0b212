"""What a build tells whoever watches it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Reporter", "Silent"]


class Reporter(Protocol):
    """Told how a build goes."""

    def notice(self, message: str) -> None:
        """A line for people."""

    def stage(self, name: str, total: int | None, unit: str) -> None:
        """A new stage begins."""

    def advance(self, amount: int) -> None:
        """Progress in the present stage."""


class Silent:
    """Reports nothing."""

    def notice(self, message: str) -> None:
        """Say nothing."""

    def stage(self, name: str, total: int | None, unit: str) -> None:
        """Say nothing."""

    def advance(self, amount: int) -> None:
        """Say nothing."""
