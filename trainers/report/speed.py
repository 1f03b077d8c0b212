"""What `softtrain latency --json` printed, read for a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from softlabels.core.records import regular_size
from softlabels.errors import ConfigError

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
