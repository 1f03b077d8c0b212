"""torchtitan's own trainer on a store, on CPU processes with gloo: `.ci/elsewhere torchtitan`."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from softlabels.errors import ConfigError, PairingError, StoreError
from tests.elsewhere.recipes import LOGGED, RECIPES
from tests.integrations_ground import lay, own_losses, write_ground
from trainers import DistillLoss, SoftTargetStream, distil_loss

pytest.importorskip("torchtitan", reason=".ci/elsewhere torchtitan")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
RECIPE = RECIPES["torchtitan"]
ROWS = RECIPE.number(RECIPE.rows)
STEPS = 6
TAGS = {"loss": "loss_metrics/global_avg_loss", "norm": "grad_norm"} | {
    name: f"distil/{name}" for name in LOGGED[1:]
}
WHOLE = ("--checkpoint.no-last-save-in-hf", "--checkpoint.no-last-save-model-only")
"""The last checkpoint is one to go on from."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return write_ground(tmp_path_factory.mktemp("torchtitan"))


@pytest.fixture(scope="module")
def trained(ground, tmp_path_factory):
    """What two processes did, and their log."""
    folder = tmp_path_factory.mktemp("two")
    return folder, run(ground, folder, processes=2, steps=STEPS)


def run(
    ground: Path, folder: Path, *, processes: int, steps: int, more: Sequence[str] = ()
) -> list[dict[str, float]]:
    """The page's command, on the CPU and a tiny student, in float32; what it logged at each step."""
    done = start(ground, folder, processes=processes, steps=steps, more=more)
    assert done.returncode == 0, done.stdout[-6000:]
    return logged(folder / "outputs" / f"log-{processes}", steps)


def start(ground, folder, *, processes, steps, more=()):
    RECIPE.write(folder)
    if not (folder / "store").exists():
        lay(ground, folder)
    changes = {
        "--nproc-per-node 8": f"--nproc-per-node {processes}",
        "-m torchtitan.train": "-m tests.elsewhere.titan_on_cpu",
    }
    line = RECIPE.command
    for before, after in changes.items():
        assert line.count(before) == 1
        line = line.replace(before, after)
    options = {
        "training.mixed-precision-param": "float32",
        "training.steps": steps,
        "lr-scheduler.warmup-steps": 1,
        "lr-scheduler.total-steps": STEPS,
        "metrics.log-freq": 1,
        "metrics.save-tb-folder": f"log-{processes}",
    }
    flags = (f"--{name} {value}" for name, value in options.items())
    return RECIPE.run(folder, " ".join([line, *flags, "--metrics.enable-tensorboard", *more]))


