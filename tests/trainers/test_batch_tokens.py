"""`--batch-tokens`: the rows of a step put together by length, in micro-batches of so many tokens."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlabels.errors import ConfigError
from softlabels.store.reader import open_store
from tests.fakes import build_tiny, write_corpus
from tests.students import llama
from tests.trainers.test_parallel import finish, start
from trainers.data.batch import Batch, collate
from trainers.data.microbatches import batches_of_tokens, grouped_by_tokens, in_as_many
from trainers.data.tasks import Task
from trainers.loss.losses import DistillLoss
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import make_student

FIXTURES = Path(__file__).parents[1] / "fixtures"
STORES = ("topk-open-parquet", "masked-lm-open", "sequence-classification-open", "seq2seq-open")
"""Of every kind of row that has tokens."""


def fixture(name: str) -> Path:
    return max(p for p in FIXTURES.glob(f"{name}-v*") if p.is_dir())


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A store of rows of many lengths; some hold several documents."""
    folder = tmp_path_factory.mktemp("by-tokens")
    corpus = write_corpus(folder / "corpus", documents=2, repeat=1)
    for i in range(40):
        (folder / "corpus" / f"short{i}.txt").write_text("A document of its own. "[: 3 + i % 19])
    build_tiny(folder / "store", corpus, positions="random:0.8")
    (folder / "student.json").write_text(json.dumps(llama(width=16)))
    return folder


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    most=st.integers(30, 120),
    more=st.integers(0, 3),
)
def test_each_row_is_in_one_micro_batch_that_is_not_too_large(sizes, most, more):
    mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    batch = Batch(
        rows=tuple(range(len(sizes))),
        inputs={"input_ids": mask.long(), "attention_mask": mask.long()},
        width=max(sizes),
        flat_positions=torch.empty(0, dtype=torch.int64),
        labels=torch.empty(0, dtype=torch.int64),
        targets=None,
    )
    groups = grouped_by_tokens(batch, most)
    assert all(len(g) * max(sizes[i] for i in g) <= most for g in groups)
    parts = min(len(groups) + more, len(sizes))
    cut = in_as_many(groups, parts)
    assert len(cut) == parts
    for found in (groups, cut):
        assert sorted(i for g in found for i in g) == list(range(len(sizes)))
        assert all(g == sorted(g) and g for g in found)
    # no two that follow each other would fit into one
    assert all((len(g) + 1) * max(sizes[i] for i in g) > most for g in groups[:-1])


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_of_every_kind_of_row_they_add_up_to_the_batch(name, parts):
    """Loss and gradients; and nothing is as wide as the longest row but the micro-batch that holds it."""
    store = open_store(fixture(name))
    batch = collate([store.row(i) for i in range(len(store))])
    most = batch.width + batch.read
    groups = in_as_many(grouped_by_tokens(batch, most * 2), min(parts, len(store)))
    student = make_student("new:100k", seed=0, task=Task.of(store))
    student.model.eval().double()  # no dropout
    loss = DistillLoss(alpha=0.5)
    totals = loss.count(batch)

    def gradients(pieces):
        student.model.zero_grad()
        value = 0.0
        for piece in pieces:
            out = replace(loss, totals=totals)(student.hidden(piece), student.head(), piece)
            out.loss.backward()
            value += out.loss.item()
        return value, {n: p.grad.clone() for n, p in student.model.named_parameters()}

    micro = list(batches_of_tokens(batch, groups))
    assert sorted(r for m in micro for r in m.rows) == sorted(batch.rows)
    assert all(len(m.rows) * (m.width + m.read) <= most * 2 for m in micro)
    value, found = gradients(micro)
    expected, whole = gradients([batch])
    assert value == pytest.approx(expected, rel=1e-9)
    for n, one in whole.items():
        torch.testing.assert_close(found[n], one, rtol=1e-7, atol=1e-9, msg=n)
    if len(micro) > 1 and "classification" not in name:
        assert min(m.width for m in micro) < batch.width


def config_of(ground, **changes):
    values = {
        "store": str(ground / "store"),
        "student": f"hf-config:{ground / 'student.json'}",
        "steps": 6,
        "batch_size": 8,
        "lr": 1e-3,
        "log_every": 1,
        "checkpoint_every": 2,
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
    }
    return RunConfig(**(values | changes))


def losses(run):
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def by_tokens(ground, tmp_path_factory):
    run = tmp_path_factory.mktemp("by-tokens-run") / "run"
    train(config_of(ground, batch_tokens=96), run)
    return run


def test_a_run_takes_the_steps_that_it_takes_without(ground, by_tokens, tmp_path):
    train(config_of(ground), tmp_path / "whole")
    np.testing.assert_allclose(losses(by_tokens), losses(tmp_path / "whole"), rtol=1e-5)
    recorded = json.loads((by_tokens / "run.json").read_text(encoding="utf-8"))
    assert recorded["config"]["batch_tokens"] == 96


def test_a_run_that_goes_on_is_the_same_to_the_bit(ground, by_tokens, tmp_path):
    run = tmp_path / "run"
    train(config_of(ground, batch_tokens=96), run)
    for name in ("step-00000006", "step-00000004"):
        shutil.rmtree(run / "checkpoints" / name, ignore_errors=True)
    shutil.rmtree(run / "student")
    left = sorted(p.name for p in (run / "checkpoints").iterdir())
    train(config_of(ground, batch_tokens=96), run, resume=True)
    assert losses(run) == losses(by_tokens), left
    same = [(r / "student" / "model.safetensors").read_bytes() for r in (run, by_tokens)]
    assert same[0] == same[1]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_share_a_step_though_their_rows_differ_in_length(
    ground, by_tokens, tmp_path, parallel
):
    """Each cuts its own rows, and all take equally many micro-batches."""
    given = {n: getattr(config_of(ground), n) for n in ("store", "student", "batch_size", "lr")}
    given |= {"steps": 6, "log_every": 1, "dtype": "float32", "device": "cpu", "threads": 1}
    spec = given | {"batch_tokens": 96, "parallel": parallel}
    finish(start(2, spec, tmp_path / "run"))
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(by_tokens), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_tokens": 0}, "--batch-tokens 0"),
        ({"batch_tokens": 96, "accumulate": 2}, "leave --accumulate and --exact-ranks out"),
        ({"batch_tokens": 96, "exact_ranks": True}, "leave --accumulate and --exact-ranks out"),
        ({"batch_tokens": 8}, r"may have \d+ tokens, and are never cut; give \d+ or more"),
    ],
)
def test_what_cannot_be_is_refused(ground, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(config_of(ground, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
