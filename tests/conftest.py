"""How the tests run: on all cores, each on one thread, in memory, with few examples unless CI asks for many."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

MOST_WORKERS = 8
"""Each imports torch and transformers: seconds, and half a gigabyte."""
MEMORY = Path("/dev/shm")
ROOM = 4 << 30
"""Bytes that the folder in memory must have free."""

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: all cores are taken
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Every file of a store is synced to disk, some milliseconds each; in memory that costs nothing.
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# The suite says the same each time it is run; new examples are looked for with --hypothesis-profile explore.
settings.register_profile("fast", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=300, deadline=None, derandomize=True)  # .ci/run
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile("fast")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What `-n auto` means: tests and files that are named run in this process, which begins at once."""
    if all(Path(argument.partition("::")[0]).suffix == ".py" for argument in config.args):
        return 0
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return min(cores, MOST_WORKERS)
