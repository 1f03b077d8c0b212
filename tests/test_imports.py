"""Layers are kept apart, and importing the packages is cheap."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "numpy",
    "pyarrow",
    "polars",
    "numcodecs",
    "transformers",
    "msgspec",
    "click",
    "rich",
)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


# -- contracts ------------------------------------------------------------------------------------

LINT = """
import sys
from importlinter.cli import lint_imports
sys.exit(lint_imports(config_filename=sys.argv[1], cache_dir=None, no_cache=True))
"""


def test_import_contracts_hold():
    done = python(LINT, "pyproject.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_a_broken_contract_is_found(tmp_path):
    """The same linter, on a contract that the packages do break."""
    (tmp_path / "contracts.toml").write_text(
        """
[tool.importlinter]
root_packages = ["softlabels", "trainers"]

[[tool.importlinter.contracts]]
name = "false"
type = "forbidden"
source_modules = ["trainers"]
forbidden_modules = ["softlabels.store"]
""",
        encoding="utf-8",
    )
    done = python(LINT, str(tmp_path / "contracts.toml"))
    assert done.returncode == 1
    assert "1 broken" in done.stdout


def test_the_contracts_say_what_they_must():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = config["tool"]["importlinter"]["contracts"]
    forbidden = {
        (source, target)
        for contract in contracts
        for source in contract["source_modules"]
        for target in contract["forbidden_modules"]
    }
    assert ("softlabels", "trainers") in forbidden
    for side in ("teachers", "builder", "making", "algebra", "corpora", "estimators", "cli"):
        assert ("trainers", f"softlabels.{side}") in forbidden
    excused = [edge for contract in contracts for edge in contract.get("ignore_imports", ())]
    assert not [edge for edge in excused if edge.startswith("trainers")], (
        "no file of trainers is excused"
    )
    for pure in ("core", "codecs", "estimators"):
        for heavy in ("softlabels.store", "softlabels.teachers", "pyarrow", "transformers"):
            assert (f"softlabels.{pure}", heavy) in forbidden


# -- cost of an import ----------------------------------------------------------------------------

MEASURE = """
import json, sys, time
start = time.perf_counter()
__import__(sys.argv[1])
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules)}))
"""


@pytest.mark.parametrize("package", ["softlabels", "trainers"])
def test_import_is_fast_and_imports_nothing_heavy(package):
    best = float("inf")
    for _ in range(5):
        done = python(MEASURE, package)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert not set(HEAVY) & set(found["modules"])
        best = min(best, found["seconds"])
    assert best < 0.3


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("softlabels", ("open_store", "scan", "Store", "SoftTargets", "Row")),
        ("trainers", ("SoftTargetStream", "Batch", "DistillLoss", "Head", "RunConfig")),
    ],
)
def test_public_names_are_imported_on_first_use(package, names):
    module = __import__(package)
    for name in names:
        assert name in module.__all__
        assert getattr(module, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


HELP = """
import runpy, sys
package, sys.argv[1:] = sys.argv[1], sys.argv[2:]
try:
    runpy.run_module(package, run_name="__main__")
except SystemExit as e:
    assert not e.code, e.code
print(sorted({"torch", "numpy", "pyarrow", "transformers"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("softlabels", []),
        ("softlabels", ["build"]),
        ("softlabels", ["init"]),
        ("softlabels", ["check"]),
        ("softlabels", ["size"]),
        ("softlabels", ["demo"]),
        ("softlabels", ["inspect"]),
        ("softlabels", ["verify"]),
        ("softlabels", ["kld"]),
        ("softlabels", ["reference"]),
        ("trainers", []),
        ("trainers", ["run"]),
        ("trainers", ["student"]),
        ("trainers", ["eval"]),
        ("trainers", ["generate"]),
        ("trainers", ["export"]),
        ("trainers", ["latency"]),
    ],
    ids=str,
)
def test_help_does_not_wait_for_heavy_libraries(package, command):
    done = python(HELP, package, *command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ")
    assert done.stdout.splitlines()[-1] == "[]"
