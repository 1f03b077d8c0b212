"""A teacher and a student at work at the same time, each in a process of its own, and killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.students import llama
from tests.trainers.test_follow import facts, losses, same, words

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BUILD = """
from softlabels.teachers import TEACHERS
TEACHERS.builtin["fake"] = "tests.fakes:load_tiny"
from softlabels.cli.main import main
main(prog_name="softlabels")
"""
TRAIN = """
from trainers.data import order
order.SLICE_ROWS = 4  # a corpus of few rows is to have several blocks
from trainers.cli import main
main(prog_name="softtrain")
"""
SHARD = 4


@pytest.fixture
def ground(tmp_path):
    words(tmp_path / "corpus")
    (tmp_path / "student.json").write_text(json.dumps(llama()))
    (tmp_path / "train.py").write_text(TRAIN)
    return tmp_path


def begin(*command) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def build(ground: Path, pause: float) -> subprocess.Popen:
    small = ["--k", 5, "--seq-len", 64, "--shard-rows", SHARD, "--batch-tokens", 64]
    how = ["--estimator", "topk", f"--teacher=fake:{pause}", "--out", ground / "store"]
    return begin("-c", BUILD, "build", "--corpus", f"text:{ground}/corpus/*.txt", *small, *how)


def student(ground: Path, run: str, *flags, processes: int = 1) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    return begin(
        *(launcher if processes > 1 else []),
        ground / "train.py",
        *("run", "--store", ground / "store", "--student", f"hf-config:{ground}/student.json"),
        *("--epochs", 1.3, "--batch-size", 4, "--accumulate", 2, "--exact-ranks"),
        *("--log-every", 1, "--checkpoint-every", 3, "--track", "none", "--threads", 1),
        *("--dtype", "float32", "--device", "cpu", "--out", ground / run, *flags),
    )


def until(condition, *processes: subprocess.Popen) -> None:
    """Wait for something that these processes bring about."""
    deadline = time.monotonic() + 60
    while not condition():
        gone = [p for p in processes if p.poll() is not None]
        if gone or time.monotonic() > deadline:
            for process in processes:
                process.kill()
            raise AssertionError([p.communicate()[1] for p in processes])
        time.sleep(0.02)


def ended(process: subprocess.Popen) -> str:
    try:
        _, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return errors


def steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.parametrize("processes", [1, 2])
def test_builder_and_student_are_killed_and_go_on(ground, processes):
    builder = build(ground, 0.2)
    run = ground / "run"
    until((ground / "store" / "plan.json").exists, builder)
    learner = student(ground, "run", "--follow", processes=processes)
    until(lambda: steps(run) >= 4, builder, learner)
    assert not (ground / "store" / "manifest.json").exists()
    builder.kill()
    builder.communicate()
    taken = steps(run)
    learner.send_signal(signal.SIGKILL if processes == 1 else signal.SIGTERM)
    learner.communicate(timeout=120)
    again = build(ground, 0.25)
    learner = student(ground, "run", "--follow", "--resume", processes=processes)
    said = ended(learner)
    ended(again)
    assert taken < steps(run) == len(losses(run))
    assert "resuming after step" in said
    assert "for its shards" in said
    assert verify_store(ground / "store").problems == []
    assert facts(run)["store_digest"] == open_store(ground / "store").digest
    ended(student(ground, "whole", "--order", "plan"))
    same(run, ground / "whole")
