"""A model over several processes: builds under torchrun keep what one process keeps. Real processes, gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.capture import Job, keep
from softlabels.core.ranks import Ranks, dealt
from softlabels.errors import ConfigError
from softlabels.estimators import make_estimator
from softlabels.store.reader import open_store
from softlabels.teachers import TeacherOptions, open_teacher
from tests.estimators.test_vocab_parallel import ESTIMATORS, same
from tests.teachers.tiny import rows_of, write_model, write_texts

VOCAB = 3_001
"""No multiple of any number of processes."""


def _head_and_states():
    g = torch.Generator().manual_seed(5)
    head, states = torch.randn(VOCAB, 24, generator=g), torch.randn(40, 24, generator=g)
    labels = torch.randint(-1, VOCAB, (40,), generator=g)
    return head, states, labels, torch.rand(40, 35, generator=g, dtype=torch.float64)


def _kept(name, head, part=None):
    _, states, labels, uniforms = _head_and_states()
    estimator = make_estimator(name, ESTIMATORS[name])
    drawn = uniforms[:, : estimator.uniforms] if estimator.uniforms else None
    found = keep(
        states,
        labels,
        drawn,
        Job(estimator),
        lambda h: h @ head.T,
        head_bytes=4 * 16 * VOCAB,
        vocab_size=VOCAB,
        part=part,
    )
    return list(found)


def _rank(rank, rendezvous, sizes):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=max(sizes)
    )
    head = _head_and_states()[0]
    for size in sizes:
        group = dist.new_group(list(range(size)))
        if rank < size:
            part = Ranks(VOCAB, group)
            for name in ESTIMATORS:
                for found, expected in zip(
                    _kept(name, dealt(head, part), part), _kept(name, head), strict=True
                ):
                    same(found, expected)
    dist.destroy_process_group()


@pytest.mark.slow
def test_dealt_out_estimators_on_2_4_and_8_processes(tmp_path):
    mp.start_processes(_rank, (tmp_path / "meet", (2, 4, 8)), nprocs=8, start_method="spawn")


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tp")
    write_model(folder / "model")
    write_texts(folder / "texts")
    return folder


def _flags(ground: Path, estimator: str, k: int) -> dict:
    return {
        "corpus": (f"text:{ground / 'texts'}/*.txt",),
        "estimator": estimator,
        "k": k,
        "seq_len": 48,
        "dtype": "float32",
        "device": "cpu",
    }


def _alone(ground: Path, estimator: str, k: int) -> Path:
    out = ground / f"alone-{estimator}"
    build(BuildConfig(teacher=f"hf:{ground / 'model'}", **_flags(ground, estimator, k)), out)
    return out


def _together(ground: Path, estimator: str, k: int, *, processes: int = 2) -> Path:
    out = ground / f"together-{estimator}"
    flags = [
        part
        for name, value in _flags(ground, estimator, k).items()
        for part in (
            f"--{name.replace('_', '-')}",
            str(value[0] if isinstance(value, tuple) else value),
        )
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["-m", "softlabels", "build", "--teacher", f"hf:{ground / 'model'}?tp=auto"]
    done = subprocess.run(
        [*command, *flags, "--out", str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "k"), [("topk", 8), ("sampled", 8), ("dense", 416)])
def test_a_build_under_torchrun_keeps_what_one_process_keeps(ground, estimator, k):
    one = open_store(_alone(ground, estimator, k))
    two = open_store(_together(ground, estimator, k))
    assert len(one) == len(two) > 0
    equal = total = 0
    for a, b in zip(one, two, strict=True):
        assert np.array_equal(a.row.input_ids, b.row.input_ids)
        equal += int((np.sort(a.targets.ids, 1) == np.sort(b.targets.ids, 1)).sum())
        total += a.targets.ids.size
        np.testing.assert_allclose(a.targets.log_odds, b.targets.log_odds, atol=2e-3)
    assert equal / total >= 0.999
    assert (
        two.manifest.identity.teacher.weights_sha256 == one.manifest.identity.teacher.weights_sha256
    )


def test_layers_on_all_devices_of_a_process_give_the_same(ground):
    options = TeacherOptions(dtype="float32", device="cpu")
    plain, mapped = (
        open_teacher(f"hf:{ground / 'model'}{query}", options) for query in ("", "?device_map=auto")
    )
    rows = rows_of(plain, f"text:{ground / 'texts'}/*.txt")[:2]
    for a, b in zip(plain.logits(rows), mapped.logits(rows), strict=True):
        torch.testing.assert_close(a, b)
    assert mapped.record == plain.record


@pytest.mark.parametrize("query", ["tp=2", "tp=auto&device_map=auto", "device-map=auto", "tp"])
def test_what_may_stand_after_the_question_mark_is_said(ground, query):
    with pytest.raises(ConfigError, match=r"expected hf:PATH, hf:PATH\?tp=auto or"):
        open_teacher(f"hf:{ground / 'model'}?{query}", TeacherOptions())


def test_without_torchrun_there_is_nobody_to_share_with(ground, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="torchrun"):
        open_teacher(f"hf:{ground / 'model'}?tp=auto", TeacherOptions())
