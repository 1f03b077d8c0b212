"""Training with the real `transformers.Trainer`, compared with our own loop on the same rows."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from softlabels.errors import ConfigError, PairingError, TokenizerError
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.students import llama
from trainers.data.arrangement import Arrangement, orders_of
from trainers.data.microbatches import split_batch
from trainers.data.stream import SoftTargetStream
from trainers.loss.losses import DistillLoss
from trainers.students import Student, make_student

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
from trainers.integrations.transformers import (  # noqa: E402
    DistillMixin,
    StoreRows,
    collate_rows,
)

LOSS = DistillLoss(temperature=2.0, alpha=0.7)
LLAMA = llama(layers=2, width=16)


class DistillTrainer(DistillMixin, transformers.Trainer):
    """As users write it; keeps the gradient of each step."""

    gradients: list[dict[str, torch.Tensor]]

    def create_optimizer(self, *args, **kwargs):
        made = super().create_optimizer(*args, **kwargs)
        self.gradients = []
        self.optimizer.register_step_pre_hook(
            lambda *_: self.gradients.append(
                {n: p.grad.clone() for n, p in self.model.named_parameters()}
            )
        )
        return made


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A store in which rows hold several documents and only some positions are soft."""
    folder = tmp_path_factory.mktemp("transformers")
    (folder / "corpus").mkdir()
    corpus = write_corpus(folder / "corpus", documents=2, repeat=1)
    for i in range(60):
        (folder / "corpus" / f"short{i}.txt").write_text("A document. "[: 3 + i % 9] * 4)
    build_tiny(folder / "store", corpus, temperature=(1.0, 2.0), positions="entropy:0.5")
    (folder / "student.json").write_text(json.dumps(LLAMA))
    return folder


def student_of(ground, seed=0) -> Student:
    return make_student(f"hf-config:{ground / 'student.json'}", seed=seed)


def arguments(folder: Path, **changes):
    values = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return transformers.TrainingArguments(**(values | changes))


def trainer_of(ground, folder, *, loss=LOSS, **changes):
    rows = StoreRows(ground / "store", seed=3, block_shards=2)
    args = arguments(folder, **changes)
    return DistillTrainer(student_of(ground).model, args, train_dataset=rows, distill=loss)


def losses(trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def reference(ground, batch, loss=LOSS):
    """Loss and gradients as `softtrain run` makes them."""
    student = student_of(ground).train()
    out = loss(student.hidden(batch), student.head(), batch)
    out.loss.backward()
    return out.loss.item(), {n: p.grad for n, p in student.model.named_parameters()}


def stream_of(ground, batch_size):
    return SoftTargetStream(
        ground / "store",
        batch_size=batch_size,
        seed=3,
        block_shards=2,
        prefetch=0,
    )


def assert_same(found, expected, rtol):
    assert set(found) == set(expected)
    for name, value in expected.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=rtol * scale, msg=name)


def test_training_learns_on_the_streams_rows(ground, tmp_path):
    trainer = trainer_of(ground, tmp_path, max_steps=40)
    trainer.train()
    found = losses(trainer)
    assert len(found) == 40
    assert np.mean(found[-5:]) < 0.8 * found[0]


@pytest.mark.parametrize("loss", [LOSS, replace(LOSS, alpha=0.0), replace(LOSS, alpha=1.0)])
def test_the_first_step_is_our_own_loops(ground, tmp_path, loss):
    batch = stream_of(ground, 4).batch_at(0)
    assert "position_ids" in batch.inputs
    assert 0 < batch.soft_positions < batch.positions
    value, gradients = reference(ground, batch, loss)
    trainer = trainer_of(ground, tmp_path, loss=loss, max_steps=1)
    trainer.train()
    assert losses(trainer) == [pytest.approx(value, rel=1e-6)]
    assert_same(trainer.gradients[0], gradients, 1e-6)


def test_accumulation_equals_one_batch(ground, tmp_path):
    """Micro-batches have unequal shares of positions and soft positions: the mean of their means would be another."""
    batch = stream_of(ground, 4).batch_at(0)
    parts = list(split_batch(batch, 4))
    assert len({(p.positions, p.soft_positions) for p in parts}) > 1
    one, four = (
        trainer_of(
            ground, tmp_path, per_device_train_batch_size=b, gradient_accumulation_steps=4 // b
        )
        for b in (4, 1)
    )
    one.train()
    four.train()
    np.testing.assert_allclose(losses(four), losses(one), rtol=1e-5)
    assert_same(four.gradients[0], one.gradients[0], 1e-5)


