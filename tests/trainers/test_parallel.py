"""Runs on several processes, started by torchrun as a user does: the same to the bit as on one."""

import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from softlabels.core.devices import Choice
from softlabels.errors import ConfigError
from softlabels.store.reader import open_store
from tests.fakes import build_tiny, write_corpus
from tests.students import LLAMA
from trainers.data.microbatches import split_batch, widen
from trainers.data.stream import SoftTargetStream
from trainers.loss.losses import DistillLoss
from trainers.run.config import RunConfig
from trainers.run.gradients import GradientTree
from trainers.run.reduce import Ranks
from trainers.run.sharded import is_sharded
from trainers.run.step import Optimisation
from trainers.run.stopping import StopRequest
from trainers.students import make_student

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    build_tiny(
        folder / "store",
        write_corpus(folder / "corpus"),
        temperature=(1.0, 2.0),
        positions="random:0.7",
    )
    build_tiny(folder / "heldout", write_corpus(folder / "other", repeat=1), temperature=(1.0, 2.0))
    dropping = LLAMA | {"attention_dropout": 0.1}
    (folder / "student.json").write_text(json.dumps(dropping))
    return folder


def config_of(ground: Path, **changes) -> dict:
    values = {
        "store": str(ground / "store"),
        "student": f"hf-config:{ground / 'student.json'}",
        "temperature": 2.0,
        "steps": 8,
        "batch_size": 8,
        "accumulate": 8,
        "exact_ranks": True,
        "lr": 1e-2,
        "log_every": 1,
        "checkpoint_every": 3,
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
    }
    return values | changes


def start(processes: int, config: dict, run: Path, **more) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    spec = json.dumps({"config": config, "run": str(run), **more})
    return subprocess.Popen(
        [
            sys.executable,
            *(launcher if processes > 1 else []),
            str(ROOT / "tests/trainers/rank_main.py"),
            spec,
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, *, expect: int = 0) -> str:
    try:
        _, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == expect, errors
    return errors


def losses(run: Path) -> list[tuple[int, float, float]]:
    if not (run / "metrics.jsonl").exists():
        return []
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(r["step"], r["loss"], r["grad_norm"]) for r in records]


def weights(run: Path, name: str = "student") -> dict[str, torch.Tensor]:
    return load_file(run / name / "model.safetensors")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def wait_for(run: Path, steps: int) -> None:
    deadline = time.monotonic() + 120
    while len(losses(run)) < steps and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(losses(run)) >= steps


@pytest.fixture(scope="module")
def whole(ground, tmp_path_factory):
    """A run on one process, without interruption."""
    run = tmp_path_factory.mktemp("whole") / "run"
    more = {"heldout": str(ground / "heldout"), "eval_every": 2}
    finish(start(1, config_of(ground, steps=40, ema=0.9, **more), run))
    return run


@pytest.mark.slow
def test_two_processes_take_the_same_steps_to_the_bit_as_one(ground, whole, tmp_path):
    run = tmp_path / "run"
    more = {"heldout": str(ground / "heldout"), "eval_every": 2}
    finish(start(2, config_of(ground, steps=40, ema=0.9, **more), run))
    assert losses(run) == losses(whole)
    assert len(losses(run)) == 40
    for name in ("student", "student-ema", "best"):
        assert_same(weights(run, name), weights(whole, name))


