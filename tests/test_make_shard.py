"""The seam that clusters call: a shard's bytes are a function of what pickles, in whatever process."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from softlabels.algebra.append import append
from softlabels.algebra.subset import subset
from softlabels.algebra.subset_config import SubsetConfig
from softlabels.builder.build import Taught, _cached_teacher, build
from softlabels.builder.config import AppendConfig
from softlabels.errors import CorpusError, PairingError
from softlabels.making.builder import Builder
from softlabels.making.one_shard import make_shard
from softlabels.making.plan import load_plan
from softlabels.store.reader import open_store
from tests.fakes import TinyTeacher, build_tiny, config_of, write_corpus
from tests.teachers.test_tokenizer import make

TEACHER = """
import torch

TABLE = torch.randn(420, 420, generator=torch.Generator().manual_seed(0))


def logits(input_ids, attention_mask):
    return TABLE[input_ids]


logits.tokenizer = {folder!r}
logits.weights_sha256 = "1" * 64
"""
ELSEWHERE = """
import pickle, sys

job, plan, indices = pickle.load(sys.stdin.buffer)
from softlabels.making.one_shard import make_shard

pickle.dump([make_shard(job, plan, i) for i in indices], sys.stdout.buffer)
"""
"""A worker: it is given bytes, and gives bytes."""


@pytest.mark.slow
def test_another_process_makes_the_same_bytes(tmp_path, monkeypatch):
    """In any order, without a claim, a record or a file of its own, and with the teacher that it loads itself."""
    make().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "its_teacher.py").write_text(TEACHER.format(folder=str(tmp_path / "tokenizer")))
    monkeypatch.chdir(tmp_path)
    config = config_of(write_corpus(tmp_path / "corpus"), temperature=(1.0, 2.0))
    config = type(config)(**{**config.to_dict(), "teacher": "py:its_teacher.logits"})
    manifest = build(config, tmp_path / "store")
    plan = load_plan(tmp_path / "store")
    assert plan is not None
    before = sorted(tmp_path.rglob("*"))
    indices = [len(plan.shards) - 1, 0]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=pickle.dumps((Taught(config, tmp_path / "store"), plan, indices)),
        capture_output=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path,
    )
    for index, (data, statistics) in zip(indices, pickle.loads(done.stdout), strict=True):
        assert data == (tmp_path / "store" / manifest.shards[index].name).read_bytes()
        assert statistics.kept_ids == 5 * plan.shards[index].positions
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def jobs(monkeypatch):
    """What each command gives to the protocol, as it comes out of a pickle."""
    found = []
    real = Builder.run

    def run(builder):
        commits = real(builder)
        found.append(pickle.loads(pickle.dumps((builder._job, builder._plan))))
        return commits

    monkeypatch.setattr(Builder, "run", run)
    return found


def check(job, plan, teacher=None) -> None:
    if teacher is not None:
        job.teacher = teacher
    for shard in reversed(plan.shards):
        data, _ = make_shard(job, plan, shard.index)
        assert data == (job.store / shard.name).read_bytes()


def test_so_does_every_command(tmp_path, jobs):
    corpus = write_corpus(tmp_path / "corpus")
    a = tmp_path / "a"
    build_tiny(a, corpus)
    check(*jobs.pop(), teacher=TinyTeacher())
    subset(a, SubsetConfig(first=11, k=3), tmp_path / "s")
    check(*jobs.pop())
    more = AppendConfig(teacher="fake:tiny", corpus=(write_corpus(tmp_path / "more"),))
    append(a, more, tmp_path / "g1", teacher=TinyTeacher())
    check(*jobs.pop(), teacher=TinyTeacher())
    assert jobs == []


def test_a_worker_refuses_another_teacher_and_another_corpus(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "corpus")
    build_tiny(tmp_path / "store", corpus)
    plan = load_plan(tmp_path / "store")
    assert plan is not None
    job = Taught(config_of(corpus), tmp_path / "store")
    name = "softlabels.builder.build.open_teachers"
    monkeypatch.setattr(name, lambda *_: TinyTeacher(seed=1))
    with pytest.raises(PairingError, match=r"its teacher weights_sha256 is .* that of .*store"):
        make_shard(job, plan, 0)
    _cached_teacher.cache_clear()  # a process loads a teacher once
    monkeypatch.setattr(name, lambda *_: TinyTeacher())
    assert make_shard(Taught(config_of(corpus), job.store), plan, 0)
    write_corpus(Path(corpus.removeprefix("text:")).parent, repeat=3)
    with pytest.raises(CorpusError, match="not those that were planned"):
        make_shard(Taught(config_of(corpus), job.store), plan, 1)
    assert len(open_store(tmp_path / "store")) > 0
