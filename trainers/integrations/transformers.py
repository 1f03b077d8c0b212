"""Distillation inside `transformers.Trainer`: the loss on the head's input, rows in the order that runs have.

    class DistillTrainer(DistillMixin, Trainer): ...
    DistillTrainer(model, args, train_dataset=StoreRows("store"), distill=DistillLoss()).train()

Exact: the order of rows (the stream's, epoch after epoch; Trainer's own samplers and `data_seed` play no part) and
the normalisation, over all micro-batches and processes of a step. As Trainer has it: an epoch's last batch is short
(on several processes filled up with the epoch's first rows), and `eval_loss` is a mean of means of batches. The model
may be a PeftModel, and on several processes DDP's or FSDP2's (`distil.py`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from softlabels.core.local_model import find_model
from softlabels.errors import ConfigError, MissingExtraError
from trainers.data.batch import Batch
from trainers.integrations import check_fit
from trainers.integrations.distil import forward_loss
from trainers.integrations.rows import EpochSampler, StoreRows, collate_rows
from trainers.loss.losses import DistillLoss, LossOutput
from trainers.loss.totals import StepTotals
from trainers.students import Student
from trainers.students.model_head import bare_model
from trainers.students.router import router_loss

try:
    from transformers import TrainerCallback
except ImportError as e:
    raise MissingExtraError("transformers", "hf", "trainers.integrations.transformers") from e
Base: Any = Any if TYPE_CHECKING else object
LOGGED = ("soft", "hard", "teacher_tail", "student_tail", "agreement")
"""Means over positions that are logged beside the loss (docs/logs.md)."""


class EpochCount(TrainerCallback):
    """The epoch that Trainer is in, by the steps it has taken, as Trainer itself counts it where it resumes."""

    epoch = 0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count anew, before the first row of the epoch, or of what is left of it, is drawn."""
        batches = len(kwargs["train_dataloader"])
        steps = -(-batches // args.gradient_accumulation_steps)
        self.epoch = state.global_step // max(1, steps)


class DistillMixin(Base):
    """Goes before `Trainer` in a class's bases; `distill` is the loss. Refuses what Trainer could not do exactly."""

    def __init__(self, *args: Any, distill: DistillLoss, **kwargs: Any) -> None:
        kwargs.setdefault("data_collator", collate_rows)
        super().__init__(*args, **kwargs)
        self.distill = distill
        self.loss_is_scaled_for_ga = self.model_accepts_loss_kwargs = True  # we divide, not Trainer
        self._seen: list[tuple[LossOutput, StepTotals]] = []
        self._count = EpochCount()
        self.add_callback(self._count)
        kind = self.accelerator.distributed_type.value  # NO, MULTI_GPU, MULTI_CPU, FSDP, ...
        spread = kind == "NO" or kind.startswith("MULTI") or self.accelerator.is_fsdp2
        dealing = self.args.accelerator_config
        for unfit, what in (
            (self.args.fp16, "fp16: its gradients underflow; use bf16=True"),
            (self.args.n_gpu > 1, "several GPUs in a process; start one for each with torchrun"),
            (self.args.label_smoothing_factor, "label_smoothing_factor; it smooths another loss"),
            (
                self.args.auto_find_batch_size,
                "auto_find_batch_size: the rows of a step are fixed before it; set per_device_train_batch_size",
            ),
            (
                dealing.dispatch_batches or dealing.split_batches,
                "dispatch_batches or split_batches: each process takes its own rows",
            ),
            (self.compute_loss_func, "compute_loss_func; give distill=DistillLoss(...)"),
            (not spread, f"{kind}: its gathering of the head was not tested; use DDP or FSDP2"),
        ):
            if unfit:
                raise ConfigError(f"{type(self).__name__} cannot train with {what}")
        self._check(self.train_dataset)
        self._check(self.eval_dataset)
        if isinstance(self.train_dataset, StoreRows):
            self._in_steps(self.train_dataset)

    def _in_steps(self, rows: StoreRows) -> None:
        """Let the rows of each step be those of a run with as many."""
        each = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        rows.in_steps(each * self.accelerator.num_processes)

    def _check(self, data: Any) -> None:
        for one in data.values() if isinstance(data, dict) else [data]:
            if isinstance(one, StoreRows):
                check_fit(self._student(self.model), self.distill, one.store)
            elif one is not None and not isinstance(one, str):  # a name of one checked before
                raise ConfigError(f"DistillMixin: a dataset is {type(one).__name__}, not StoreRows")

    def _student(self, model: Any) -> Student:
        model = bare_model(model)
        return Student(model, source=_source(getattr(model.config, "_name_or_path", None)))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Trainer's, after a check."""
        self._check(eval_dataset)
        return super().get_eval_dataloader(eval_dataset)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        rows = len(train_dataset or self.train_dataset)
        return EpochSampler(rows, lambda: self._count.epoch)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of a step, and its totals over all processes."""
        samples, _ = super().get_batch_samples(*args, **kwargs)
        mine = StepTotals.over(self.distill.count(s["batch"]) for s in samples)
        told = torch.tensor([mine], dtype=torch.float64, device=self.args.device)
        return samples, StepTotals.over(self.accelerator.gather(told).tolist())

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro-batch's share of the step's loss; alone, a mean over its own positions.

        The routers' loss of a mixture of experts is a mean over micro-batches and processes.
        """
        inputs, totals = dict(inputs), num_items_in_batch
        batch: Batch = replace(inputs.pop("batch"), inputs=inputs)
        out, outputs = forward_loss(model, batch, replace(self.distill, totals=totals))
        if self.model.training and totals is not None:
            self._seen.append((out._replace(loss=out.loss.detach()), self.distill.count(batch)))
        # DDP and FSDP2 average gradients over processes
        loss = out.loss * (1 if totals is None else self.accelerator.num_processes)
        router = router_loss(bare_model(model).config, outputs)
        if router is not None:
            steps = 1 if totals is None else self.current_gradient_accumulation_steps
            loss = loss + router.to(loss.device) / steps
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trainer's, with what the losses since the last were made of: soft, hard, the tails, agreement."""
        if self._seen and self.model.training:
            rows = [[out.loss.item(), *out[1:], *counted] for out, counted in self._seen]
            self._seen.clear()
            told = torch.tensor(rows, dtype=torch.float64, device=self.args.device)
            found = self.accelerator.gather(told).tolist()
            n = len(LossOutput._fields)
            totals = StepTotals.over(row[n:] for row in found)
            means = LossOutput.over(row[:n] for row in found).means(totals)
            logs |= {name: means[name] for name in LOGGED}
        super().log(logs, *args, **kwargs)

    def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        """The loss alone: logits are not made, so `compute_metrics` has none."""
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None


def _source(name: str | None) -> Path | None:
    """Where a model lies that was loaded by this name; None: nowhere here."""
    try:
        return find_model(name, where="", error=ConfigError).source if name else None
    except ConfigError:
        return None
