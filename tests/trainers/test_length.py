"""How long a run is: --epochs, and a run that is lengthened."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from softlabels.errors import ConfigError, RunError
from softlabels.store.reader import open_store
from tests.fakes import Notices, build_tiny, write_corpus
from trainers.data.mixing import open_stores
from trainers.run.config import RunConfig
from trainers.run.length import Length, in_steps
from trainers.run.setup import train

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("length")
    build_tiny(folder / "store", write_corpus(folder / "corpus", documents=2, repeat=2))
    build_tiny(folder / "small", write_corpus(folder / "other", documents=1, repeat=1))
    return folder


def config_of(ground: Path, **changes) -> RunConfig:
    values = {"store": str(ground / "store"), "student": "new:300k", "batch_size": 2, "lr": 1e-2}
    values |= {"steps": 6, "log_every": 1, "checkpoint_every": 3, "dtype": "float32", "threads": 1}
    return RunConfig(**(values | changes))


class Told(Notices):
    @property
    def change(self) -> str:
        (line,) = (n for n in self.lines if n.startswith(("lengthened", "shortened")))
        return line


def rates(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["lr"] for line in lines]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student/model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[n], b[n]) for n in a)


@pytest.fixture(scope="module")
def finished(ground, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    train(config_of(ground), run)
    return run


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


# -- lengthened -----------------------------------------------------------------------------------


def test_a_finished_run_goes_on_to_a_later_end(ground, run):
    longer, told, before = config_of(ground, steps=12), Told(), weights(run)
    train(longer, run, resume=True, reporter=told)
    assert not same(weights(run), before)
    at_once = [replace(longer, warmup=1).learning_rate(s) for s in range(12)]
    short = [config_of(ground).learning_rate(s) for s in range(6)]
    assert rates(run) == pytest.approx(short + at_once[6:])
    assert told.change == (
        "lengthened from 6 to 12 steps, after 6: warm-up ends at step 1 as before, the schedules now end at step "
        f"12; the learning rate goes from {short[5]:.3g} to {at_once[6]:.3g}"
    )
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert facts["config"]["steps"] == 12
    assert facts["length"] == {"warmup": 1, "changes": [{"after": 6, "from": 6, "to": 12}]}


def test_an_interrupted_run_goes_on_to_a_later_end(ground, run):
    shutil.rmtree(run / "checkpoints/step-00000006")
    told = Told()
    train(config_of(ground, steps=9), run, resume=True, reporter=told)
    assert told.change.startswith("lengthened from 6 to 9 steps, after 3: ")
    assert len(rates(run)) == 9


def test_a_lengthened_run_that_is_interrupted_goes_on_to_the_bit(ground, run, tmp_path):
    longer = config_of(ground, steps=12)
    again = Path(shutil.copytree(run, tmp_path / "again"))
    train(longer, run, resume=True)
    train(longer, again, resume=True)
    shutil.rmtree(again / "checkpoints/step-00000012")
    told = Told()
    train(longer, again, resume=True, reporter=told)
    assert not [n for n in told.lines if n.startswith("lengthened")], "it is no longer news"
    assert same(weights(run), weights(again))
    assert rates(run) == rates(again)


def test_a_run_is_not_shortened_below_what_it_has_taken(ground, run):
    before = (run / "run.json").read_bytes()
    with pytest.raises(RunError) as error:
        train(config_of(ground, steps=5), run, resume=True)
    assert str(error.value) == (
        f"{run}: has taken 6 steps already, and --steps 5 is less; resume it with --steps 6 or more, or choose "
        "another --out"
    )
    assert (run / "run.json").read_bytes() == before
    shutil.rmtree(run / "checkpoints/step-00000006")
    told = Told()
    train(config_of(ground, steps=4), run, resume=True, reporter=told)
    assert told.change.startswith("shortened from 6 to 4 steps, after 3: ")
    assert len(rates(run)) == 4


def test_warm_up_stays_as_it_was_at_the_beginning(ground):
    short = config_of(ground, steps=100)
    recorded = {"config": asdict(short)}  # of a run older than the record of its length
    longer = Length.of(replace(short, steps=1000), recorded)
    assert (longer.before, longer.steps, longer.warmup) == (100, 1000, 5)
    recorded = {"config": asdict(replace(short, steps=1000)), "length": longer.to_dict()}
    assert Length.of(replace(short, steps=5000), recorded).warmup == 5
    given = {"config": asdict(replace(short, warmup=7))}
    assert Length.of(replace(short, steps=1000, warmup=7), given).warmup == 7


# -- epochs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "steps_of"), [(1, 1.0), (2.0, 2.0), (0.5, 0.5), (1e-6, 0.0)])
def test_epochs_are_steps_rounded_up(ground, epochs, steps_of):
    rows = len(open_store(ground / "store"))
    config = config_of(ground, steps=RunConfig.steps, epochs=epochs)
    found, line = in_steps(config, open_stores(config.store))
    assert found.epochs is None
    assert found.steps == max(1, -(-int(rows * steps_of) // 2))
    assert line == f"--epochs {epochs:g}: {found.steps} steps of 2 rows, {rows} rows an epoch"


def test_epochs_of_a_mixture_are_of_the_store_that_is_gone_through_most_often(ground):
    a, b = (len(open_store(ground / n)) for n in ("store", "small"))
    assert a > b
    mixed = (f"{ground / 'store'}=0.5", f"{ground / 'small'}=0.5")
    config = config_of(ground, store=mixed, steps=RunConfig.steps, epochs=3)
    found, _ = in_steps(config, open_stores(config.store))
    assert found.steps == -(-3 * 2 * b // 2)


def test_a_run_of_epochs_ends_there_and_more_epochs_lengthen_it(ground, tmp_path):
    config = config_of(ground, steps=RunConfig.steps, epochs=0.25)
    told = Told()
    train(config, tmp_path / "run", reporter=told)
    assert any(n.startswith("--epochs 0.25: ") for n in told.lines)
    taken = len(rates(tmp_path / "run"))
    assert taken == in_steps(config, open_stores(config.store))[0].steps
    train(config, tmp_path / "run", resume=True)
    train(replace(config, epochs=0.5), tmp_path / "run", resume=True)
    assert len(rates(tmp_path / "run")) > taken


def test_steps_and_epochs_are_one_thing(tmp_path):
    flags = {"store": "s", "student": "hf:x"}
    with pytest.raises(ConfigError, match=r"^--steps and --epochs say the same in two ways"):
        RunConfig.from_sources(None, flags | {"steps": 1000, "epochs": 2.0})
    with pytest.raises(ConfigError, match=r"^--steps and --epochs say the same in two ways"):
        RunConfig(**flags, steps=5, epochs=2.0)
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"^--epochs .*: expected a number above 0"):
            RunConfig(**flags, epochs=value)
    (tmp_path / "c.toml").write_text("steps = 5\n", encoding="utf-8")
    config = RunConfig.from_sources(tmp_path / "c.toml", flags | {"epochs": 2.0})
    assert (config.epochs, config.steps) == (2.0, RunConfig.steps), "a flag wins over the file"