@pytest.mark.slow
def test_a_run_goes_on_on_another_number_of_processes(ground, whole, tmp_path):
    """1, 2, 4, 2, 1: each leg is stopped by SIGTERM to one process, or to all; then the next goes on."""
    run = tmp_path / "run"
    more = {"heldout": str(ground / "heldout"), "eval_every": 2}
    config = config_of(ground, steps=40, ema=0.9, **more)
    rng = random.Random(0)
    for processes in (1, 2, 4, 2):
        process = start(processes, config, run)
        wait_for(run, len(losses(run)) + rng.randint(2, 5))
        victim = run.with_name(f"{run.name}.pid{processes - 1}")
        if processes == 2:
            os.kill(int(victim.read_text()), signal.SIGTERM)
            finish(process, expect=1)  # torchrun's own code for a process that ended with 130
        else:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=120)
        saved = sorted(p.name for p in (run / "checkpoints").iterdir())
        assert saved[-1] == f"step-{losses(run)[-1][0]:08d}"
    assert 8 <= len(losses(run)) < 40
    finish(start(1, config, run))
    assert losses(run) == losses(whole)
    for name in ("student", "student-ema", "best"):
        assert_same(weights(run, name), weights(whole, name))


@pytest.mark.slow
def test_other_micro_batches_agree_within_rounding(ground, tmp_path):
    """Without --accumulate the matrices differ in size with the ranks, and so does their rounding."""
    config = config_of(ground, steps=4, accumulate=1, exact_ranks=False, lr=1e-3)
    still = tmp_path / "config.json"
    still.write_text(json.dumps(LLAMA))
    config["student"] = f"hf-config:{still}"
    for processes in (1, 2, 4):
        finish(start(processes, config, tmp_path / str(processes)))
    one = losses(tmp_path / "1")
    for processes in (2, 4):
        found = losses(tmp_path / str(processes))
        for (_, a, _), (_, b, _) in zip(one, found, strict=True):
            assert b == pytest.approx(a, rel=1e-6)


@pytest.mark.slow
def test_a_student_dealt_out_over_processes_agrees_and_resumes_elsewhere(ground, tmp_path):
    """FSDP2 on 2 processes for the first steps, then one process goes on from its checkpoint."""
    still = tmp_path / "config.json"
    still.write_text(json.dumps(LLAMA))
    more = {"heldout": str(ground / "heldout"), "eval_every": 2, "ema": 0.9, "lr": 1e-3}
    more |= {"exact_ranks": False, "accumulate": 2, "student": f"hf-config:{still}"}
    config = config_of(ground, steps=9, **more)
    finish(start(1, config, tmp_path / "one"))
    run = tmp_path / "run"
    process = start(2, config | {"parallel": "fsdp", "steps": 9}, run)
    finish(process)
    for (_, a, n), (_, b, m) in zip(losses(tmp_path / "one"), losses(run), strict=True):
        assert (b, m) == pytest.approx((a, n), rel=1e-5)
    for name in ("student", "student-ema", "best"):
        a, b = weights(tmp_path / "one", name), weights(run, name)
        assert a.keys() == b.keys()
        for tensor in a:
            torch.testing.assert_close(b[tensor], a[tensor], rtol=1e-3, atol=1e-4)
    shutil.rmtree(run / "checkpoints" / "step-00000009")
    finish(start(1, config, run))  # from step 6, with the optimiser and averages that fsdp saved
    assert len(losses(run)) == 9
    for (_, a, _), (_, b, _) in zip(losses(tmp_path / "one"), losses(run), strict=True):
        assert b == pytest.approx(a, rel=1e-5)
    shutil.rmtree(run / "checkpoints" / "step-00000009")
    finish(start(2, config | {"parallel": "fsdp"}, run))
    for (_, a, _), (_, b, _) in zip(losses(tmp_path / "one"), losses(run), strict=True):
        assert b == pytest.approx(a, rel=1e-5)


def test_weights_that_were_dealt_out_are_nowhere_whole(tmp_path):
    """In one process that stands for several: what it had of the student before is let go of."""
    (tmp_path / "still.json").write_text(json.dumps(LLAMA))
    student = make_student(f"hf-config:{tmp_path / 'still.json'}", seed=0)
    config = RunConfig(store="store", student="new:1M", steps=1, batch_size=1, parallel="fsdp")

    class Alone(Ranks):
        several = True

    before = [weakref.ref(p) for p in student.parameters()]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        choice = Choice(torch.device("cpu"), torch.float32, "")
        kept = Optimisation(student, choice, Alone(), config)
        gc.collect()
        assert [ref() for ref in before] == [None] * len(before)
        assert all(is_sharded(p) for p in student.parameters())
        del kept
    finally:
        dist.destroy_process_group()


