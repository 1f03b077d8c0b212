"""A folder of the user's own named `trainers` or `softlabels` is not taken for ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import softlabels
from softlabels.core.own_process import own_environment, own_module
from tests.fakes import build_tiny, write_corpus

pytestmark = pytest.mark.slow

ROOT = Path(softlabels.__file__).parents[1]
SOFTTRAIN = Path(sys.executable).with_name("softtrain")
installed = pytest.mark.skipif(not SOFTTRAIN.exists(), reason="the commands are not installed")


@pytest.fixture
def theirs(tmp_path, monkeypatch) -> Path:
    """A user's repository, in which we stand."""
    for name in ("trainers", "softlabels"):
        (tmp_path / name).mkdir()
        for file in ("__init__", "__main__", "latency_worker"):
            (tmp_path / name / f"{file}.py").write_text("raise SystemExit('theirs')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("module", ["trainers", "softlabels"])
def test_what_we_start_ourselves_is_ours(theirs, module):
    done = subprocess.run(
        own_module(module, "--version"),
        env=own_environment(HERE="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert softlabels.__version__ in done.stdout, done.stderr
    assert own_environment(HERE="1")["HERE"] == "1"


def test_latency_and_demo_start_their_processes_so(theirs):
    from softlabels.cli.demo import _softtrain

    assert softlabels.__version__ in _softtrain(["--version"])


@installed
def test_the_command_is_ours(theirs):
    done = run(SOFTTRAIN, "--version")
    assert softlabels.__version__ in done.stdout, done.stderr


@installed
def test_torchrun_of_the_command_is_ours(theirs, tmp_path_factory):
    """As the README has it: `torchrun --nproc-per-node 2 $(which softtrain) run …`."""
    folder = tmp_path_factory.mktemp("stores")
    build_tiny(folder / "store", write_corpus(folder / "corpus", documents=1, repeat=1))
    launch = [
        sys.executable,
        "-P",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
    ]
    flags = ["--store", folder / "store", "--student", "new:300k", "--steps", 1, "--batch-size", 2]
    done = run(*launch, SOFTTRAIN, "run", *flags, "--dtype", "float32", "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    assert (folder / "run/student/model.safetensors").is_file()
    shadowed = run(*launch[:1], "-m", "trainers", "run", "--help")
    assert shadowed.returncode != 0, "as `-m trainers` is not"
    assert "theirs" in shadowed.stderr


def test_no_page_says_otherwise():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    assert not [p.name for p in pages if "-m trainers run" in p.read_text(encoding="utf-8")]
