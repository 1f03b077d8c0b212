"""Start a module of ours in a process of its own, whatever folder we were started in.

`python -m` looks in the current folder first, where people keep packages of their own: one named `trainers` would run
in our place.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The folder that holds our packages."""


def own_module(name: str, *arguments: object) -> list[str]:
    """The command that runs a module of ours, found by `own_environment`."""
    return [sys.executable, "-P", "-m", name, *map(str, arguments)]


def own_environment(**more: str) -> dict[str, str]:
    """This process's environment, with our packages before all others; and `more`."""
    before = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *before])} | more