def fifty_steps(ground: Path) -> dict:
    (ground / "still.json").write_text(json.dumps(LLAMA))
    more = {"exact_ranks": False, "accumulate": 4, "lr": 1e-3}
    return config_of(ground, steps=50, student=f"hf-config:{ground / 'still.json'}", **more)


@pytest.fixture(scope="module")
def fifty(ground, tmp_path_factory):
    """The losses of a run on one process."""
    run = tmp_path_factory.mktemp("fifty") / "run"
    finish(start(1, fifty_steps(ground), run))
    return losses(run)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(2, 4), (4, 2)])
def test_fifty_steps_dealt_out_are_those_of_one_process(ground, fifty, tmp_path, first, second):
    """FSDP2 on some processes, stopped, and resumed on another number."""
    run, config = tmp_path / "run", fifty_steps(ground) | {"parallel": "fsdp"}
    process = start(first, config, run)
    wait_for(run, 10)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=240)
    assert 10 <= len(losses(run)) < 50
    finish(start(second, config, run))
    found = losses(run)
    assert [step for step, *_ in found] == list(range(1, 51))
    for (_, a, _), (_, b, _) in zip(fifty, found, strict=True):
        assert b == pytest.approx(a, rel=1e-5)


@pytest.mark.slow
def test_an_evaluation_that_fails_on_the_first_rank_costs_no_step(ground, whole, tmp_path):
    """The second rank saves with it, and the run goes on to the bit: from what is learnt, not from the average."""
    run = tmp_path / "run"
    more = {"heldout": str(ground / "heldout"), "eval_every": 2}
    config = config_of(ground, steps=40, ema=0.9, **more)
    of_step = config["accumulate"] // 2
    fault = {"rank": 0, "call": 2 * of_step + 1, "kind": "crash"}
    errors = finish(start(2, config, run, fault=fault), expect=1)
    assert "MemoryError: no more" in errors
    assert [s for s, *_ in losses(run)] == [1]
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000002"]
    finish(start(2, config, run))
    assert losses(run) == losses(whole)
    for name in ("student", "student-ema", "best"):
        assert_same(weights(run, name), weights(whole, name))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["crash", "nan"])
def test_a_rank_that_fails_names_its_rows(ground, tmp_path, kind):
    run = tmp_path / "run"
    fault = {"rank": 1, "call": 3, "kind": kind}
    config = config_of(ground, accumulate=2, steps=1000)
    errors = finish(start(2, config, run, fault=fault), expect=1)
    stream = SoftTargetStream(ground / "store", batch_size=8, prefetch=0, rank=1, world_size=2)
    rows = list(stream.batch_at(2 * 8).rows)
    what = "MemoryError: no more" if kind == "crash" else "the loss is nan"
    assert f"error: rank 1: step 3, rows {rows}: {what}" in errors
    # The other rank says that its peer is gone, unless torchrun ends it first.
    assert "Traceback" not in errors.split("error: rank 1")[0]
    assert [s for s, *_ in losses(run)] == [1, 2]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 16])
