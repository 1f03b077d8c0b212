"""Averaged weights, evaluations on held-out rows, and stopping early."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from softlabels.core.progress import Silent
from softlabels.errors import ConfigError, RemoteError, RunError, TokenizerError
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.students import LLAMA, evaluate_run
from trainers.cli import main
from trainers.run.config import RunConfig
from trainers.run.ema import Ema
from trainers.run.setup import train
from trainers.students import make_student


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heldout")
    build_tiny(folder / "store", write_corpus(folder / "corpus"))
    build_tiny(folder / "heldout", write_corpus(folder / "other", repeat=1))
    (folder / "student.json").write_text(json.dumps(LLAMA))
    return folder


def config_of(ground: Path, **changes) -> RunConfig:
    values = {
        "store": str(ground / "store"),
        "student": f"hf-config:{ground / 'student.json'}",
        "heldout": str(ground / "heldout"),
        "steps": 12,
        "batch_size": 4,
        "lr": 1e-2,
        "checkpoint_every": 3,
        "eval_every": 3,
        "dtype": "float32",
    }
    return RunConfig(**(values | changes))


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_held_out_rows_are_measured_and_the_best_student_is_kept(ground, tmp_path):
    run = tmp_path / "run"
    train(config_of(ground), run)
    measured = {r["step"]: r["heldout_nll"] for r in records(run) if "heldout_nll" in r}
    assert sorted(measured) == [3, 6, 9, 12]
    last = evaluate_run(run, ground / "heldout", batch_size=4)
    best = evaluate_run(run, ground / "heldout", batch_size=4, weights="best")
    assert last.nll == pytest.approx(measured[12], rel=1e-6)
    assert best.nll == pytest.approx(min(measured.values()), rel=1e-6)
    with pytest.raises(RunError, match="without --ema"):
        evaluate_run(run, ground / "heldout", weights="ema")


def test_evaluations_do_not_change_the_training(ground, tmp_path):
    train(config_of(ground, log_every=1), tmp_path / "with")
    train(config_of(ground, log_every=1, heldout=None), tmp_path / "without")
    a, b = (records(tmp_path / name) for name in ("with", "without"))
    assert [r["loss"] for r in a] == [r["loss"] for r in b]


def test_a_run_stops_when_it_no_longer_gains_and_stays_stopped(ground, tmp_path):
    run = tmp_path / "run"
    config = config_of(ground, steps=300, lr=1.0, eval_every=1, patience=2, log_every=1)
    train(config, run)
    measured = [r["heldout_nll"] for r in records(run)]
    best = measured.index(min(measured))
    assert len(measured) == best + 3 < 300
    assert all(a > min(measured[:i]) for i, a in enumerate(measured) if i > best)
    newest = sorted(p.name for p in (run / "checkpoints").iterdir())[-1]
    assert newest == f"step-{len(measured):08d}"
    train(config, run, resume=True)
    assert len(records(run)) == len(measured)
    train(replace(config, patience=3), run, resume=True)  # more patience: it goes on
    assert len(records(run)) > len(measured)
    build_tiny(tmp_path / "third", write_corpus(tmp_path / "t", documents=1, repeat=1))
    with pytest.raises(RunError, match="was evaluated on store"):
        train(replace(config, heldout=str(tmp_path / "third")), run, resume=True)


def test_the_count_of_evaluations_survives_an_interruption(ground, tmp_path, monkeypatch):
    config = config_of(ground, steps=40, lr=1.0, eval_every=1, patience=4, log_every=1)
    train(config, tmp_path / "whole")
    whole = records(tmp_path / "whole")
    assert len(whole) < 40
    stop_after = len(whole) - 2  # between the best and the stop

    class Interrupt(Silent):
        def stage(self, name, total, unit, done=0):
            self.done = done

        def advance(self, amount, note=None):
            self.done += 1
            if self.done == stop_after:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut", reporter=Interrupt())
    train(config, tmp_path / "cut", resume=True)
    cut = records(tmp_path / "cut")
    assert [(r["step"], r["heldout_nll"]) for r in cut] == [
        (r["step"], r["heldout_nll"]) for r in whole
    ]


def test_the_average_is_what_its_formula_says(ground):
    student = make_student(f"hf-config:{ground / 'student.json'}", seed=0)
    ema = Ema(student, 0.5)
    name, parameter = next(iter(student.named_parameters()))
    expected = parameter.detach().clone().double()
    for step in range(1, 20):
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter))
        ema.update(step)
        d = min(0.5, step / (step + 9))
        expected = d * expected + (1 - d) * parameter.detach().double()
    torch.testing.assert_close(ema.weights[name].double(), expected, rtol=1e-5, atol=1e-6)
    before, average = parameter.detach().clone(), ema.weights[name].clone()
    with ema.in_place():
        assert torch.equal(parameter, average)
    assert torch.equal(parameter, before)
    assert torch.equal(ema.weights[name], average)


def test_averaged_weights_are_saved_resumed_exported_and_evaluated(ground, tmp_path):
    run, cut = tmp_path / "run", tmp_path / "cut"
    train(config_of(ground, ema=0.9, steps=12), run)
    measured = [r["heldout_nll"] for r in records(run) if "heldout_nll" in r]
    found = evaluate_run(run, ground / "heldout", batch_size=4, weights="ema")
    assert found.nll == pytest.approx(measured[-1], rel=1e-6)
    assert found.nll != evaluate_run(run, ground / "heldout", batch_size=4).nll
    last = sorted((run / "checkpoints").iterdir())[-1]
    names = {p.name for p in last.iterdir()}
    assert names == {
        "model.safetensors",
        "optimizer.safetensors",
        "ema.safetensors",
        "softlabels.json",
        "state.json",
    }  # nothing is pickled
    averaged = load_file(last / "ema.safetensors")
    exported = load_file(run / "student-ema" / "model.safetensors")
    assert all(torch.equal(averaged[f"model.{n}"], t) for n, t in exported.items())

    class Interrupt(Silent):
        def stage(self, name, total, unit, done=0):
            self.done = done

        def advance(self, amount, note=None):
            self.done += 1
            if self.done == 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config_of(ground, ema=0.9, steps=12), cut, reporter=Interrupt())
    train(config_of(ground, ema=0.9, steps=12), cut, resume=True)
    for name in ("student", "student-ema", "best"):
        a, b = (load_file(r / name / "model.safetensors") for r in (run, cut))
        assert all(torch.equal(a[n], b[n]) for n in a)
    (sorted((cut / "checkpoints").iterdir())[-1] / "ema.safetensors").unlink()
    said = []

    class Told(Interrupt):
        def notice(self, message):
            said.append(message)

        def advance(self, amount, note=None):
            pass

    train(config_of(ground, ema=0.9, steps=13), cut, resume=True, reporter=Told())
    assert any("ema.safetensors" in line for line in said), "the checkpoint before was taken"
    told = CliRunner().invoke(
        main,
        ["eval", str(run), "--store", str(ground / "heldout"), "--weights", "ema", "--json"],
    )
    assert json.loads(told.stdout)["weights"] == "ema"
    assert json.loads(told.stdout)["nll"] == pytest.approx(found.nll, rel=1e-5)


def test_what_cannot_be_held_out_is_refused(ground, tmp_path):
    with pytest.raises(ConfigError, match="--patience 3: nothing is evaluated"):
        config_of(ground, heldout=None, patience=3)
    for bad in (0.0, 1.0, -1.0):
        with pytest.raises(ConfigError, match="--ema"):
            config_of(ground, ema=bad)
    with pytest.raises(RunError, match="very store that is trained on"):
        train(config_of(ground, heldout=str(ground / "store")), tmp_path / "a")
    build_tiny(tmp_path / "other", write_corpus(tmp_path / "c"), teacher=TinyTeacher(salt="x"))
    with pytest.raises(TokenizerError, match="--heldout"):
        train(config_of(ground, heldout=str(tmp_path / "other")), tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


# -- an evaluation that fails ---------------------------------------------------------------------


def broken_at(monkeypatch, *steps: int):
    """Evaluations after these steps end as those do whose store cannot be reached."""
    from trainers.run import loop

    before = loop.Loop._scores

    def scores(self, store):
        if self.step in steps:
            raise RemoteError(f"{store.path}: no answer")
        return before(self, store)

    monkeypatch.setattr(loop.Loop, "_scores", scores)


def untimed(run: Path) -> list[dict]:
    timed = {"seconds", "loader_wait", "positions_per_second", "peak_rss_mib", "elapsed"}
    return [{k: v for k, v in r.items() if k not in timed} for r in records(run)]


@pytest.mark.parametrize("failing", [3, 5, 9, 12])
@pytest.mark.parametrize("more", [{}, {"ema": 0.9}, {"lr": 1.0, "patience": 2}])
def test_a_failing_evaluation_costs_no_step(ground, tmp_path, monkeypatch, failing, more):
    """At a step that is saved anyway, at one that is not, and at the last; what goes on is the same to the bit."""
    settings = {"eval_every": 1, "checkpoint_every": 3, "log_every": 1} | more
    config = config_of(ground, **settings)
    train(config, tmp_path / "whole")
    whole = untimed(tmp_path / "whole")
    failing = min(failing, len(whole))  # with patience it stops early
    with monkeypatch.context() as patch:
        broken_at(patch, failing)
        for _ in range(2):  # as often as it fails
            with pytest.raises(RemoteError, match="no answer"):
                train(config, tmp_path / "cut", resume=True)
            assert untimed(tmp_path / "cut") == whole[: failing - 1]
            newest = sorted((tmp_path / "cut" / "checkpoints").iterdir())[-1]
            assert newest.name == f"step-{failing:08d}"
    train(config, tmp_path / "cut", resume=True)
    assert untimed(tmp_path / "cut") == whole
    for name in ("student", "best", *(["student-ema"] if "ema" in more else [])):
        a, b = (load_file(tmp_path / r / name / "model.safetensors") for r in ("whole", "cut"))
        assert all(torch.equal(a[n], b[n]) for n in a)
    said = Notices()
    train(config, tmp_path / "cut", resume=True, reporter=said)
    assert any("nothing is left to do" in line for line in said.lines)


class Notices(Silent):
    def __init__(self):
        self.lines = []

    def notice(self, message):
        self.lines.append(message)


def test_after_a_failed_evaluation_the_held_out_store_may_be_another(ground, tmp_path, monkeypatch):
    """If none was evaluated yet; or it is left out."""
    config, run = config_of(ground, steps=6), tmp_path / "run"
    build_tiny(tmp_path / "third", write_corpus(tmp_path / "t", documents=1, repeat=1))
    with monkeypatch.context() as patch:
        broken_at(patch, 3)
        with pytest.raises(RemoteError):
            train(config, run, reporter=(said := Notices()))
    assert any("the evaluation after step 3 failed; saved after step 3" in s for s in said.lines)
    without = tmp_path / "without"
    shutil.copytree(run, without)
    train(replace(config, heldout=str(tmp_path / "third")), run, resume=True)
    assert [r["step"] for r in records(run) if "heldout_nll" in r] == [3, 6]
    train(replace(config, heldout=None), without, resume=True)
    assert [r["step"] for r in records(without)] == [1, 6]


def test_what_is_not_finite_is_not_saved_before_its_evaluation(ground, tmp_path, monkeypatch):
    config, run = config_of(ground, eval_every=1, checkpoint_every=3, steps=6), tmp_path / "run"
    from trainers.run import loop

    before = loop.Loop._scores

    def scores(self, store):
        found = before(self, store)
        return found if self.step != 5 else msgspec.structs.replace(found, nll=float("nan"))

    monkeypatch.setattr(loop.Loop, "_scores", scores)
    with pytest.raises(RunError, match="step 5: the held-out loss is nan"):
        train(config, run)
    assert sorted(p.name for p in (run / "checkpoints").iterdir())[-1] == "step-00000003"
