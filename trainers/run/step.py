"""One optimiser step, whatever number of processes it is taken on.

1. A rank's rows are cut into micro-batches, equally many on each, and all ranks add up what these count: `StepTotals`.
2. Of each micro-batch: body in mixed precision, loss on the head in chunks, divided by the step's totals, backward.
3. The gradients of all micro-batches on all ranks are added (`gradients.py`), and what the losses were made of, too.
4. The gradient's norm is clipped, AdamW takes the step.

A loss or a gradient that is not finite ends the run on every rank, before weights and moments learn of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from softlabels.core.devices import Choice
from softlabels.errors import RunError, SoftLabelsError
from trainers.data.batch import Batch
from trainers.data.microbatches import (
    batches_of_tokens,
    grouped_by_tokens,
    in_as_many,
    split_batch,
    widen,
)
from trainers.loss.losses import DistillLoss, LossOutput
from trainers.loss.totals import StepTotals
from trainers.run.config import RunConfig
from trainers.run.finite import not_finite
from trainers.run.gradients import DataParallel, GradientTree, Local, Sharded
from trainers.run.reduce import Ranks
from trainers.run.sharded import is_sharded, whole
from trainers.students import Student

T = TypeVar("T")


class Taken(NamedTuple):
    """A step that was taken; equal on every rank."""

    values: dict[str, float]
    """To log: the loss as minimised, `LossOutput.means`, and what the step was taken with."""
    positions: int
    """All positions of the step."""
    stop: bool
    """Whether any rank was asked to stop."""


def student_loss(student: Student, loss: DistillLoss, batch: Batch) -> LossOutput:
    """What a student loses on a micro-batch; the hidden states of its last layer are asked for if they are compared.

    The routers' loss of a mixture of experts is a mean over the step's micro-batches, by their positions.
    """
    if loss.cosine > 0:
        hidden, layer = student.hidden_and_layer(batch)
        out = loss(hidden, student.head(), batch, layer=layer)
    else:
        out = loss(student.hidden(batch), student.head(), batch)
    router = student.routed()
    if router is None:
        return out
    share = 1.0 if loss.totals is None else batch.positions / loss.totals.positions
    return out._replace(loss=out.loss + router.to(out.loss.device) * share)


class Computation(nn.Module):
    """Student and loss as one module, so that all use of the weights lies within one `forward`."""

    def __init__(self, student: Student, choice: Choice) -> None:
        super().__init__()
        self.student, self._choice = student, choice

    def forward(self, loss: DistillLoss, micro: Batch) -> LossOutput:
        """Loss of one micro-batch, in the run's precision."""
        device, dtype = self._choice.device, self._choice.dtype
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            return student_loss(self.student, loss, micro.to(device))