def test_the_tree_adds_in_pairs(count):
    torch.manual_seed(0)
    gradients = torch.randn(count, 100) * 10.0 ** torch.randint(-3, 4, (count, 100))
    parameter = torch.nn.Parameter(torch.zeros(100))

    def grow(indices):
        if len(indices) == 1:
            return gradients[indices[0]]
        half = 2 ** ((len(indices) - 1).bit_length() - 1)
        return grow(indices[:half]) + grow(indices[half:])

    def tree_of(part, complete, branches=True):
        tree = GradientTree([parameter], branches=branches)
        parameter.grad = None
        for i, g in enumerate(part):
            last = i == len(part) - 1
            tree.before(i)
            (parameter * g).sum().backward()
            if last and complete:
                tree.complete(parameter, parameter.grad)
            tree.after(last=last)
        return parameter.grad

    for complete in (False, True):
        assert torch.equal(tree_of(gradients, complete), grow(list(range(count))))
    plain = tree_of(gradients, False, branches=False)
    assert torch.equal(plain, sum(gradients[1:], start=gradients[0]))
    if count >= 8:  # it rounds otherwise, so the order matters here
        assert not torch.equal(plain, grow(list(range(count))))
    if count & (count - 1) == 0 and count > 1:  # two ranks
        halves = [tree_of(part, True).clone() for part in gradients.chunk(2)]
        assert torch.equal(halves[0] + halves[1], grow(list(range(count))))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_each_batch_and_its_shape(ground, world_size):
    store = ground / "store"
    whole = SoftTargetStream(store, batch_size=8, prefetch=0).batch_at(24)
    parts = [
        SoftTargetStream(store, batch_size=8, rank=r, world_size=world_size, prefetch=0)
        for r in range(world_size)
    ]
    assert len({json.dumps(s.state_dict()) for s in parts}) == 1
    found = [s.batch_at(24) for s in parts]
    assert sum((b.rows for b in found), ()) == whole.rows
    totals = DistillLoss(alpha=0.0).count(whole)
    cut = list(split_batch(whole, world_size))
    for mine, expected in zip(found, cut, strict=True):
        wide = widen(mine, totals)
        assert wide.inputs.keys() == expected.inputs.keys()
        for name, tensor in expected.inputs.items():
            assert torch.equal(wide.inputs[name], tensor)
        assert torch.equal(wide.flat_positions, expected.flat_positions)


def test_widening_lays_rows_as_beside_longer_ones(tmp_path):
    """Short documents that share rows, next to a long one: ranks see rows of different widths."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i, text in enumerate(["document 0", "and document 1", "number 2", "x y " * 30]):
        (corpus / f"{i}.txt").write_text(text)
    build_tiny(tmp_path / "store", f"text:{corpus}/*.txt", seq_len=64)
    size = len(open_store(tmp_path / "store"))
    assert size > 1
    whole = SoftTargetStream(tmp_path / "store", batch_size=size, prefetch=0, shuffle=False)
    batch = whole.batch_at(0)
    assert "position_ids" in batch.inputs
    differ = False
    for r, expected in enumerate(split_batch(batch, size)):
        mine = SoftTargetStream(
            tmp_path / "store", batch_size=size, rank=r, world_size=size, prefetch=0, shuffle=False
        ).batch_at(0)
        differ |= mine.inputs["input_ids"].shape != expected.inputs["input_ids"].shape
        wide = widen(mine, DistillLoss(alpha=0.0).count(batch))
        assert torch.equal(wide.inputs["input_ids"], expected.inputs["input_ids"])
        assert torch.equal(wide.inputs["position_ids"], expected.inputs["position_ids"])
        assert torch.equal(wide.flat_positions, expected.flat_positions)
    assert differ


def test_what_processes_cannot_share_is_refused(ground):
    config = RunConfig(**config_of(ground, batch_size=12, accumulate=6))
    assert [config.micro_batches(w) for w in (1, 2, 3, 6, 12)] == [6, 3, 2, 1, 1]
    with pytest.raises(ConfigError, match="--accumulate 6: 4 processes"):
        config.micro_batches(4)
    with pytest.raises(ConfigError, match="--batch-size 12: 5 processes"):
        config.micro_batches(5)
    with pytest.raises(ConfigError, match="must be divisible by the 3 ranks"):
        SoftTargetStream(ground / "store", batch_size=8, world_size=3)
    with pytest.raises(ConfigError, match="cannot share one GPU"):
        Ranks(0, 2, 0).device("cuda:0")


def test_a_patient_stop_request_is_not_interrupted():
    with StopRequest(patient=True) as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert stop.asked
    with StopRequest():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
