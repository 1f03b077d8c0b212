"""One optimiser step, whatever number of processes it is taken on.

The loss is a mean over the positions of the whole step, so all processes first tell each other how many they have,
then each adds the gradient of its micro-batches, then all add theirs (`gradients.py`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from softlabels.core.devices import Choice
from softlabels.errors import RunError, SoftLabelsError
from trainers.data.microbatches import split_batch, widen
from trainers.data.stream import Batch
from trainers.loss.losses import DistillLoss, LossOutput
from trainers.run.config import RunConfig
from trainers.run.finite import not_finite
from trainers.run.gradients import DataParallel, GradientTree, Local, Sharded
from trainers.run.reduce import Ranks
from trainers.students import Student

__all__ = ["Gradients", "StepOutput"]

SUMS = LossOutput._fields[1:]
"""What a loss tells besides itself."""


class StepOutput(NamedTuple):
    """Of the batch on all ranks; equal on every rank."""

    loss: float
    """Nats a position, as minimised."""
    means: dict[str, float]
    """Of the other fields of `LossOutput`: over all positions, over the soft ones, or over their weights."""
    positions: int
    """N of the whole step."""
    stop: bool
    """Whether any rank was asked to stop."""


class Computation(nn.Module):
    """Student and loss as one module, so that all use of the weights lies within one `forward`."""

    def __init__(self, student: Student, choice: Choice) -> None:
        super().__init__()
        self.student = student
        self._device, self._dtype = choice.device, choice.dtype
        self._mixed = choice.dtype != torch.float32

    def forward(
        self,
        loss: DistillLoss,
        micro: Batch,
        labelled: int,
        soft_divisor: float,
        positions: int,
    ) -> LossOutput:
        """Loss of one micro-batch, divided by the labelled, soft and all positions of the whole step."""
        moved = micro.to(self._device)
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._mixed):
            hidden, layer = (
                self.student.hidden_and_layer(moved)
                if loss.cosine > 0
                else (self.student.hidden(moved), None)
            )
        if micro.positions == 0:  # a gradient of zero, for the other ranks wait for one
            nothing = hidden[:, :0].sum() + self.student.head().weight[:0].sum()
            return LossOutput(nothing, **dict.fromkeys(SUMS, 0.0))
        return loss(
            hidden,
            self.student.head(),
            moved,
            positions=labelled,
            soft_positions=soft_divisor,
            layer=layer,
            all_positions=positions,
        )


class Gradients:
    """Computes the gradients of a step, with their sum over all ranks in each `parameter.grad`."""

    def __init__(
        self,
        student: Student,
        choice: Choice,
        ranks: Ranks,
        *,
        config: RunConfig,
    ) -> None:
        self._ranks = ranks
        self._parts = config.micro_batches(ranks.world_size)
        self._seed = config.seed
        self._tree = GradientTree(student.parameters(), branches=config.exact_ranks)
        computation = Computation(student, choice)
        self._spread: Local | DataParallel | Sharded
        if not ranks.several:
            self._spread = Local(computation)
        elif config.parallel == "fsdp":
            self._spread = Sharded(computation, student.layers(), ranks, choice.device)
        else:
            self._spread = DataParallel(computation, self._tree, ranks, choice.device)

    @property
    def sharded(self) -> bool:
        """Whether no rank has the whole student, so that all must take part in whatever is done with it."""
        return isinstance(self._spread, Sharded)

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """The weights outside the layers are whole on every rank; the layers make themselves whole when called."""
        if not isinstance(self._spread, Sharded):
            yield
            return
        module: Any = self._spread.module
        module.unshard()
        try:
            yield
        finally:
            module.reshard()

    def compute(
        self, loss: DistillLoss, batch: Batch, step: int, *, lr: float, stop: bool
    ) -> StepOutput:
        """Forward and backward of this rank's part of a batch.

        Args:
            loss: of this step.
            batch: this rank's rows.
            step: its number, from 0.
            lr: learning rate of the step.
            stop: whether this rank was asked to stop.

        Raises:
            RunError: it failed, or the loss is not finite; names the rows and the rank.
        """
        ranks = self._ranks
        shared = batch.position_ids is not None
        told = ranks.gather(
            [
                batch.labelled_positions,
                batch.soft_positions,
                loss.soft_divisor(batch),
                batch.input_ids.shape[1],
                shared,
                batch.positions,
            ]
        )
        labelled, soft_positions, positions = (int(sum(t[i] for t in told)) for i in (0, 1, 5))
        divisor = _sum(t[2] for t in told)
        batch = widen(batch, int(max(t[3] for t in told)), shared=any(t[4] for t in told))
        values: list[float] = []
        for i, micro in enumerate(split_batch(batch, self._parts)):
            last = i == self._parts - 1
            with self._named(micro, step):
                torch.manual_seed(self._dropout_seed(step, ranks.rank * self._parts + i))
                self._tree.before(i)
                with self._spread.micro_batch(last=last):
                    out = self._spread.module(loss, micro, labelled, divisor, positions)
                    (out.loss * self._spread.scale).backward()
                self._tree.after(last=last)
                values += [out.loss.item(), *(getattr(out, name) for name in SUMS)]
        told = ranks.gather([*values, stop])
        each = 1 + len(SUMS)
        loss_value, *sums = (_sum(v for t in told for v in t[i:-1:each]) for i in range(each))
        if not math.isfinite(loss_value):
            raise self._refused(batch, step, lr, loss_value, [_sum(t[:-1:each]) for t in told])
        over = {
            "hard": labelled,
            "hard_part": labelled,
            "soft_weighted": divisor,
            "cosine": positions,
        }
        means = {
            name: value / (over.get(name, soft_positions) or 1)
            for name, value in zip(SUMS, sums, strict=True)
            if name != "cosine" or loss.cosine > 0
        }
        return StepOutput(loss_value, means, positions, any(t[-1] for t in told))

    def _dropout_seed(self, step: int, micro_batch: int) -> int:
        """So that what is dropped depends on neither the number of ranks nor on where a run was resumed."""
        words = f"softlabels dropout 1\n{self._seed}\n{step}\n{micro_batch}"
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

    def _refused(
        self, batch: Batch, step: int, lr: float, loss: float, by_rank: list[float]
    ) -> RunError:
        guilty = next((r for r, v in enumerate(by_rank) if not math.isfinite(v)), 0)
        place = self._ranks.gather_objects(self._place(batch, step))[guilty]
        return not_finite(f"{place}: the loss is {loss}", lr)


def _sum(values: Iterator[float] | list[float]) -> float:
    """Exactly rounded, so that the order does not matter; inf and nan pass."""
    values = list(values)
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
