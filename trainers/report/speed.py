"""The part of a report about speed, from what `softtrain latency --json` printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from softlabels.core.records import regular_size
from softlabels.errors import ConfigError
from softlabels.report.html import Child, Markup
from softlabels.report.page import section, table

__all__ = ["Speed", "read_speed", "speed"]

Number = Annotated[float, msgspec.Meta(ge=0, le=1e100)]
LARGEST_BYTES = 2**24


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """Of `trainers.exports.latency.Figures`, what is shown; bytes, and wall seconds of one call at batch 1."""

    name: str
    engine: str
    format: str
    model_bytes: Number
    peak_bytes: Number
    p50: Number
    p95: Number
    throughput: Number


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured side by side."""

    threads: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    figures: list[Figure]


def read_speed(path: Path) -> Speed:
    """Read what `softtrain latency --json` printed.

    Raises:
        ConfigError: it is something else.
    """
    try:
        if regular_size(path) > LARGEST_BYTES:
            raise ConfigError(f"--latency {path}: more than {LARGEST_BYTES:,} bytes")
        return msgspec.json.decode(path.read_bytes(), type=Speed)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise ConfigError(
            f"--latency {path}: not what `softtrain latency --json` prints ({e})"
        ) from e


def speed(found: Speed) -> Markup:
    """A row for each model and engine."""
    rows: list[list[Child]] = [
        [
            f.name,
            f"{f.engine}, {f.format}",
            f"{f.model_bytes / 1e6:,.1f} MB",
            f"{f.peak_bytes / 1e6:,.0f} MB",
            f"{f.p50 * 1e3:,.1f}",
            f"{f.p95 * 1e3:,.1f}",
            f"{f.throughput:,.0f}",
        ]
        for f in found.figures
    ]
    head = ["model", "engine, format", "size", "peak memory", "p50, ms", "p95, ms", "a second"]
    threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    return section(
        "What it costs to run",
        f"On one CPU with {threads}: one row at a time (p50, p95), and tokens a second in batches of "
        f"{found.batch_size}. Peak memory is of a process of its own, libraries and all.",
        table(head, rows, numbers_from=2),
    )
