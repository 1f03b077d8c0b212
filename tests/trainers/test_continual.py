"""Going on from an earlier run's student with another store, and what that costs it on the old one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from softlabels.errors import ConfigError, RunError, TokenizerError
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.students import LLAMA, evaluate_run
from trainers.cli import main
from trainers.evaluation.forgetting import read_forgetting
from trainers.run.config import RunConfig
from trainers.run.setup import train


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A student of one teacher, and stores of another teacher that contradicts it."""
    folder = tmp_path_factory.mktemp("continual")
    corpus = write_corpus(folder / "corpus")
    build_tiny(folder / "old", corpus)
    build_tiny(folder / "old-heldout", write_corpus(folder / "other", documents=2, repeat=1))
    build_tiny(folder / "new", corpus, teacher=TinyTeacher(seed=9))
    (folder / "student.json").write_text(json.dumps(LLAMA))
    train(
        config_of(folder, student=f"hf-config:{folder / 'student.json'}", steps=60),
        folder / "first",
    )
    return folder


def config_of(ground: Path, **changes) -> RunConfig:
    values = {
        "store": str(ground / "old"),
        "steps": 30,
        "batch_size": 4,
        "alpha": 1.0,
        "lr": 1e-2,
        "dtype": "float32",
        "checkpoint_every": 10,
    }
    return RunConfig(**(values | changes))


def next_config(ground: Path, **changes) -> RunConfig:
    values = {
        "store": str(ground / "new"),
        "init": str(ground / "first"),
        "forgetting": (str(ground / "old-heldout"),),
    }
    return config_of(ground, **(values | changes))


def kl_of(run: Path, store: Path) -> float:
    return evaluate_run(run, store, batch_size=4).kl


def test_forgetting_is_what_two_evaluations_say_and_replay_lessens_it(ground, tmp_path):
    heldout = ground / "old-heldout"
    first = evaluate_run(ground / "first", heldout, batch_size=4)
    train(next_config(ground), tmp_path / "plain")
    mixed = (f"{ground / 'new'}=0.5", f"{ground / 'old'}=0.5")
    train(next_config(ground, store=mixed), tmp_path / "replay")
    for name in ("plain", "replay"):
        (found,) = read_forgetting(tmp_path / name)
        last = evaluate_run(tmp_path / name, heldout, batch_size=4)
        assert found["before"]["nll"] == pytest.approx(first.nll, rel=1e-6)
        assert found["before"]["kl"] == pytest.approx(first.kl, rel=1e-6)
        assert found["after"]["nll"] == pytest.approx(last.nll, rel=1e-6)
        assert found["after"]["kl"] == pytest.approx(last.kl, rel=1e-6)
    plain, replay = kl_of(tmp_path / "plain", heldout), kl_of(tmp_path / "replay", heldout)
    assert first.kl < replay < plain, "what is not replayed is unlearnt"


def test_it_begins_with_the_students_weights_and_says_whose(ground, tmp_path):
    train(next_config(ground, steps=1, lr=1e-9, warmup=0, weight_decay=0.0), tmp_path / "run")
    a = load_file(ground / "first" / "student" / "model.safetensors")
    b = load_file(tmp_path / "run" / "student" / "model.safetensors")
    assert all(float((a[n] - b[n]).abs().max()) < 1e-6 for n in a)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    earlier = json.loads((ground / "first" / "run.json").read_text())
    assert facts["init"]["run"] == "first"
    assert facts["init"]["store_digest"] == earlier["store_digest"] != facts["store_digest"]
    assert facts["init"]["steps"] == 60
    assert facts["init"]["init"] is None
    train(next_config(ground, init=str(tmp_path / "run"), steps=1), tmp_path / "third")
    chain = json.loads((tmp_path / "third" / "run.json").read_text())["init"]
    assert chain["init"] == facts["init"], "three steps back to the first"


