"""Mixtures of experts: what their routers add to the loss, as their configuration says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from softlabels.errors import ConfigError
from tests.fakes import build_tiny, write_corpus
from tests.output_families import SMALL
from trainers.data.microbatches import split_batch
from trainers.data.stream import SoftTargetStream
from trainers.loss.losses import DistillLoss
from trainers.loss.totals import StepTotals
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.run.step import student_loss
from trainers.students import Student
from trainers.students.router import router_loss

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
COEFFICIENT = 0.5


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("router")
    build_tiny(folder / "store", write_corpus(folder), seq_len=24)
    return folder


def model_of(*, asked, kind="qwen3_moe"):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind,
        **SMALL,
        num_key_value_heads=2,
        num_experts=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        initializer_range=0.3,
        output_router_logits=asked,
        router_aux_loss_coef=COEFFICIENT,
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def batch_of(ground):
    return SoftTargetStream(ground / "store", batch_size=4, prefetch=0).batch_at(0)


def own(model, batch):
    """What the model adds to a loss of its own."""
    aux = model(**batch.inputs, use_cache=False, output_router_logits=True).aux_loss
    return COEFFICIENT * aux


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_it_is_what_the_model_adds_to_its_own_loss(ground, kind):
    batch, model = batch_of(ground), model_of(asked=True, kind=kind)
    labels = batch.inputs["input_ids"]
    out = model(**batch.inputs, labels=labels, use_cache=False)
    plain = model(**batch.inputs, labels=labels, use_cache=False, output_router_logits=False)
    found = router_loss(model.config, out)
    torch.testing.assert_close(found, out.loss - plain.loss)
    assert router_loss(model_of(asked=False).config, out) is None


def test_a_students_loss_has_it_by_the_share_of_positions(ground):
    batch, loss = batch_of(ground), DistillLoss()
    model = model_of(asked=True)
    student = Student(model)
    without = student_loss(Student(model_of(asked=False)), loss, batch).loss
    whole = student_loss(student, loss, batch).loss
    torch.testing.assert_close(whole - without, own(model, batch))
    parts = list(split_batch(batch, 2))
    totals = StepTotals.over(loss.count(p) for p in parts)
    shared = replace(loss, totals=totals)
    found = sum(student_loss(student, shared, p).loss for p in parts)
    expected = sum(own(model, p) * p.positions / batch.positions for p in parts)
    torch.testing.assert_close(found - without, expected, rtol=1e-4, atol=1e-5)
    model.zero_grad(set_to_none=True)
    whole.backward()
    mine = model.model.layers[0].mlp.gate.weight.grad.clone()
    model.zero_grad(set_to_none=True)
    (student_loss(Student(model), loss, batch).loss - own(model, batch)).backward()
    assert not torch.allclose(mine, model.model.layers[0].mlp.gate.weight.grad)


@pytest.mark.parametrize("asked", [True, False])
def test_trainer_adds_it_as_a_mean_over_micro_batches(ground, tmp_path, asked):
    from trainers.integrations.transformers import DistillMixin, StoreRows

    class DistillTrainer(DistillMixin, transformers.Trainer):
        pass

    args = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    model, rows = model_of(asked=asked), StoreRows(ground / "store", seed=0)
    trainer = DistillTrainer(model, args, train_dataset=rows, distill=DistillLoss(alpha=1.0))
    seen = []

    def see(_model, _args, out):
        seen.append(None if out.aux_loss is None else out.aux_loss.item())

    model.register_forward_hook(see)
    trainer.train()
    logged = trainer.state.log_history[0]
    plain = logged["soft"]  # alpha is 1, T is 1: the loss without the routers'
    extra = logged["loss"] - plain
    if not asked:
        assert abs(extra) < 1e-4
        return
    assert extra == pytest.approx(COEFFICIENT * sum(seen[-2:]) / 2, rel=1e-3)


def test_a_run_lowers_it(ground, tmp_path):
    model_of(asked=True).save_pretrained(tmp_path / "model")
    config = RunConfig(
        store=(str(ground / "store"),),
        student=f"hf:{tmp_path / 'model'}",
        steps=10,
        batch_size=4,
        lr=1e-2,
        warmup=0,
        dtype="float32",
        same_tokenizer=True,
    )
    folder = train(config, tmp_path / "run")
    trained = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        before, after = (own(m, batch_of(ground)) for m in (model_of(asked=True), trained))
    assert after < before


def test_a_forward_without_it_is_refused(ground):
    model = model_of(asked=True)
    with pytest.raises(ConfigError, match=r"output_router_logits is set, and .* no aux_loss"):
        router_loss(model.config, object())
