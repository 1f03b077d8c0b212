"""Ctrl-C and `kill` during a build, as a user does it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from softlabels.store.verify import verify_store
from tests.fakes import write_corpus

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CODE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from softlabels.teachers import TEACHERS
TEACHERS.builtin["fake"] = "tests.fakes:load_tiny"
from softlabels.cli.main import main
main(prog_name="softlabels")
"""
"""A shell starts what runs behind it with SIGINT ignored, and a child inherits that: not what is tried here."""


def command(corpus: str, out: Path, pause: float) -> list[str]:
    build = [sys.executable, "-c", CODE, "build", "--corpus", corpus, "--out", str(out)]
    small = ["--k", "5", "--seq-len", "64", "--shard-rows", "4", "--batch-tokens", "64"]
    return [*build, *small, "--estimator", "topk", f"--teacher=fake:{pause}"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_says_so_and_goes_on_later(tmp_path, how):
    corpus = write_corpus(tmp_path / "corpus")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    out = tmp_path / "store"
    process = subprocess.Popen(
        command(corpus, out, 0.1), env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("commits/[0-9]*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(how)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "run the same command again" in stderr
    done = len(list(out.glob("commits/[0-9]*.json")))
    assert done >= 1
    assert not list(out.rglob(".tmp-*"))
    assert not (out / "manifest.json").exists()

    again = subprocess.run(
        command(corpus, out, 0), env=environment, capture_output=True, text=True, check=True
    )
    assert f"resuming: {done} of" in again.stderr
    assert "bytes each" in again.stdout
    assert verify_store(out).problems == []