def test_watching_does_not_change_the_training(ground, tmp_path):
    train(next_config(ground, steps=6), tmp_path / "a")
    train(next_config(ground, steps=6, forgetting=()), tmp_path / "b")
    a, b = (load_file(tmp_path / n / "student" / "model.safetensors") for n in "ab")
    assert all(bool((a[n] == b[n]).all()) for n in a)
    assert read_forgetting(tmp_path / "b") == []


def test_a_run_that_goes_on_keeps_the_first_evaluation(ground, tmp_path, monkeypatch):
    from trainers.run.step import Optimisation

    take = Optimisation.take

    def fail(self, loss, batch, step, **more):
        if step == 4:
            raise RuntimeError("killed")
        return take(self, loss, batch, step, **more)

    config = next_config(ground, steps=6, checkpoint_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(Optimisation, "take", fail)
        with pytest.raises(RuntimeError, match="killed"):
            train(config, tmp_path / "run")
    (half,) = read_forgetting(tmp_path / "run")
    assert "after" not in half
    with pytest.raises(RunError, match="with --forgetting on 1 other stores"):
        train(replace(config, forgetting=(str(ground / "old"),)), tmp_path / "run", resume=True)
    train(config, tmp_path / "run", resume=True)
    (whole,) = read_forgetting(tmp_path / "run")
    assert whole["before"] == half["before"]
    train(config, tmp_path / "straight")
    assert read_forgetting(tmp_path / "straight") == [whole]


def test_it_is_refused_to_go_on_from_another_student(ground, tmp_path):
    train(next_config(ground, steps=2, forgetting=()), tmp_path / "run")
    train(
        config_of(ground, student=f"hf-config:{ground / 'student.json'}", steps=2),
        tmp_path / "else",
    )
    with pytest.raises(
        RunError, match=r"was begun from the student of first .* from the student of else"
    ):
        train(
            next_config(ground, init=str(tmp_path / "else"), steps=2, forgetting=()),
            tmp_path / "run",
            resume=True,
        )
    with pytest.raises(RunError, match="was begun without --forgetting"):
        train(next_config(ground, steps=2), tmp_path / "run", resume=True)


def test_mistakes_are_refused(ground, tmp_path):
    with pytest.raises(ConfigError, match="--init first: is the student; leave out --student hf:x"):
        config_of(ground, init="first", student="hf:x")
    with pytest.raises(ConfigError, match="--student is missing"):
        config_of(ground)
    with pytest.raises(RunError, match="not a run"):
        train(next_config(ground, init=str(ground / "old")), tmp_path / "run")
    with pytest.raises(RunError, match=r"--forgetting .*new: is the very store that is trained on"):
        train(next_config(ground, forgetting=(str(ground / "new"),)), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"--forgetting .*: is given twice"):
        train(next_config(ground, forgetting=(str(ground / "old"),) * 2), tmp_path / "run")
    build_tiny(tmp_path / "salted", write_corpus(tmp_path / "c"), teacher=TinyTeacher(salt="x"))
    with pytest.raises(TokenizerError, match=r"is not the one that .*first was trained with"):
        train(next_config(ground, store=str(tmp_path / "salted"), forgetting=()), tmp_path / "run")
    with pytest.raises(TokenizerError, match=r"--forgetting .*salted: its tokenizer"):
        train(next_config(ground, forgetting=(str(tmp_path / "salted"),)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_reports_it(ground, tmp_path):
    flags = ["run", "--store", str(ground / "new"), "--init", str(ground / "first"), "--steps", "2",
             "--batch-size", "2", "--dtype", "float32", "--forgetting", str(ground / "old"),
             "--forgetting", str(ground / "old-heldout")]  # fmt: skip
    done = CliRunner().invoke(main, [*flags, "--out", str(tmp_path / "a")])
    assert done.exit_code == 0, done.output
    assert done.stderr.count("nats a position), KL ") == 2
    done = CliRunner().invoke(main, [*flags, "--out", str(tmp_path / "b"), "--json"])
    found = json.loads(done.stdout)["forgetting"]
    assert [Path(f["store"]).name for f in found] == ["old", "old-heldout"]
    assert all(f["after"]["nll"] > 0 for f in found)
