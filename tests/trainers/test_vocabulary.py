"""Training and evaluating in another vocabulary than the store's, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from softlabels.errors import ConfigError, PairingError, RunError, TokenizerError
from softlabels.store.reader import open_store
from tests.fakes import Notices, TinyTeacher, build_tiny, write_corpus
from tests.students import LLAMA, evaluate_run
from trainers.data.batch import collate
from trainers.data.stream import SoftTargetStream
from trainers.loss.head import Head
from trainers.loss.losses import DistillLoss
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import make_student

TEXT_IDS = 257  # the tokenizer's; the teacher's head is padded to 300


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    build_tiny(folder / "store", write_corpus(folder / "corpus"), temperature=(1.0, 2.0), k=12)
    for name, size in (("trimmed", TEXT_IDS), ("wide", 320), ("whole", 300)):
        (folder / f"{name}.json").write_text(json.dumps(LLAMA | {"vocab_size": size}))
    table = np.where(np.arange(300) < TEXT_IDS, 319 - np.arange(300), -1)
    np.save(folder / "map.npy", table)
    return folder


def config_of(ground: Path, student: str, **changes) -> RunConfig:
    values = {
        "store": str(ground / "store"),
        "student": f"hf-config:{ground / student}.json",
        "temperature": 2.0,
        "steps": 8,
        "batch_size": 4,
        "lr": 1e-2,
        "log_every": 1,
        "checkpoint_every": 4,
        "dtype": "float32",
    }
    return RunConfig(**(values | changes))


def test_a_run_on_a_trimmed_vocabulary(ground, tmp_path):
    heard = Notices()
    run = tmp_path / "run"
    config = config_of(ground, "trimmed", vocab=f"trim:{TEXT_IDS}", steps=40)
    folder = train(config, run, reporter=heard)
    student = make_student(f"hf:{folder}", seed=0)
    assert student.vocab_size == TEXT_IDS
    assert (folder / "tokenizer.json").exists()  # the ids are still its ids
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert np.mean([x["loss"] for x in lines[-5:]]) < 0.8 * lines[0]["loss"]
    (notice,) = (s for s in heard.lines if s.startswith("--vocab trim:257: dropped "))
    assert "of the mass at T=2" in notice
    record = json.loads((run / "view.json").read_text())
    assert record["view"] == {"spec": "trim:257", "vocab_size": 257, "table_sha256": None}
    assert 0 < record["dropped"]["mean"][1] < record["dropped"]["largest"][1] <= 1
    assert record["dropped"]["positions"] > 0
    found = evaluate_run(run, ground / "store", vocab="trim:257")
    assert found.nll < np.log(TEXT_IDS)
    assert found.kl > 0
    assert found.teacher_nll is None
    assert found.dropped["positions"] == found.positions
    with pytest.raises(PairingError, match=r"257 ids, the store's 300.*--vocab trim:257"):
        evaluate_run(run, ground / "store")


@pytest.mark.parametrize("t", [1.0, 2.0])
def test_the_loss_on_a_view_is_that_of_the_conditional_teacher(ground, t):
    """Dense in float64: the teacher's softmax without the padding rows of its head."""
    build_tiny(ground / f"dense{t}", write_corpus(ground / f"c{t}", repeat=1), estimator="dense",
               k=300, temperature=(1.0, 2.0), values="float32", limit_rows=3)  # fmt: skip
    stored = open_store(ground / f"dense{t}", vocab="trim:257").row(1)
    batch = collate([stored])
    logits = TinyTeacher().dense(stored.row).double()[:, :TEXT_IDS]
    g = torch.Generator().manual_seed(0)
    n = batch.positions
    hidden = torch.randn(n, 6, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(TEXT_IDS, 6, generator=g, dtype=torch.float64, requires_grad=True)
    found = DistillLoss(temperature=t, alpha=0.7)(hidden, Head(weight=weight), batch).loss
    z = hidden @ weight.T
    p = torch.softmax(logits / t, 1)
    soft = (p * (p.log() - torch.log_softmax(z / t, 1))).sum() / n
    expected = 0.7 * t**2 * soft + 0.3 * torch.nn.functional.cross_entropy(z, batch.labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(
        torch.autograd.grad(found, (hidden, weight)),
        torch.autograd.grad(expected, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_resume_asks_for_the_same_vocabulary(ground, tmp_path):
    run = tmp_path / "run"
    spec = f"map:{ground / 'map.npy'}?size=320"
    config = config_of(ground, "wide", vocab=spec)
    heard = Notices()
    folder = train(config, run, reporter=heard)
    assert any("renumbered on your word" in s for s in heard.lines)
    assert not (folder / "tokenizer.json").exists()
    moved = tmp_path / "elsewhere.npy"
    moved.write_bytes((ground / "map.npy").read_bytes())
    before = (run / "view.json").read_bytes()
    again = replace(config, vocab=f"map:{moved}?size=320")
    assert train(again, run, resume=True, reporter=heard) == folder
    assert "has finished, after step 8" in heard.lines[-1]
    assert (run / "view.json").read_bytes() == before
    other = np.load(ground / "map.npy")
    other[[70, 71]] = other[[71, 70]]
    np.save(tmp_path / "other.npy", other)
    with pytest.raises(RunError, match=r"was begun with --vocab map:map\.npy.*another vocabulary"):
        train(replace(config, vocab=f"map:{tmp_path / 'other.npy'}?size=320"), run, resume=True)
    evaluate_run(run, ground / "store", vocab=spec)
    with pytest.raises(PairingError, match="numbers the ids otherwise"):
        evaluate_run(run, ground / "store", vocab=f"map:{tmp_path / 'other.npy'}?size=320")
    train(config_of(ground, "whole", steps=4), tmp_path / "plain")
    trimmed = config_of(ground, "trimmed", steps=4, vocab="trim:257")
    with pytest.raises(RunError, match=r"begun with --vocab none, this has trim:257"):
        train(trimmed, tmp_path / "plain", resume=True)


def test_a_renumbered_run_is_the_trimmed_one_with_other_numbers(ground):
    """Rows, labels and targets of the same positions, id by id."""
    a = SoftTargetStream(ground / "store", batch_size=4, vocab="trim:257", prefetch=0).batch_at(0)
    spec = f"map:{ground / 'map.npy'}"
    b = SoftTargetStream(ground / "store", batch_size=4, vocab=spec, prefetch=0).batch_at(0)
    assert a.rows == b.rows
    assert torch.equal(319 - a.labels, b.labels)
    np.testing.assert_array_equal(a.targets.probs(2.0), b.targets.probs(2.0))
    with pytest.raises(ConfigError, match="the store is open already"):
        SoftTargetStream(open_store(ground / "store"), batch_size=4, vocab="trim:257")


def test_a_wrong_vocabulary_is_refused_before_training(ground, tmp_path):
    for student, vocab, says in (
        (
            "trimmed",
            None,
            r"has 257 ids, the store's 300; .*or read the store with --vocab trim:257",
        ),
        ("whole", "trim:257", r"has 300 ids, that of --vocab trim:257 257"),
        ("whole", "map:none.npy", "cannot be read"),
    ):
        with pytest.raises((PairingError, ConfigError), match=says):
            train(config_of(ground, student, vocab=vocab), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_trimmed_student_of_another_tokenizer_is_refused(ground, tmp_path):
    build_tiny(tmp_path / "other", write_corpus(tmp_path / "c"), teacher=TinyTeacher(salt="x"))
    trimmed = config_of(ground, "trimmed", vocab="trim:257", steps=2)
    folder = train(trimmed, tmp_path / "run")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        train(
            replace(
                trimmed, store=str(tmp_path / "other"), student=f"hf:{folder}", temperature=1.0
            ),
            tmp_path / "run2",
        )


@pytest.mark.slow
def test_the_commands_say_what_was_dropped(ground, tmp_path):
    def softtrain(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "trainers", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    store, run = str(ground / "store"), str(tmp_path / "run")
    flags = ["--student", f"hf-config:{ground / 'trimmed.json'}", "--steps", "2", "--out", run]
    done = softtrain("run", "--store", store, "--vocab", "trim:257", *flags, "--json")
    result = json.loads(done.stdout)
    assert result["view"]["spec"] == "trim:257"
    assert len(result["dropped"]["mean"]) == 2
    found = softtrain("eval", run, "--store", store, "--vocab", "trim:257")
    assert "dropped  0." in found.stdout
    as_json = json.loads(
        softtrain("eval", run, "--store", store, "--vocab", "trim:257", "--json").stdout
    )
    assert as_json["dropped"]["temperatures"] == [1.0, 2.0]