def logged(folder: Path, steps: int) -> list[dict[str, float]]:
    """Each step that is in the log of a run, with all digits."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (one,) = folder.iterdir()
    events = EventAccumulator(str(one))
    events.Reload()
    columns = {name: {e.step: e.value for e in events.Scalars(t)} for name, t in TAGS.items()}
    found = [{"step": s} | {n: c[s] for n, c in columns.items()} for s in sorted(columns["loss"])]
    assert found[-1]["step"] == steps
    return found


def first_batch(ground):
    return SoftTargetStream(ground / "store", batch_size=ROWS, seed=RECIPE.seed).batch_at(0)


def student(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_two_processes_train_as_a_loop_of_ones_own(ground, trained):
    """The first loss, all of its parts and the norm of its gradient; and what was learnt lowers it."""
    folder, log = trained
    assert len(log) == STEPS
    for line in log:
        assert all(math.isfinite(line[n]) for n in LOGGED), line
    (own,) = own_losses(ground, rows=ROWS, steps=1, seed=RECIPE.seed)
    print(f"torchtitan: first loss {log[0]['loss']:.7f}, of a loop of one's own {own.loss:.7f}")
    assert log[0]["loss"] == pytest.approx(own.loss.item(), abs=1e-5)
    batch, loss, model = first_batch(ground), DistillLoss(alpha=0.9), student(ground / "student")
    expected = distil_loss(model, batch, loss)
    for name, value in expected.means(loss.count(batch)).items():
        if name in LOGGED:
            assert log[0][name] == pytest.approx(value, abs=1e-5), name
    expected.loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert log[0]["norm"] == pytest.approx(norm.item(), rel=1e-5)
    learnt = student(ground / "student")
    learnt.load_state_dict(saved(folder))
    with torch.no_grad():
        after = distil_loss(learnt, batch, loss).loss.item()
    print(f"after {STEPS} steps, on the same rows: {after:.4f}")
    assert after < own.loss.item() - 0.01


def saved(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = (folder / "outputs" / "checkpoint" / f"step-{STEPS}").glob("*.safetensors")
    return load_file(file)


def test_a_checkpoint_of_two_processes_goes_on_on_one(ground, trained, tmp_path):
    """The same rows, losses and gradients as if nothing had happened."""
    _, whole = trained
    run(ground, tmp_path, processes=2, steps=3, more=WHOLE)
    rest = run(ground, tmp_path, processes=1, steps=STEPS)
    assert [line["step"] for line in rest] == [4, 5, 6]
    for line, expected in zip(rest, whole[3:], strict=True):
        assert line == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dataloader.vocab", "trim:400"], "its head has 416 ids, store has 400; use a student"),
        (["--training.seq-len", "16"], "training.seq_len 16: rows of store have up to 32 tokens"),
        (["--validator.enable"], "validator.enable True: it reads no store"),
    ],
)
def test_what_does_not_fit_stops_before_the_first_step(ground, tmp_path, more, message):
    done = start(ground, tmp_path, processes=1, steps=1, more=more)
    assert done.returncode != 0
    assert message in done.stdout
    assert "step:  1" not in done.stdout


def config(folder: Path):
    RECIPE.write(folder)
    spec = importlib.util.spec_from_file_location("distil_8b", folder / "distil_8b.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.student()


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("parallelism", "tensor_parallel_degree", 2),
        ("parallelism", "context_parallel_degree", 2),
        ("parallelism", "pipeline_parallel_degree", 2),
        ("parallelism", "expert_parallel_degree", 2),
        ("parallelism", "spmd_backend", "spmd_types"),
        ("training", "disable_cuda_graphs", False),
    ],
)
def test_a_setting_that_is_not_served_is_refused(tmp_path, part, name, value):
    from trainers.integrations.torchtitan import check_config

    page = config(tmp_path)
    check_config(page)
    setattr(getattr(page, part), name, value)
    with pytest.raises(ConfigError, match=re.escape(f"{part}.{name} {value}: ")):
        check_config(page)


def test_a_store_is_refused_before_a_model_is_made(ground, tmp_path, monkeypatch):
    from torchtitan.trainer import Trainer

    from trainers.integrations.torchtitan import SoftTargetTrainer

    def made(*_):
        raise AssertionError("a model was made")

    monkeypatch.setattr(Trainer, "__init__", made)
    page = config(tmp_path)
    there = replace(page.dataloader, dataset_path=str(ground / "store"))
    short = replace(page, dataloader=there, training=replace(page.training, seq_len=16))
    with pytest.raises(PairingError, match=r"training\.seq_len 16: rows of .* up to 32 tokens"):
        SoftTargetTrainer(short)
    for path, error in ((tmp_path / "nothing", StoreError), ("", ConfigError)):
        given = replace(page.dataloader, dataset_path=str(path) if path else None)
        with pytest.raises(error):
            SoftTargetTrainer(replace(page, dataloader=given))


@pytest.mark.parametrize("part", ["dataloader", "loss"])
def test_torchtitans_own_loader_or_loss_is_refused(tmp_path, part):
    from torchtitan.components.dataloader import BaseDataLoader
    from torchtitan.components.loss import CrossEntropyLoss

    from trainers.integrations.torchtitan import check_config

    own = {"dataloader": BaseDataLoader.Config(), "loss": CrossEntropyLoss.Config()}
    with pytest.raises(ConfigError, match=f"{part}: expected SoftTarget"):
        check_config(replace(config(tmp_path), **{part: own[part]}))


def test_the_loader_gives_each_process_its_rows_in_micro_batches(ground):
    from trainers.integrations.torchtitan import SoftTargetLoader

    def loader(rank):
        how = SoftTargetLoader.Config(dataset_path=str(ground / "store"), batch_size=8)
        return SoftTargetLoader(how, dp_world_size=2, dp_rank=rank, local_batch_size=2)

    loaders = [loader(0), loader(1)]
    micro = [list(islice(one, 4)) for one in loaders]
    stream = SoftTargetStream(ground / "store", batch_size=8)
    for step in range(2):
        rows = [r for parts in micro for g, _ in parts[2 * step :][:2] for r in g["batch"].rows]
        assert tuple(rows) == stream.batch_at(8 * step).rows
    for given, labels in micro[0]:
        batch = given["batch"]
        assert given["input"].shape == given["positions"].shape == labels.shape
        assert (labels.flatten()[batch.flat_positions] == batch.labels).all()
        assert int((labels != -100).sum()) == batch.positions
    assert loaders[0].state_dict() == loaders[1].state_dict()
    later = loader(1)
    later.load_state_dict(loaders[0].state_dict())
    given, _ = next(iter(later))
    assert given["batch"].rows == stream.batch_at(16).rows[4:6]
    with pytest.raises(ConfigError, match="dataset_path is not set"):
        SoftTargetLoader(SoftTargetLoader.Config(), dp_world_size=1, dp_rank=0, local_batch_size=1)


def test_the_loss_says_that_it_has_no_batch():
    from trainers.integrations.torchtitan import SoftTargetLoss

    with pytest.raises(ConfigError, match="called without a batch of a store"):
        SoftTargetLoss(SoftTargetLoss.Config())(torch.zeros(1, 1, 1), torch.zeros(1, 1))
