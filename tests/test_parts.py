"""A corpus in parts: the documented loop on several machines, one of them killed, and `merge` at the end."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from softlabels.algebra.merge import merge
from softlabels.cli.main import main as softlabels
from softlabels.corpora import open_corpora
from softlabels.format.packed_rows import labels_of
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.blocks import blocks_in, text_of
from tests.fakes import EOS, build_tiny
from trainers.data.stream import SoftTargetStream

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BUILD = """
from softlabels.teachers import TEACHERS
TEACHERS.builtin["fake"] = "tests.fakes:load_tiny"
from softlabels.cli.main import main
main(prog_name="softlabels")
"""
TARGETS = {"estimator": "sampled", "k": 4, "profile": "packed", "values": "nat8"}
SIZES = {"seq_len": 64, "shard_rows": 4, "batch_tokens": 64}
PARTS = ("0.jsonl", "1", "2.jsonl", "3")


@pytest.fixture
def ground(tmp_path) -> Path:
    """A corpus of two files and two folders of files, no two rows of which are alike; a job; a slow teacher."""
    rng = random.Random(0)
    for part in PARTS:
        path = tmp_path / "corpus" / part
        names = [path] if path.suffix else [path / f"{i}.jsonl" for i in range(2)]
        for name in names:
            name.parent.mkdir(parents=True, exist_ok=True)
            texts = (" ".join(str(rng.randrange(10**6)) for _ in range(40)) for _ in range(6))
            name.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    job = {"teacher": "fake:0.05"} | TARGETS | SIZES
    (tmp_path / "job.toml").write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in job.items()))
    (tmp_path / "build.py").write_text(BUILD)
    (tmp_path / "bin").mkdir()
    for name, does in (
        ("softlabels", f'exec {sys.executable} {tmp_path}/build.py "$@"'),
        ("srun", 'exec "$@"'),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def as_printed() -> list[str]:
    """The loop of the page."""
    (loop,) = [
        b.text
        for b in blocks_in(text_of("many-builders.md"), "many-builders.md")
        if b.heading == "Plan in parts" and "for part in" in b.text
    ]
    return ["sh", "-c", loop]


def under_slurm() -> list[str]:
    return ["sh", str(ROOT / "docs/examples/build-parts.slurm"), "job.toml", "corpus", "parts"]


def machine(ground: Path, command: Sequence[str]) -> subprocess.Popen[str]:
    """One that works at all parts; a group of processes, so that it can be killed with what it started."""
    path = f"{ground}/bin:{os.environ['PATH']}"
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "1"}
    return subprocess.Popen(
        command,
        cwd=ground,
        env=os.environ | own,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def killed(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def machines(ground) -> Iterator[list[subprocess.Popen[str]]]:
    """Those at work, which do not outlive the test."""
    working: list[subprocess.Popen[str]] = []
    yield working
    for process in working:
        if process.poll() is None:
            killed(process)


def test_parts_are_planned_at_once_by_machines_that_die_and_merge_to_the_whole(ground, machines):
    parts = ground / "parts"
    machines += [machine(ground, as_printed()), machine(ground, under_slurm())]
    deadline = time.monotonic() + 120
    while len(records := sorted(parts.glob("*/commits/*.json"))) < 4 or (
        len({r.parts[-3] for r in records}) < 2
    ):
        assert all(m.poll() is None for m in machines), [m.communicate()[1] for m in machines]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not list(parts.glob("*/manifest.json")), "two parts are taught while neither is done"
    killed(machines[0])
    unfinished = CliRunner().invoke(
        softlabels, ["merge", *map(str, sorted(parts.iterdir())), "--out", str(ground / "store")]
    )
    assert unfinished.exit_code == 1
    assert "parts/0.jsonl" in unfinished.output
    machines[0] = machine(ground, as_printed())
    for process in machines:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said

    command = ["merge", *map(str, sorted(parts.iterdir())), "--out", str(ground / "store")]
    assert CliRunner().invoke(softlabels, command).exit_code == 0
    assert verify_store(ground / "store").problems == []
    for shard in open_store(ground / "store").manifest.shards:
        assert (ground / "store" / shard.name).stat().st_nlink == 2
    shutil.rmtree(parts)
    check_whole(ground)


def check_whole(ground: Path) -> None:
    """The merged store is what one builder makes of each part, all documents once and in order, and trains."""
    alone = [ground / "alone" / part for part in PARTS]
    corpora = [str(ground / "corpus" / part) for part in PARTS]
    for store, corpus in zip(alone, corpora, strict=True):
        build_tiny(store, corpus, **TARGETS, **SIZES)
    expected = merge(alone, ground / "expected")
    store = open_store(ground / "store")
    assert store.manifest.content_digest == expected.content_digest
    learnt = labels_of([r.row for r in store])  # of each document all but its first token
    texts = [d.text for c in corpora for d in open_corpora([c])[0].documents()]
    assert learnt.tolist() == [token for t in texts for token in [*t.encode()[1:], EOS]]
    batches = iter(SoftTargetStream(ground / "store", batch_size=1, seed=0))
    rows = [int(next(batches).rows[0]) for _ in range(len(store))]
    batches.close()
    assert sorted(rows) == list(range(len(store)))
    assert rows != sorted(rows)
