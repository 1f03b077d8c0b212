"""Training with the real Lightning, compared with our own loop on the same rows."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from softlabels.errors import ConfigError, PairingError, RunError, TokenizerError
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.students import llama
from trainers.data.stream import SoftTargetStream
from trainers.loss.losses import DistillLoss
from trainers.students import make_student

pytest.importorskip("transformers", reason="needs the extra hf")


@pytest.mark.slow
def test_a_missing_library_names_the_extra():
    code = """
import sys
sys.modules["lightning"] = None
from softlabels.errors import MissingExtraError
try:
    import trainers.integrations.lightning
except MissingExtraError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "[lightning]'" in done.stdout


try:
    import lightning
except ImportError:
    lightning = None
else:
    from trainers.integrations.lightning import DistillData, DistillModule

real = [
    pytest.mark.skipif(lightning is None, reason="needs the extra lightning"),
    # Lightning's advice, and what it calls in torch
    pytest.mark.filterwarnings("ignore::UserWarning:lightning.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.*"),
]


def with_lightning(test):
    for mark in real:
        test = mark(test)
    return test


LOSS = DistillLoss(temperature=2.0, alpha=0.7)
LLAMA = llama(layers=2, width=16)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A store in which rows hold several documents and only some positions are soft."""
    folder = tmp_path_factory.mktemp("lightning")
    (folder / "corpus").mkdir()
    corpus = write_corpus(folder / "corpus", documents=2, repeat=1)
    for i in range(60):
        (folder / "corpus" / f"short{i}.txt").write_text("A document. "[: 3 + i % 9] * 4)
    build_tiny(folder / "store", corpus, temperature=(1.0, 2.0), positions="entropy:0.5")
    (folder / "student.json").write_text(json.dumps(LLAMA))
    return folder


def student_of(ground):
    return make_student(f"hf-config:{ground / 'student.json'}", seed=0)


def stream_of(ground, prefetch=2, **changes):
    values = {"batch_size": 4, "seed": 3, "block_shards": 2, "prefetch": prefetch}
    return SoftTargetStream(ground / "store", **(values | changes))


def reference(ground, loss=LOSS):
    """Loss and gradients of the first step as `softtrain run` makes them."""
    batch = stream_of(ground).batch_at(0)
    assert "position_ids" in batch.inputs
    assert 0 < batch.soft_positions < batch.positions
    student = student_of(ground).train()
    out = loss(student.hidden(batch), student.head(), batch)
    out.loss.backward()
    return out.loss.item(), {n: p.grad for n, p in student.named_parameters()}


def assert_same(found, expected, rtol):
    assert set(found) == set(expected)
    for name, value in expected.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=rtol * scale, msg=name)


def watched_module(ground, loss=LOSS, **adamw):
    """A module that keeps what each step did."""

    class Watched(DistillModule):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.seen, self.losses, self.gradients = [], [], []

        def training_step(self, part, batch_idx):
            value = super().training_step(part, batch_idx)
            self.seen.append(part.batch.rows)
            self.losses.append(value.item())
            return value

        def on_before_optimizer_step(self, optimizer):
            self.gradients.append({n: p.grad.clone() for n, p in self.student.named_parameters()})

    return Watched(student_of(ground), loss, **({"lr": 1e-2} | adamw))


def fit(ground, module, *, stream=None, ckpt_path=None, **changes):
    values = {
        "max_steps": 3,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(**(values | changes))
    data = DistillData(stream or stream_of(ground))
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


@with_lightning
def test_training_learns(ground):
    module = watched_module(ground)
    trainer = fit(ground, module, max_steps=40)
    assert len(module.losses) == 40
    assert np.mean(module.losses[-5:]) < 0.8 * module.losses[0]
    assert trainer.callback_metrics["train_loss"].item() == pytest.approx(module.losses[-1])


@with_lightning
@pytest.mark.parametrize("loss", [LOSS, replace(LOSS, alpha=0.0), replace(LOSS, alpha=1.0)])
def test_the_first_step_is_our_own_loops(ground, loss):
    value, gradients = reference(ground, loss)
    module = watched_module(ground, loss)
    fit(ground, module, max_steps=1)
    assert module.losses == [pytest.approx(value, rel=1e-6)]
    assert_same(module.gradients[0], gradients, 1e-6)


@with_lightning
def test_accumulation_equals_one_batch(ground):
    one, four = watched_module(ground), watched_module(ground)
    fit(ground, one)
    fit(ground, four, accumulate_grad_batches=4)
    assert len(four.losses) == 12
    np.testing.assert_allclose(np.reshape(four.losses, (3, 4)).mean(1), one.losses, rtol=1e-5)
    assert_same(four.gradients[0], one.gradients[0], 1e-5)
    assert np.concatenate(four.seen).tolist() == np.concatenate(one.seen).tolist()


@with_lightning
@pytest.mark.parametrize(("accumulate", "prefetch"), [(1, 0), (1, 2), (2, 2)])
def test_a_resumed_run_goes_on_exactly(ground, tmp_path, accumulate, prefetch):
    """Lightning fetches ahead of the step it trains; the checkpoint must not count that."""
    changes = {"max_steps": 9, "accumulate_grad_batches": accumulate}

    def stream():
        return stream_of(ground, prefetch)

    whole = watched_module(ground)
    fit(ground, whole, stream=stream(), **changes)
    saver = lightning.pytorch.callbacks.ModelCheckpoint(
        dirpath=tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}"
    )
    first = watched_module(ground)
    fit(
        ground,
        first,
        stream=stream(),
        **(changes | {"max_steps": 5}),
        callbacks=[saver],
        enable_checkpointing=True,
    )
    second = watched_module(ground)
    fit(ground, second, stream=stream(), ckpt_path=tmp_path / "step=4.ckpt", **changes)
    done = 4 * accumulate
    assert second.seen == whole.seen[done:]
    assert second.losses == whole.losses[done:]
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RunError, match="seed"):
        fit(
            ground,
            watched_module(ground),
            stream=stream_of(ground, seed=4),
            ckpt_path=tmp_path / "step=4.ckpt",
            **changes,
        )


WORKER = """
import sys
from pathlib import Path
import torch
from tests.trainers.test_lightning import fit, watched_module
ground, out = Path(sys.argv[1]), Path(sys.argv[2])
module = watched_module(ground)
trainer = fit(ground, module, max_steps=2, devices=2, strategy="ddp", accumulate_grad_batches=2)
found = {"rows": module.seen, "gradients": module.gradients}
torch.save(found, out / f"{trainer.global_rank}.pt")
"""


@pytest.mark.slow
@with_lightning
def test_two_processes_equal_one(ground, tmp_path):
    """DDP over gloo: the same steps as one process with the whole batch, two micro-batches in each."""
    one = watched_module(ground)
    fit(ground, one, max_steps=2)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    (tmp_path / "worker.py").write_text(WORKER)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*launch, str(tmp_path / "worker.py"), str(ground), str(tmp_path)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    a, b = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    order = [r for pair in zip(a["rows"], b["rows"], strict=True) for rows in pair for r in rows]
    assert order == np.concatenate(one.seen).tolist()
    for mine in (a, b):
        assert_same(mine["gradients"][0], one.gradients[0], 1e-5)


@with_lightning
def test_epochs_of_limited_length_leave_out_nothing(ground):
    whole, limited = watched_module(ground), watched_module(ground)
    fit(ground, whole, max_steps=9)
    fit(ground, limited, max_steps=-1, max_epochs=3, limit_train_batches=3)
    assert limited.seen == whole.seen
    assert limited.losses == whole.losses


@with_lightning
def test_bfloat16_reaches_the_head(ground):
    module = watched_module(ground)
    fit(ground, module, max_steps=1, precision="bf16-mixed")
    assert module.student.head().compute_dtype == torch.bfloat16
    assert module.losses[0] == pytest.approx(reference(ground)[0], rel=2e-2)


@with_lightning
def test_what_does_not_fit_is_refused_before_training(ground, tmp_path):
    with pytest.raises(PairingError, match="grid"):
        fit(ground, watched_module(ground, DistillLoss(temperature=3.0)))
    (tmp_path / "small.json").write_text(json.dumps(LLAMA | {"vocab_size": 299}))
    small = make_student(f"hf-config:{tmp_path / 'small.json'}", seed=0)
    with pytest.raises(PairingError, match="299 ids, the store's 300"):
        fit(ground, DistillModule(small, LOSS))
    with pytest.raises(ConfigError, match="max_steps"):
        fit(ground, watched_module(ground), max_steps=-1, max_epochs=1)
    with pytest.raises(ConfigError, match="cuts a step"):
        fit(ground, watched_module(ground), limit_train_batches=3, accumulate_grad_batches=2)
    with pytest.raises(ConfigError, match="multiple of 3"):
        fit(ground, watched_module(ground), accumulate_grad_batches=3)


@with_lightning
def test_another_tokenizer_is_refused(ground, tmp_path):
    build_tiny(
        tmp_path / "other",
        write_corpus(tmp_path / "c", repeat=1),
        teacher=TinyTeacher(salt="x"),
        temperature=(1.0, 2.0),
    )
    student_of(ground).save(tmp_path / "student")
    files = TinyTeacher().tokenizer.files()
    (tmp_path / "student" / "tokenizer.json").write_bytes(files["tokenizer.json"])
    module = DistillModule(make_student(f"hf:{tmp_path / 'student'}", seed=0), LOSS)
    with pytest.raises(TokenizerError, match="another token"):
        fit(ground, module, stream=SoftTargetStream(tmp_path / "other", batch_size=4))


@with_lightning
def test_a_stores_path_gives_the_rows_in_the_order_of_runs(ground):
    data = DistillData(ground / "store", batch_size=4, seed=3)
    expected = stream_of(ground, order="corpus", block_shards=8, lanes=4).batch_at(0).rows
    assert data.stream.batch_at(0).rows == expected
    with pytest.raises(ConfigError, match="the stream is open already"):
        DistillData(stream_of(ground), batch_size=4)