def test_steps_and_epochs_go_on_where_the_stream_does(ground, tmp_path, monkeypatch):
    """The stream's batches over two epochs, from workers that persist, too; a resumed run has the rest."""
    rows = len(StoreRows(ground / "store"))
    size = next(b for b in (7, 6, 5, 4, 3) if rows % b == 0 or b == 3)
    steps = 2 * -(-rows // size)
    stream = stream_of(ground, size)
    (cut,) = orders_of(
        [stream.store],
        3,
        Arrangement.chosen(None, None, size),
        block_shards=2,
        shuffle=True,
    )
    order = tuple(cut.take(size, 0, 2 * rows))
    expected = [
        order[e + i : min(e + i + size, e + rows)] for e in (0, rows) for i in range(0, rows, size)
    ]
    assert stream.batch_at(0).rows == expected[0]

    def seen(**changes):
        found = []
        trainer = trainer_of(
            ground, tmp_path, per_device_train_batch_size=size, **{"max_steps": steps, **changes}
        )
        compute = trainer.compute_loss

        def watch(model, inputs, *args, **kwargs):
            found.append(inputs["batch"].rows)
            return compute(model, inputs, *args, **kwargs)

        monkeypatch.setattr(trainer, "compute_loss", watch)
        return trainer, found

    trainer, found = seen(save_strategy="steps", save_steps=steps // 2 + 3)
    trainer.train()
    assert found == expected
    whole = losses(trainer)
    trainer, found = seen(dataloader_num_workers=2, dataloader_persistent_workers=True)
    trainer.train()
    assert found == expected
    trainer, found = seen()
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{steps // 2 + 3}"))
    assert found == expected[steps // 2 + 3 :]
    assert losses(trainer) == whole


def test_no_logits_of_positions_times_vocabulary(ground, tmp_path):
    trainer = trainer_of(ground, tmp_path)
    inputs = collate_rows([trainer.train_dataset[i] for i in range(4)])
    _, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
    assert outputs.logits.shape == (4, 0, 300)
    assert not trainer.model.get_output_embeddings()._forward_pre_hooks  # taken away again


def test_evaluation_is_the_loss_of_the_held_out_rows(ground, tmp_path):
    rows = StoreRows(ground / "store", shuffle=False)
    trainer = trainer_of(ground, tmp_path, per_device_eval_batch_size=len(rows))
    student = Student(trainer.model).eval()
    batch = SoftTargetStream(ground / "store", batch_size=len(rows), shuffle=False).batch_at(0)
    with torch.no_grad():
        expected = LOSS(student.hidden(batch), student.head(), batch).loss.item()
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(expected, rel=1e-6)


def test_bfloat16_reaches_body_and_head(ground, tmp_path):
    trainer = trainer_of(ground, tmp_path, bf16=True, max_steps=1)
    trainer.train()
    batch = stream_of(ground, 4).batch_at(0)
    student = student_of(ground).train()
    student.head_dtype = torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = student.hidden(batch)
    LOSS(hidden, student.head(), batch).loss.backward()
    gradients = {n: p.grad for n, p in student.model.named_parameters()}
    assert_same(trainer.gradients[0], gradients, 1e-6)


def test_a_micro_batch_without_positions_gives_no_gradient(ground, tmp_path):
    trainer = trainer_of(ground, tmp_path)
    batch = stream_of(ground, 1).batch_at(0)
    none = replace(
        batch,
        flat_positions=batch.flat_positions[:0],
        labels=batch.labels[:0],
        targets=batch.targets[:0],
    )
    loss = trainer.compute_loss(trainer.model, {**batch.inputs, "batch": none})
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())


WORKER = """
import sys, warnings
from pathlib import Path
import torch
from tests.trainers.test_transformers import losses, trainer_of
ground, out = Path(sys.argv[1]), Path(sys.argv[2])
trainer = trainer_of(ground, out, per_device_train_batch_size=1, gradient_accumulation_steps=2,
                     max_steps=2, ddp_backend="gloo")
rows, compute = [], trainer.compute_loss
def watch(model, inputs, *args, **kwargs):
    rows.append(inputs["batch"].rows)
    return compute(model, inputs, *args, **kwargs)
trainer.compute_loss = watch
trainer.train()
found = {"rows": rows, "losses": losses(trainer), "gradients": trainer.gradients}
torch.save(found, out / f"{trainer.args.process_index}.pt")
"""


@pytest.mark.slow
def test_two_processes_equal_one(ground, tmp_path):
    """DDP over gloo: the same steps as one process with the whole batch, two micro-batches in each."""
    one = trainer_of(ground, tmp_path, per_device_train_batch_size=4, max_steps=2)
    one.train()
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
    stream = stream_of(ground, 4)
    order = stream.batch_at(0).rows + stream.batch_at(4).rows
    assert [r for pair in zip(a["rows"], b["rows"], strict=True) for r in pair] == [
        (row,) for row in order
    ]
    np.testing.assert_allclose(a["losses"], losses(one), rtol=1e-5)
    for mine in (a, b):
        assert_same(mine["gradients"][0], one.gradients[0], 1e-5)


RESUMED = """
import json, sys
from pathlib import Path
from tests.trainers.test_transformers import watched
ground, out = Path(sys.argv[1]), Path(sys.argv[2])
found = {}
for accumulate, workers in ((1, 0), (2, 2)):
    folder = out / f"{accumulate}-{workers}"
    settings = dict(per_device_train_batch_size=2, gradient_accumulation_steps=accumulate,
                    dataloader_num_workers=workers, num_train_epochs=3, max_steps=-1,
                    save_strategy="steps", save_steps=1, ddp_backend="gloo")
    trainer, rows = watched(ground, folder, **settings)
    trainer.train()
    steps = trainer.state.global_step // 3
    for place in (steps - 1, steps + 1, 2 * steps):
        again, rest = watched(ground, folder, **settings)
        again.train(resume_from_checkpoint=str(folder / "out" / f"checkpoint-{place}"))
        found[f"{accumulate}, {workers}, {place} of {steps} a pass"] = rows, rest
(out / f"{trainer.args.process_index}.json").write_text(json.dumps(found))
"""


def watched(ground, folder, **changes):
    """A trainer, and the rows of its micro-batches as it meets them."""
    trainer, rows = trainer_of(ground, folder, **changes), []
    compute = trainer.compute_loss

    def watch(model, inputs, *args, **kwargs):
        rows.append(list(inputs["batch"].rows))
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = watch
    return trainer, rows


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_run_has_the_rows_of_one_that_was_not_interrupted(ground, tmp_path, processes):
    """In the middle of every pass, and where one begins: what the passes to come have is another order each."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    (tmp_path / "worker.py").write_text(RESUMED)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            *launch,
            f"--nproc-per-node={processes}",
            str(tmp_path / "worker.py"),
            str(ground),
            str(tmp_path),
        ],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(processes):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(found) == 6
        for case, (whole, rest) in found.items():
            third = len(whole) // 3
            assert whole[:third] != whole[third : 2 * third] != whole[2 * third :]
            assert 0 < len(rest) < len(whole), case
            assert rest == whole[-len(rest) :], f"rank {rank}: {case}"


# -- refusals -------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_training(ground, tmp_path):
    rows = StoreRows(ground / "store")
    model, args = student_of(ground).model, arguments(tmp_path)
    with pytest.raises(PairingError, match="grid"):
        DistillTrainer(model, args, train_dataset=rows, distill=DistillLoss(temperature=3.0))
    small = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(**(LLAMA | {"vocab_size": 299}))
    )
    with pytest.raises(PairingError, match="299 ids, the store's 300"):
        DistillTrainer(small, args, train_dataset=rows, distill=LOSS)
    with pytest.raises(PairingError, match="299 ids, the store's 300"):
        DistillTrainer(small, args, eval_dataset={"held-out": rows}, distill=LOSS)
    with pytest.raises(PairingError, match="299 ids, the store's 300"):
        DistillTrainer(small, args, distill=LOSS).evaluate(rows)
    with pytest.raises(ConfigError, match="a dataset is list, not StoreRows"):
        DistillTrainer(model, args, train_dataset=[1], distill=LOSS)


def test_another_tokenizer_is_refused(ground, tmp_path):
    build_tiny(
        tmp_path / "other",
        write_corpus(tmp_path / "c", repeat=1),
        teacher=TinyTeacher(salt="x"),
        temperature=(1.0, 2.0),
    )
    student_of(ground).save(tmp_path / "student")
    (tmp_path / "student" / "tokenizer.json").write_bytes(
        TinyTeacher().tokenizer.files()["tokenizer.json"]
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    args = arguments(tmp_path)
    DistillTrainer(model, args, train_dataset=StoreRows(ground / "store"), distill=LOSS)
    with pytest.raises(TokenizerError, match="another token"):
        DistillTrainer(model, args, train_dataset=StoreRows(tmp_path / "other"), distill=LOSS)


def test_a_renumbered_store_is_taken_on_your_word_aloud(ground, tmp_path):
    (tmp_path / "ids.json").write_text(json.dumps(list(range(300))))
    rows = StoreRows(ground / "store", vocab=f"map:{tmp_path / 'ids.json'}")
    with pytest.warns(UserWarning, match="renumbers the ids, so the tokenizer"):
        DistillTrainer(
            student_of(ground).model, arguments(tmp_path), train_dataset=rows, distill=LOSS
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing"),
        ({"fp16": True}, "fp16"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size: the rows of a step"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches: each process"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches or"),
    ],
)
def test_arguments_that_could_not_be_honoured_are_refused(ground, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        trainer_of(ground, tmp_path, **changes)


def test_another_loss_function_is_refused(ground, tmp_path):
    with pytest.raises(ConfigError, match="compute_loss_func"):
        DistillTrainer(
            student_of(ground).model,
            arguments(tmp_path),
            train_dataset=StoreRows(ground / "store"),
            distill=LOSS,
            compute_loss_func=lambda *_, **__: None,
        )


def test_rows_travel_to_a_spawned_worker(ground):
    rows = StoreRows(ground / "store", seed=3)
    there = pickle.loads(pickle.dumps(rows))
    assert [there[i].index for i in range(30)] == [rows[i].index for i in range(30)]


@pytest.mark.slow
def test_a_missing_library_names_the_extra():
    code = """
import sys
sys.modules["transformers"] = None
from softlabels.errors import MissingExtraError
try:
    import trainers.integrations.transformers
except MissingExtraError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "[hf]'" in done.stdout
