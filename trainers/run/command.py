"""The command that repeats a run, from what `run.json` recorded."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softlabels.core.settings import flags_of
from trainers.run.config import RunConfig

__all__ = ["run_command_of"]


def run_command_of(config: Mapping[str, Any], run: Path) -> str:
    """`softtrain run …` with every setting that is not the default."""
    return shlex.join(["softtrain", "run", *flags_of(RunConfig, config), "--out", str(run)])
