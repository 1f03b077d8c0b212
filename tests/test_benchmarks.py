"""The benchmarks, which no other test runs, at least import what is there."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("benchmarks")
NAMES = sorted(
    path.relative_to(FOLDER).with_suffix("").as_posix().replace("/", ".")
    for path in FOLDER.rglob("*.py")
)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_imports(name):
    try:
        importlib.import_module(f"tests.benchmarks.{name}")
    except ModuleNotFoundError as e:
        package = (e.name or "").partition(".")[0]
        if package in {"softlabels", "trainers", "tests"} or find_spec(package) is not None:
            raise
        pytest.skip(f"measures against {package}, which is not installed")
