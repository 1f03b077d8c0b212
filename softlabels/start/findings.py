"""What a check found: each with its place and the way out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters."""

    FINE = "fine"
    """Nothing to do."""
    LOOK = "look"
    """The build works; somebody should know."""
    MEND = "mend"
    """The build would stop, or what it makes would be worth nothing."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the table."""

    level: Level
    subject: str
    """One of a few words: `encoding`, `records`, `fields`, `lengths`, `overlap`, `licence`, `disk`, …"""
    found: str
    way_out: str = ""
    """Empty, where nothing is to be done."""


def fine(subject: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(level=Level.FINE, subject=subject, found=found)


def look(subject: str, found: str, way_out: str) -> Finding:
    """Somebody should know."""
    return Finding(level=Level.LOOK, subject=subject, found=found, way_out=way_out)


def mend(subject: str, found: str, way_out: str) -> Finding:
    """Something must be mended."""
    return Finding(level=Level.MEND, subject=subject, found=found, way_out=way_out)


def counted(n: int, what: str, plural: str | None = None) -> str:
    """`1 document`, `1,200 documents`."""
    return f"{n:,} {what if n == 1 else plural or what + 's'}"


def worst(findings: list[Finding]) -> Level:
    """The most that any of them matters."""
    order = list(Level)
    return max((f.level for f in findings), key=order.index, default=Level.FINE)
