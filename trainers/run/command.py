"""The command that repeats a run, from what `run.json` recorded."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from trainers.run.config import RunConfig

__all__ = ["run_command_of"]


def run_command_of(config: Mapping[str, Any], run: Path) -> str:
    """`softtrain run …` with every setting that is not the default."""
    words = ["softtrain", "run"]
    for field in fields(RunConfig):
        default = None if field.default is MISSING else field.default
        value = config.get(field.name, default)
        flag = "--" + field.name.replace("_", "-")
        if value is None or value == default or value is False:
            continue
        if value is True:
            words.append(flag)
            continue
        for item in value if isinstance(value, list | tuple) else [value]:
            words += [flag, str(item)]
    return shlex.join([*words, "--out", str(run)])
