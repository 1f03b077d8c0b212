"""Distillation inside `lightning.Trainer`: a module over a student, a data module over a stream.

    data = DistillData("store", batch_size=32)
    lightning.Trainer(max_steps=1000).fit(DistillModule(student, DistillLoss()), data)

One batch of the stream is one step, split over `accumulate_grad_batches` and processes; the loss is normalised over
all of it. A checkpoint holds the stream's state as of the last finished step. Random numbers are not restored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from softlabels.errors import ConfigError, MissingExtraError
from trainers.data.batch import Batch
from trainers.data.microbatches import split_batch
from trainers.data.stream import SoftTargetStream
from trainers.integrations import check_fit
from trainers.loss.losses import DistillLoss
from trainers.loss.totals import StepTotals
from trainers.run.step import student_loss
from trainers.students import Student

try:
    import lightning
except ImportError as e:
    raise MissingExtraError("lightning", "lightning", "trainers.integrations.lightning") from e
WHOLE = ("SingleDeviceStrategy", "DDPStrategy")


class StepPart(NamedTuple):
    """A micro-batch of one process."""

    batch: Batch
    parts: int
    """Micro-batches of the step, over all processes."""
    totals: StepTotals
    """Of the whole step."""
    after: int
    """The stream's position once the step is done."""


class DistillData(lightning.LightningDataModule):
    """Micro-batches of a stream. It is its own data loader, so that Lightning sees one that can resume.

    Args:
        stream: or the path of a store.
        options: of the stream of a path, as of `SoftTargetStream`: batch_size, seed, …
    """

    def __init__(self, stream: SoftTargetStream | Path | str, **options: Any) -> None:
        super().__init__()
        if not isinstance(stream, SoftTargetStream):
            stream = SoftTargetStream(stream, **options)
        elif options:
            raise ConfigError(
                f"DistillData({', '.join(options)}): the stream is open already; give them to SoftTargetStream"
            )
        self.stream, self.taken = stream, stream.offset

    def train_dataloader(self) -> DistillData:
        """Itself."""
        return self

    def __iter__(self) -> Iterator[StepPart]:
        """This process's micro-batches, without end: `accumulate_grad_batches` for each batch of the stream.

        Raises:
            ConfigError: a step's rows cannot be split evenly.
        """
        t, stream = self.trainer, self.stream
        parts = t.accumulate_grad_batches * t.world_size
        if stream.batch_size % parts:
            raise ConfigError(
                f"batch_size {stream.batch_size}: cannot be split into {t.accumulate_grad_batches} micro-batches "
                f"(accumulate_grad_batches) on each of {t.world_size} processes; take a multiple of {parts}"
            )
        stream.offset = self.taken  # what was fetched ahead comes again
        for batch in stream:
            totals, after = t.lightning_module.loss.count(batch), stream.offset
            for i, micro in enumerate(split_batch(batch, parts)):
                if i % t.world_size == t.global_rank:
                    yield StepPart(micro, parts, totals, after)

    def state_dict(self) -> dict[str, Any]:
        """The stream's, as of the last finished step."""
        return {**self.stream.state_dict(), "position": self.taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; a state of another store, seed or shuffle is a RunError."""
        self.stream.load_state_dict(state_dict)
        self.taken = self.stream.offset


class DistillModule(lightning.LightningModule):
    """A student, its loss and an AdamW; override `configure_optimizers` for another optimiser or a schedule."""

    def __init__(self, student: Student, loss: DistillLoss, **adamw: Any) -> None:
        super().__init__()
        self.student, self.loss, self.adamw, self.after = student, loss, adamw, 0

    def on_train_start(self) -> None:
        """Refuse what does not fit, before the first step."""
        t, each = self.trainer, self.trainer.num_training_batches
        for unfit, what in (
            (t.precision == "16-mixed", "precision 16-mixed underflows; use bf16-mixed"),
            (type(t.strategy).__name__ not in WHOLE, "the loss needs the whole head; use ddp"),
            (t.max_steps < 0 and each == float("inf"), "the stream has no end; set max_steps"),
            (
                each < float("inf") and each % t.accumulate_grad_batches,
                "limit_train_batches cuts a step",
            ),
            (not isinstance(t.datamodule, DistillData), "fit it with DistillData"),
        ):
            if unfit:
                raise ConfigError(f"DistillModule: {what}")
        check_fit(self.student, self.loss, t.datamodule.stream.store)
        self.student.head_dtype = torch.bfloat16 if t.precision == "bf16-mixed" else None

    def training_step(self, part: StepPart, batch_idx: int) -> torch.Tensor:
        """The micro-batch's share of the step's loss, times what Lightning and DDP divide it by."""
        batch, parts, totals, self.after = part
        if parts != self.trainer.accumulate_grad_batches * self.trainer.world_size:
            raise ConfigError("DistillModule: accumulate_grad_batches must not change during a run")
        loss = student_loss(self.student, replace(self.loss, totals=totals), batch).loss * parts
        self.log("train_loss", loss.detach(), batch_size=len(batch.rows))
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's; only then do the step's rows count as taken."""
        super().optimizer_step(*args, **kwargs)
        self.trainer.datamodule.taken = self.after

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with the arguments given."""
        return torch.optim.AdamW(self.parameters(), **self.adamw)