class Optimisation:
    """A student's gradients and its optimiser, on one of the ranks."""

    def __init__(self, student: Student, choice: Choice, ranks: Ranks, config: RunConfig) -> None:
        self._student, self._ranks, self._config = student, ranks, config
        self._parts = config.micro_batches(ranks.world_size)
        computation = Computation(student, choice)
        self._spread: Local | DataParallel | Sharded = Local(computation)
        if ranks.several and config.parallel == "fsdp":
            self._spread = Sharded(computation, student.layers(), ranks, choice.device)
        # of the parameters that there are now: those that were sharded are let go of
        self._tree = GradientTree(student.parameters(), branches=config.exact_ranks)
        if ranks.several and config.parallel != "fsdp":
            self._spread = DataParallel(computation, self._tree, ranks, choice.device)
        learning = [p for p in student.parameters() if p.requires_grad]
        decayed = [p for p in learning if p.dim() >= 2]
        plain = [p for p in learning if p.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            fused=False,
            foreach=False,
        )

    def on_whole(self, act: Callable[[], T]) -> T:
        """What rank 0 finds of the whole student, on every rank. It acts alone, unless each has but a part of it."""
        if not isinstance(self._spread, Sharded):
            return self._ranks.from_first(act)
        # The weights outside the layers are made whole here; the layers make themselves whole when called.
        module = self._spread.module
        module.unshard()
        try:
            found = act()
        finally:
            module.reshard()
        return self._ranks.from_first(lambda: found)

    def whole_weights(self) -> dict[str, Tensor] | None:
        """The model's own state in whole tensors, on rank 0 alone; None where each rank has it as it is."""
        if not isinstance(self._spread, Sharded):
            return None
        model = self._student.model
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        stored = model.state_dict().keys()
        return {n: whole(t, keep=self._ranks.first) for n, t in named.items() if n in stored}

    def take(self, loss: DistillLoss, batch: Batch, step: int, *, stop: bool) -> Taken:
        """Take a step on a batch, of which this rank has its part.

        Args:
            loss: of this step.
            batch: this rank's rows.
            step: its number, from 0.
            stop: whether this rank was asked to stop.

        Raises:
            RunError: it failed, or the loss or its gradient is not finite; names the rows and the rank.
        """
        lr = self._config.learning_rate(step)
        out, totals = self._gradients(loss, batch, step, lr)
        parameters = self._student.parameters()
        norm = nn.utils.clip_grad_norm_(parameters, self._config.clip or float("inf"))
        if is_sharded(norm):
            norm = norm.full_tensor()
        told = self._ranks.gather([float(norm), stop])
        for found, _ in told:
            if not math.isfinite(found):
                raise not_finite(f"step {step + 1}: the gradient's norm is {found}", lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        means = out.means(totals)
        if not loss.cosine:
            del means["cosine"]
        made_with = {"alpha": loss.alpha, "temperature": loss.temperature}
        values = {"loss": out.loss.item(), **means, **made_with, "grad_norm": float(norm), "lr": lr}
        return Taken(values, totals.positions, any(asked for _, asked in told))

    def _gradients(
        self, loss: DistillLoss, batch: Batch, step: int, lr: float
    ) -> tuple[LossOutput, StepTotals]:
        """Forward and backward: the gradient of the whole step is in each `parameter.grad`; its sums, its totals."""
        ranks = self._ranks
        micro_batches = self._micro_batches(batch)
        parts, by_tokens = len(micro_batches), self._config.batch_tokens is not None
        totals = StepTotals.over(ranks.rows(loss.count(m) for m in micro_batches))
        loss = replace(loss, totals=totals)
        outputs: list[list[float]] = []
        for i, micro in enumerate(micro_batches):
            last = i == parts - 1
            with self._named(micro, step):
                torch.manual_seed(self._dropout_seed(step, ranks.rank * parts + i))
                self._tree.before(i)
                with self._spread.micro_batch(last=last):
                    out = self._spread.module(loss, micro if by_tokens else widen(micro, totals))
                    (out.loss * self._spread.scale).backward()
                self._tree.after(last=last)
                outputs.append([out.loss.item(), *out[1:]])
        total = LossOutput.over(ranks.rows(outputs))
        if not math.isfinite(total.loss):
            fine = all(math.isfinite(value) for value, *_ in outputs)
            places = ranks.gather_objects((fine, self._place(batch, step)))
            place = min(places, key=lambda p: p[0])[1]  # of the first rank whose own is not
            raise not_finite(f"{place}: the loss is {total.loss.item()}", lr)
        return total, totals

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        """This rank's; on every rank equally many."""
        most = self._config.batch_tokens
        if most is None:
            return list(split_batch(batch, self._parts))
        groups = grouped_by_tokens(batch, most)
        parts = max(int(count) for (count,) in self._ranks.gather([len(groups)]))
        return list(batches_of_tokens(batch, in_as_many(groups, parts)))

    def _dropout_seed(self, step: int, micro_batch: int) -> int:
        """So that what is dropped does not depend on where a run was resumed, nor, without --batch-tokens, on ranks."""
        words = f"softlabels dropout 1\n{self._config.seed}\n{step}\n{micro_batch}"
        return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "little") >> 1

    @contextmanager
    def _named(self, micro: Batch, step: int) -> Iterator[None]:
        """An error within names rows and rank."""
        try:
            yield
        except AssertionError as e:
            e.add_note(f"in {self._place(micro, step)}")
            raise
        except SoftLabelsError as e:
            raise RunError(f"{self._place(micro, step)}: {e}") from e
        except Exception as e:
            if self._ranks.is_lost(e):
                raise self._ranks.lost(e) from e
            raise RunError(
                f"{self._place(micro, step)}: {type(e).__name__}: {e}. The last checkpoint is intact: once the cause "
                "is mended, --resume goes on from it"
            ) from e

    def _place(self, batch: Batch, step: int) -> str:
        rank = f"rank {self._ranks.rank}: " if self._ranks.several else ""
        return f"{rank}step {step + 1}, rows {list(batch.rows)}"
