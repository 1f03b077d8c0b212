"""One step, four micro-batches: our loop, Trainer and Lightning against a dense float64 reference, value and gradient.

The micro-batches have unequal numbers of positions, of labels, of soft targets and of weight, so every mean that is
taken over another total than the whole step's is another number.
"""

import json
from dataclasses import replace

import pytest
import torch

from softlabels.core.devices import Choice
from softlabels.core.rows import UNLABELLED
from tests.fakes import build_tiny, write_corpus
from tests.students import llama
from trainers.data.batch import Batch
from trainers.data.stream import SoftTargetStream
from trainers.loss.losses import DistillLoss
from trainers.loss.position_weights import WEIGHTS
from trainers.run.config import RunConfig
from trainers.run.reduce import Ranks
from trainers.run.step import Optimisation
from trainers.students import make_student

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
from trainers.integrations.transformers import DistillMixin, StoreRows, collate_rows  # noqa: E402

ROWS, PARTS = 8, 4


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A store in which rows are of many lengths and only some positions are soft."""
    folder = tmp_path_factory.mktemp("totals")
    (folder / "corpus").mkdir()
    corpus = write_corpus(folder / "corpus", documents=2, repeat=1)
    for i in range(30):
        (folder / "corpus" / f"short{i}.txt").write_text("A document. "[: 3 + i % 9] * 4)
    build_tiny(folder / "store", corpus, temperature=(1.0, 2.0), positions="entropy:0.5")
    (folder / "student.json").write_text(json.dumps(llama(width=16)))
    return folder


def student_of(ground):
    return make_student(f"hf-config:{ground / 'student.json'}", seed=0).train()


def some_unlabelled(batch: Batch) -> Batch:
    """The same, without labels at every third position of the rows whose number is even."""
    row_of = batch.flat_positions // batch.width
    even = torch.tensor(batch.rows)[row_of] % 2 == 0
    third = batch.flat_positions % batch.width % 3 == 0
    return replace(batch, labels=batch.labels.masked_fill(even & third, UNLABELLED))


def batch_of(ground) -> Batch:
    stream = SoftTargetStream(ground / "store", batch_size=ROWS, seed=3, prefetch=0)
    return some_unlabelled(stream.batch_at(0))


def reference(ground, loss, batch):
    """Value and gradients by dense float64 softmax over all of V."""
    student = student_of(ground).double()
    head = student.head()
    z = batch.at_positions(student.hidden(batch)) @ head.weight.T
    t, targets = loss.temperature, batch.targets
    soft = torch.from_numpy(targets.soft)
    ids, kept = torch.from_numpy(targets.ids).long()[soft], torch.from_numpy(targets.kept)[soft]
    q = torch.softmax(z[soft] / t, 1)
    q = torch.cat([q.gather(1, ids), (1 - q.gather(1, ids).sum(1, keepdim=True))], 1)
    odds = torch.from_numpy(targets.log_odds[:, targets.grid_index(t)]).double()[soft]
    gaps = torch.from_numpy(targets.gaps).double()[soft]
    p = torch.softmax(-gaps / t, 1) * torch.sigmoid(-odds)[:, None]
    p = torch.cat([p, torch.sigmoid(odds)[:, None]], 1)
    assert bool(kept.all())  # every soft position keeps as many
    kl = (p * (p.log() - q.log())).sum(1)
    labels = batch.labels.numpy()[targets.soft]
    w = torch.from_numpy(WEIGHTS[loss.weight](targets[targets.soft], labels, t))
    hard = torch.nn.functional.cross_entropy(z, batch.labels, ignore_index=UNLABELLED)
    value = loss.alpha * t**2 * (w * kl).sum() / w.sum() + (1 - loss.alpha) * hard
    value.backward()
    return value.item(), {n: p.grad.clone() for n, p in student.model.named_parameters()}


def our_loop(ground, loss, tmp_path):
    student = student_of(ground)
    config = RunConfig(
        store="-", student="-", steps=1, batch_size=ROWS, accumulate=PARTS, device="cpu"
    )
    choice = Choice(torch.device("cpu"), torch.float32, "")
    optimisation = Optimisation(student, choice, Ranks(), config)
    found = {}
    optimisation.optimizer.register_step_pre_hook(
        lambda *_: found.update((n, p.grad.clone()) for n, p in student.model.named_parameters())
    )
    taken = optimisation.take(loss, batch_of(ground), 0, stop=False)
    return taken.values["loss"], found


def lightning_module(ground, loss, tmp_path):
    lightning = pytest.importorskip("lightning", reason="needs the extra lightning")
    from trainers.integrations.lightning import DistillData, DistillModule

    class Unlabelled(SoftTargetStream):
        def batch_at(self, position):
            return some_unlabelled(super().batch_at(position))

        def _batch(self, position, following):
            return some_unlabelled(super()._batch(position, following))

    found = []

    class Watched(DistillModule):
        def training_step(self, part, batch_idx):
            value = super().training_step(part, batch_idx)
            found.append(value.item())
            return value

        def on_before_optimizer_step(self, optimizer):
            self.gradients = {n: p.grad.clone() for n, p in self.student.model.named_parameters()}

    module = Watched(student_of(ground), loss, lr=0.0)
    stream = Unlabelled(ground / "store", batch_size=ROWS, seed=3, prefetch=0)
    trainer = lightning.Trainer(
        max_steps=1,
        accelerator="cpu",
        accumulate_grad_batches=PARTS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DistillData(stream))
    assert len(found) == PARTS
    return sum(found) / PARTS, module.gradients


def transformers_trainer(ground, loss, tmp_path):
    class DistillTrainer(DistillMixin, transformers.Trainer):
        def create_optimizer(self, *args, **kwargs):
            made = super().create_optimizer(*args, **kwargs)
            self.optimizer.register_step_pre_hook(self.keep)
            return made

        def keep(self, *_):
            self.gradients = {n: p.grad.clone() for n, p in self.model.named_parameters()}

    def collated(rows):
        found = collate_rows(rows)
        return found | {"batch": some_unlabelled(found["batch"])}

    args = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=ROWS // PARTS,
        gradient_accumulation_steps=PARTS,
        max_steps=1,
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    rows = StoreRows(ground / "store", seed=3)
    trainer = DistillTrainer(
        student_of(ground).model, args, train_dataset=rows, distill=loss, data_collator=collated
    )
    trainer.train()
    (value,) = (line["loss"] for line in trainer.state.log_history if "loss" in line)
    return value, trainer.gradients


@pytest.mark.filterwarnings("ignore::UserWarning:lightning.*")
@pytest.mark.filterwarnings("ignore::FutureWarning:lightning.*")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.*")
@pytest.mark.parametrize("weight", sorted(WEIGHTS))
@pytest.mark.parametrize("loop", [our_loop, lightning_module, transformers_trainer])
def test_every_loop_divides_by_the_whole_step(ground, tmp_path, loop, weight):
    loss = DistillLoss(temperature=2.0, alpha=0.7, weight=weight)
    batch = batch_of(ground)
    assert 0 < batch.soft_positions < batch.positions > batch.labelled_positions
    value, gradients = reference(ground, loss, batch)
    found, found_gradients = loop(ground, loss, tmp_path)
    assert found == pytest.approx(value, rel=1e-5)
    for name, expected in gradients.items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            found_gradients[name].double(), expected, rtol=1e-4, atol=1e-5 * scale, msg=name
        )
