"""DistilBERT's third loss: hidden states beside the distributions, and the cosine between them and the student's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from softlabels.builder.build import build
from softlabels.codecs.hidden import HIDDEN_CODECS
from softlabels.core.targets import SoftTargets
from softlabels.errors import (
    ConfigError,
    IntegrityError,
    PairingError,
    PlanError,
    RunError,
    TargetError,
)
from softlabels.format.encoding import decode_shard, encode_shard
from softlabels.format.hidden import hidden_of_streams, hidden_streams
from softlabels.format.manifest import Statistics
from softlabels.format.shard import Reading, Shard
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.domains import models
from tests.domains.test_masked_lm import config, run_config
from trainers.data.batch import collate
from trainers.data.microbatches import split_batch
from trainers.data.tasks import Task
from trainers.loss.losses import DistillLoss
from trainers.run.setup import train
from trainers.students import make_student

D = 16


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hidden")
    models.save_masked_lm(folder / "teacher")
    models.write_corpus(folder / "train.jsonl", labelled=False)
    models.config(layers=1, initializer_range=0.05).to_json_file(folder / "student.json")
    build(config(folder, mask_targets="attended", hidden="float16"), folder / "store")
    return folder


# -- codecs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(HIDDEN_CODECS))
@given(
    rows=st.lists(
        st.lists(st.floats(-6e4, 6e4, width=32), min_size=4, max_size=4), min_size=1, max_size=6
    )
)
def test_no_number_is_further_off_than_the_codec_says(name, rows):
    codec = HIDDEN_CODECS[name]
    hidden = np.array(rows, np.float32)
    numbers, scales = codec.encode(hidden)
    assert numbers.dtype == codec.dtype
    back = codec.decode(numbers, scales if codec.scaled else None)
    bound = codec.error * np.abs(hidden.astype(np.float64)).max(axis=1, keepdims=True)
    assert (np.abs(back.astype(np.float64) - hidden) <= np.maximum(bound, 2.0**-25)).all()


def test_what_float16_cannot_hold_is_refused():
    with pytest.raises(TargetError, match="cannot hold a hidden state beyond 65504"):
        HIDDEN_CODECS["float16"].encode(np.full((1, 2), 7e4, np.float32))


# -- the store ------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", list(HIDDEN_CODECS))
@pytest.mark.parametrize("profile", ["open", "packed"])
@pytest.mark.parametrize("container", ["parquet", "zarr"])
def test_a_store_holds_what_the_last_layer_gave(ground, tmp_path, values, profile, container):
    job = config(ground, hidden=values, profile=profile, container=container, head_mib=1)
    build(job, tmp_path / "s")
    assert verify_store(tmp_path / "s").problems == []
    store = open_store(tmp_path / "s")
    model = transformers.AutoModelForMaskedLM.from_pretrained(ground / "teacher").eval()
    record = store.manifest.identity.hidden
    assert (record.values, record.width) == (values, D)
    for stored in store:
        fed = torch.from_numpy(stored.row.fed_ids)[None].long()
        with torch.no_grad():
            states = model(input_ids=fed, output_hidden_states=True).hidden_states[-1][0]
        expected = states[torch.from_numpy(stored.row.label_mask)].numpy()
        assert stored.targets.hidden.shape == expected.shape
        bound = record.error * np.abs(expected).max(axis=1, keepdims=True) + 1e-5
        assert (np.abs(stored.targets.hidden - expected) <= bound).all()


def test_without_the_flag_there_is_none(ground, tmp_path):
    build(config(ground), tmp_path / "s")
    assert open_store(tmp_path / "s").row(0).targets.hidden is None
    (tmp_path / "s" / "manifest.json").unlink()
    with pytest.raises(PlanError, match="was planned with hidden values = None"):
        build(config(ground, hidden="int8"), tmp_path / "s")


def shard(ground: Path) -> tuple[Shard, SoftTargets]:
    rows = [open_store(ground / "store").row(i) for i in range(3)]
    targets = SoftTargets.concatenate([r.targets for r in rows])
    return Shard(start_row=0, rows=[r.row for r in rows], targets=targets), targets


def test_what_has_no_hidden_states_cannot_be_written(ground):
    content, targets = shard(ground)
    identity = open_store(ground / "store").manifest.identity
    nothing = Statistics(kept_ids=0, kept_mass=[], teacher_nll=None)
    for bad in (None, targets.hidden[:, :3]):
        broken = replace(content, targets=replace(targets, hidden=bad))
        with pytest.raises(TargetError, match="holds hidden states of width 16, and the targets"):
            encode_shard(broken, identity, nothing)
    endless = replace(targets, hidden=np.full_like(targets.hidden, np.inf))
    with pytest.raises(TargetError, match="not finite"):
        encode_shard(replace(content, targets=endless), identity, nothing)
    data = encode_shard(content, identity, nothing)
    assert (
        decode_shard(data, Reading(identity=identity, start_row=0, where="x")).targets.hidden.shape[
            1
        ]
        == D
    )


def test_a_torn_stream_is_refused(ground):
    name, (_, targets) = "hidden", shard(ground)
    identity = open_store(ground / "store").manifest.identity
    streams = hidden_streams(targets, identity)
    cut = {name: replace(streams[name], data=streams[name].data[:-1])}
    for broken in ({}, cut, {name: replace(streams[name], entries=1)}):
        with pytest.raises(IntegrityError, match="'hidden'"):
            hidden_of_streams(broken, identity, targets.n, where="shard")
    nan = np.frombuffer(streams[name].data, "<f2").copy()
    nan[3] = np.nan
    bad = {name: replace(streams[name], data=nan.tobytes())}
    with pytest.raises(IntegrityError, match="not finite"):
        hidden_of_streams(bad, identity, targets.n, where="shard")


# -- the loss -------------------------------------------------------------------------------------


def test_the_cosine_loss_and_its_gradient_are_the_dense_ones(ground):
    store = open_store(ground / "store")
    student = make_student(f"hf-config:{ground / 'student.json'}", seed=1, task=Task.of(store))
    student = student.double()
    batch = collate([store.row(i) for i in range(8)])
    plain = DistillLoss(temperature=2.0, alpha=0.7)
    hidden, layer = student.hidden_and_layer(batch)
    out = replace(plain, cosine=3.0)(hidden, student.head(), batch, layer=layer)
    out.loss.backward()
    found = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}

    student.zero_grad()
    states = student.model(**batch.inputs, output_hidden_states=True).hidden_states[-1]
    states = states.flatten(0, 1)[batch.flat_positions]
    theirs = torch.from_numpy(batch.targets.hidden).double()
    target = torch.ones(len(theirs)).double()
    cosine = torch.nn.functional.cosine_embedding_loss(states, theirs, target)
    rest = plain(student.hidden(batch), student.head(), batch).loss
    expected = rest + 3.0 * cosine
    expected.backward()
    torch.testing.assert_close(out.loss, expected, rtol=1e-9, atol=0)
    assert out.cosine == pytest.approx(cosine.item() * batch.positions)
    for name, p in student.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-6, atol=1e-9, msg=name)


def test_micro_batches_add_up(ground):
    store = open_store(ground / "store")
    student = make_student(f"hf-config:{ground / 'student.json'}", seed=1, task=Task.of(store))
    batch = collate([store.row(i) for i in range(8)])
    loss = DistillLoss(alpha=0.0, cosine=1.0)

    def value(part):
        hidden, layer = student.hidden_and_layer(part)
        step = replace(loss, totals=loss.count(batch))
        return step(hidden, student.head(), part, layer=layer).loss.item()

    assert sum(map(value, split_batch(batch, 4))) == pytest.approx(value(batch), rel=1e-5)


def test_a_student_comes_to_point_where_the_teacher_does(ground, tmp_path):
    run = run_config(ground, ground / "store", cosine=1.0, log_every=1)
    train(run, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    values = [json.loads(line)["cosine"] for line in lines]
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": "int4"}, "--hidden 'int4': expected one of int8, float16"),
        ({"hidden": "int8", "domain": "causal-lm", "mask_share": None}, "belongs to --domain mask"),
    ],
)
def test_bad_flags_are_refused(ground, settings, message):
    with pytest.raises(ConfigError, match=message):
        config(ground, **settings)


def test_what_cannot_be_compared_is_refused(ground, tmp_path):
    with pytest.raises(ConfigError, match=r"--cosine -1\.0: expected a finite number, at least 0"):
        run_config(ground, ground / "store", cosine=-1.0)
    build(config(ground), tmp_path / "bare")
    with pytest.raises(PairingError, match="holds no hidden states for --cosine 1"):
        train(run_config(ground, tmp_path / "bare", cosine=1.0), tmp_path / "a")
    models.config(hidden_size=8).to_json_file(tmp_path / "narrow.json")
    narrow = run_config(
        ground, ground / "store", cosine=1.0, student=f"hf-config:{tmp_path / 'narrow.json'}"
    )
    with pytest.raises(
        RunError, match="last layer is 8 wide, the store's hidden states are 16 wid"
    ):
        train(narrow, tmp_path / "b")
