"""Targets without inputs: shared with those who hold the text, joined by digest, refused if anything differs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from softlabels.algebra.convert import convert
from softlabels.algebra.merge import merge
from softlabels.algebra.subset import subset
from softlabels.algebra.subset_config import SubsetConfig
from softlabels.core.progress import Silent
from softlabels.errors import ConfigError, FormatError, IntegrityError, PairingError
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.algebra.compare import content, same, varied_corpus
from tests.fakes import TinyTeacher, build_tiny
from tests.store.made_up import reseal
from tests.students import LLAMA, evaluate_run
from trainers.data.stream import SoftTargetStream
from trainers.evaluation.assess import assess_run
from trainers.evaluation.config import EvalConfig
from trainers.exports.config import ExportConfig
from trainers.exports.student import export
from trainers.run.config import RunConfig
from trainers.run.finished import open_finished
from trainers.run.setup import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("inputs")
    corpus = varied_corpus(made / "text")
    build_tiny(made / "store", corpus, shard_rows=4, k=9, temperature=(1.0, 2.0))
    build_tiny(made / "zarr", corpus, shard_rows=4, container="zarr", positions="entropy:0.4")
    subset(made / "store", SubsetConfig(drop_inputs=True), made / "targets")
    subset(made / "store", SubsetConfig(inputs_only=True), made / "inputs")
    return made


def test_nothing_of_the_inputs_is_left(folder):
    for shard in (folder / "targets/data").iterdir():
        names = set(pq.read_schema(shard).names)
        assert not names & {"input_ids", "segment_lengths", "documents", "label_mask"}
        assert {"row", "input_digest", "kept", "ids", "logp", "log_odds_T1"} <= names
    manifest = open_store(folder / "targets").manifest
    assert manifest.identity.encoding.profile == "open-targets"
    old = open_store(folder / "store").manifest
    assert manifest.identity.corpus.fingerprint == old.identity.corpus.fingerprint
    assert verify_store(folder / "targets").problems == []
    assert verify_store(folder / "inputs").problems == []
    assert not any(s.targets.soft.any() for s in open_store(folder / "inputs"))


@pytest.mark.parametrize("inputs", ["store", "inputs"])
def test_joined_it_is_what_it_was(folder, inputs):
    joined = open_store(folder / "targets", inputs=folder / inputs)
    original = open_store(folder / "store")
    for a, b in zip(joined, original, strict=True):
        assert a.row.digest() == b.row.digest()
        np.testing.assert_array_equal(a.row.input_ids, b.row.input_ids)
        np.testing.assert_array_equal(a.targets.ids, b.targets.ids)
        np.testing.assert_array_equal(a.targets.gaps, b.targets.gaps)
        np.testing.assert_array_equal(a.targets.log_odds, b.targets.log_odds)


def test_the_rows_may_be_held_in_another_order_and_form(folder, tmp_path):
    subset(folder / "inputs", SubsetConfig(where="row >= 7"), tmp_path / "late")
    subset(folder / "inputs", SubsetConfig(where="row < 7"), tmp_path / "early")
    merge([tmp_path / "late", tmp_path / "early"], tmp_path / "turned")
    convert(tmp_path / "turned", tmp_path / "held", profile="packed", values="nat16")
    joined = open_store(folder / "targets", inputs=tmp_path / "held")
    for a, b in zip(joined, open_store(folder / "store"), strict=True):
        np.testing.assert_array_equal(a.row.input_ids, b.row.input_ids)
    # On several threads at once, as a stream reads them.
    ours = SoftTargetStream(joined, batch_size=4, shuffle=False, prefetch=2)
    theirs = SoftTargetStream(folder / "store", batch_size=4, shuffle=False)
    for _, a, b in zip(range(9), ours, theirs, strict=False):
        np.testing.assert_array_equal(a.inputs["input_ids"].numpy(), b.inputs["input_ids"].numpy())


def test_in_zarr_and_with_hard_labels(folder, tmp_path):
    subset(folder / "zarr", SubsetConfig(drop_inputs=True, first=9), tmp_path / "targets")
    assert verify_store(tmp_path / "targets").problems == []
    joined = list(open_store(tmp_path / "targets", inputs=folder / "zarr"))
    for a, b in zip(joined, open_store(folder / "zarr"), strict=False):
        np.testing.assert_array_equal(a.row.input_ids, b.row.input_ids)
        np.testing.assert_array_equal(a.targets.log_odds, b.targets.log_odds)


def test_targets_of_several_can_be_merged(folder, tmp_path):
    build_tiny(
        tmp_path / "b", varied_corpus(tmp_path / "text", seed=5), k=9, temperature=(1.0, 2.0)
    )
    subset(tmp_path / "b", SubsetConfig(drop_inputs=True), tmp_path / "b-targets")
    merge([folder / "targets", tmp_path / "b-targets"], tmp_path / "m")
    merge([folder / "store", tmp_path / "b"], tmp_path / "held")
    assert verify_store(tmp_path / "m").problems == []
    joined = open_store(tmp_path / "m", inputs=tmp_path / "held")
    expected = content(tmp_path / "held")
    stored = list(joined)
    found = np.concatenate([s.row.input_ids for s in stored])
    same({"input_ids": found}, {"input_ids": expected["input_ids"]})
    with pytest.raises(PairingError, match="profile"):
        merge([folder / "store", folder / "targets"], tmp_path / "mixed")


@pytest.fixture(scope="module")
def run(folder):
    config = config_of(folder, inputs=str(folder / "inputs"))
    train(config, folder / "run")
    return folder / "run"


def config_of(folder, **changes) -> RunConfig:
    (folder / "student.json").write_text(json.dumps(LLAMA))
    asked = {
        "store": str(folder / "targets"),
        "student": f"hf-config:{folder / 'student.json'}",
        "steps": 2,
        "batch_size": 4,
        "dtype": "float32",
    }
    return RunConfig(**(asked | changes))


def test_a_student_learns_from_it(folder, run, tmp_path):
    assert (run / "metrics.jsonl").exists()
    with pytest.raises(PairingError, match="not the inputs; give a store that holds them"):
        train(config_of(folder), tmp_path / "without")
    with pytest.raises(ConfigError, match="goes with one --store"):
        config_of(folder, store=("a", "b"), inputs="c")


def test_its_student_is_exported_wherever_the_inputs_lie(folder, run, tmp_path):
    training = open_finished(run).training_stores  # as an export opens them
    (store,) = training()
    np.testing.assert_array_equal(
        store.row(3).row.input_ids, open_store(folder / "store").row(3).row.input_ids
    )
    shutil.move(folder / "inputs", folder / "moved")
    try:
        with pytest.raises(ConfigError, match="where its inputs lie now with --inputs"):
            training()
        (store,) = training(inputs=str(folder / "moved"))
        assert store.row(3).row.n == open_store(folder / "store").row(3).row.n
        config = ExportConfig(format="safetensors", heldout=str(folder / "zarr"), rows=2)
        assert export(run, tmp_path / "out", config).check.agreement == 1.0  # reads no row of them
    finally:
        shutil.move(folder / "moved", folder / "inputs")


def test_its_student_is_evaluated_on_targets_whose_inputs_are_elsewhere(folder, run):
    with pytest.raises(PairingError, match="not the inputs"):
        evaluate_run(run, folder / "targets")
    config = EvalConfig(store=str(folder / "targets"), inputs=str(folder / "inputs"), bootstrap=0)
    assessment = assess_run(run, config, Silent())
    assert assessment.scores.nll == evaluate_run(run, folder / "store").nll
    assert f"--inputs {folder / 'inputs'}" in assessment.command


def test_a_mismatch_is_refused(folder, tmp_path):
    with pytest.raises(PairingError, match="holds targets and digests"):
        open_store(folder / "targets").row(0)
    with pytest.raises(PairingError, match="holds its inputs itself"):
        open_store(folder / "store", inputs=folder / "inputs")
    with pytest.raises(PairingError, match="holds no inputs itself"):
        open_store(folder / "targets", inputs=folder / "targets")
    other = TinyTeacher(salt="x")
    build_tiny(tmp_path / "x", varied_corpus(tmp_path / "text"), teacher=other)
    with pytest.raises(PairingError, match="tokenizer"):
        open_store(folder / "targets", inputs=tmp_path / "x")
    subset(folder / "inputs", SubsetConfig(where="row <> 2"), tmp_path / "gap")
    with pytest.raises(PairingError, match=r"1 of 4 rows of a shard are not in --inputs"):
        open_store(folder / "targets", inputs=tmp_path / "gap").row(0)
    for where in ({"where": "row < 3"}, {"k": 2}):
        with pytest.raises(PairingError, match="holds targets and digests"):
            subset(folder / "targets", SubsetConfig(**where), tmp_path / "s")


def test_inputs_of_another_shape_are_refused(folder, tmp_path):
    """A digest covers the mask, so a row with other positions can only come from a damaged store."""
    shutil.copytree(folder / "targets", tmp_path / "t")
    reseal(tmp_path / "t/manifest.json", identity__teacher__vocab_size=120)
    with pytest.raises((PairingError, ValueError), match=r"outside 0\.\.119"):
        list(open_store(tmp_path / "t", inputs=folder / "inputs"))


def test_a_damaged_input_store_is_found(folder, tmp_path):
    shutil.copytree(folder / "inputs", tmp_path / "broken")
    shard = next((tmp_path / "broken/data").iterdir())
    data = bytearray(shard.read_bytes())
    data[99] ^= 1
    shard.write_bytes(data)
    with pytest.raises(IntegrityError):
        open_store(folder / "targets", inputs=tmp_path / "broken")


def test_packed_targets_are_coded_with_their_inputs(folder, tmp_path):
    convert(folder / "store", tmp_path / "p", profile="packed", values="nat16")
    with pytest.raises(ConfigError, match="make it plain first"):
        subset(tmp_path / "p", SubsetConfig(drop_inputs=True), tmp_path / "t")
    with pytest.raises(ConfigError, match="excludes --drop-inputs"):
        SubsetConfig(drop_inputs=True, inputs_only=True)


def test_an_older_reader_refuses_it_by_name(folder, monkeypatch):
    monkeypatch.setattr("softlabels.store.readable.READABLE", ("open", "packed"))
    with pytest.raises(FormatError, match="profile 'open-targets' is not known"):
        open_store(folder / "targets")
