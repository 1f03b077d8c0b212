"""The training loop.

The flow of a step: one batch from the stream -> micro-batches -> body in mixed precision -> loss on the
head in chunks -> gradients, normalised by the positions of the whole step (`step.py`) -> clip -> AdamW.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from softlabels.core.devices import Choice
from softlabels.core.progress import Reporter
from softlabels.errors import RunError
from softlabels.store.reader import Store
from trainers.data.mixing import Weight, make_stream
from trainers.data.stream import Batch
from trainers.data.tasks import Task
from trainers.evaluation.evaluations import Scores
from trainers.evaluation.heldout import HeldOut
from trainers.loss.schedules import LossSchedule
from trainers.run.checkpoint import (
    Snapshot,
    load_checkpoint,
    newest_intact,
    save_checkpoint,
    take_snapshot,
)
from trainers.run.config import RunConfig
from trainers.run.ema import Ema
from trainers.run.finite import check_finite, is_finite, not_finite
from trainers.run.folder import is_published, publish_student
from trainers.run.learning_rate import learning_rate
from trainers.run.length import Length
from trainers.run.metrics import Metrics
from trainers.run.reduce import Ranks
from trainers.run.sharded import is_dealt_out, local, whole
from trainers.run.step import Gradients
from trainers.run.stopping import StopRequest
from trainers.run.vocabulary import write_dropped
from trainers.students import Student

__all__ = ["Trainer"]


class Trainer:
    """A run in progress, on one of its ranks."""

    def __init__(
        self,
        config: RunConfig,
        run: Path,
        stores: Sequence[tuple[Store, Weight]],
        student: Student,
        loss: LossSchedule,
        choice: Choice,
        ranks: Ranks,
        heldout: Store | None,
        tokenizer: Mapping[str, bytes],
        report: Reporter,
        length: Length,
    ) -> None:
        self.length = length
        self.config, self.run, self.loss, self.report = config, run, loss, report
        self.ranks, self.tokenizer = ranks, tokenizer
        self.task = Task.of(stores[0][0])
        self.device = choice.device
        self.student = student.to(self.device).train()
        self.student.head_dtype = choice.dtype if choice.dtype != torch.float32 else None
        self.gradients = Gradients(
            self.student,
            choice,
            ranks,
            config=config,
        )
        self.optimizer = torch.optim.AdamW(
            self._groups(),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            fused=False,
            foreach=False,
        )
        self.ema = None if config.ema is None else Ema(self.student, config.ema)
        self.heldout = None if heldout is None else HeldOut(heldout, patience=config.patience)
        self.stream = make_stream(
            stores,
            batch_size=config.batch_size,
            seed=config.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
        self.masks = frozenset(n for n, b in student.named_buffers() if not is_finite(b))
        """Buffers that hold infinities from the start."""
        self.step = 0
        self.stopping = False
        """Whether any rank was asked to stop; every rank learns it in the same step."""
        self._heldout_note = ""

    def _groups(self) -> list[dict[str, Any]]:
        decayed = [p for p in self.student.parameters() if p.dim() >= 2]
        plain = [p for p in self.student.parameters() if p.dim() < 2]
        return [
            {"params": decayed, "weight_decay": self.config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]

    def train(self) -> Path:
        """Take the steps that are left, from the newest checkpoint on; returns the folder of the finished student."""
        notice = self.report.notice
        checkpoint = self.ranks.from_first(lambda: newest_intact(self.run, notice))
        if checkpoint is not None:
            self._resume(checkpoint)
        self._settle_length()
        if checkpoint is not None:
            if self._done:
                return self._finish(taken=False)
            notice(f"resuming after step {self.step} from {checkpoint}")
        metrics = Metrics(self.run)
        self.ranks.from_first(lambda: metrics.open(self.step))
        self.report.stage("train", self.config.steps, "steps", self.step)
        try:
            self._steps(metrics)
        finally:
            metrics.close()
        return self._finish(taken=True)

    def _resume(self, checkpoint: Path) -> None:
        loaded = load_checkpoint(
            checkpoint, self.student, self.optimizer, self.ema, checked=self.ranks.first
        )
        self.step = loaded.step
        self.stream.load_state_dict(loaded.stream)
        if self.heldout is not None and loaded.heldout is not None:
            self.heldout.load_state_dict(loaded.heldout, where=checkpoint)

    def _settle_length(self) -> None:
        """Refuse or record another length than the run had; see `length.py`."""
        line = self.ranks.from_first(lambda: self.length.settle(self.run, self.config, self.step))
        if line is not None:
            self.report.notice(line)

    @property
    def _done(self) -> bool:
        exhausted = self.heldout is not None and self.heldout.exhausted
        return self.step >= self.config.steps or exhausted

    def _steps(self, metrics: Metrics) -> None:
        if self._done:
            return
        batches = iter(self.stream)
        try:
            with StopRequest(patient=self.ranks.several) as stop:
                while not self._done:
                    self._logged_step(batches, metrics, stop)
                    if self.stopping or self._checkpoint_due():
                        self._save(metrics)
                    if self.stopping and not self._done:
                        self.report.notice(
                            f"saved after step {self.step}; --resume goes on from there"
                        )
                        raise KeyboardInterrupt
        finally:
            batches.close()

    def _logged_step(self, batches: Iterator[Batch], metrics: Metrics, stop: StopRequest) -> None:
        start = time.perf_counter()
        batch = self._next(batches)
        waited = time.perf_counter() - start
        values = self._one_step(batch, stop)
        values["seconds"] = time.perf_counter() - start
        values["loader_wait"] = waited
        values["positions_per_second"] = values.pop("positions") / values["seconds"]
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)
        evaluated = self._evaluated()
        values |= evaluated
        logged = self.step % self.config.log_every == 0 or self.step in (1, self.config.steps)
        logged = logged or bool(evaluated)
        if logged:
            self.ranks.from_first(lambda: metrics.write(self.step, values))
        self.report.advance(1, self._note(values) if logged else None)

    def _note(self, values: dict[str, float]) -> str:
        """What people are shown of a step that is logged."""
        if "heldout_nll" in values:
            self._heldout_note = f", held-out {values['heldout_nll']:.3f}"
        return (
            f"loss {values['loss']:.3f}, hard {values['hard']:.3f}, {values['positions_per_second']:,.0f} positions/s"
            f"{self._heldout_note}"
        )

    def _next(self, batches: Iterator[Batch]) -> Batch:
        try:
            return next(batches)
        except Exception as e:
            first, last = self.stream.position, self.stream.position + self.config.batch_size - 1
            rank = f"rank {self.ranks.rank}: " if self.ranks.several else ""
            raise RunError(
                f"{rank}step {self.step + 1}: rows {first} to {last} of the run's order cannot be read: {e}"
            ) from e

    def _checkpoint_due(self) -> bool:
        return self.step % self.config.checkpoint_every == 0 or self._done

    def _save(self, metrics: Metrics) -> None:
        snapshot = take_snapshot(self.student, self.optimizer, self.ema, keep=self.ranks.first)

        def save() -> None:
            metrics.flush()
            self._check_finite(snapshot)
            save_checkpoint(
                self.run,
                self.step,
                snapshot,
                self.stream.state_dict(),
                keep_last=self.config.keep_last,
                notice=self.report.notice,
                heldout=None if self.heldout is None else self.heldout.state_dict(),
            )

        self.ranks.from_first(save)

    def _check_finite(self, snapshot: Snapshot) -> None:
        """A step of finite gradients may still lead to weights or moments that are none."""
        for what, tensors in (
            ("the student's", snapshot.model),
            ("the optimiser's", snapshot.optimizer),
            ("the average's", snapshot.ema or {}),
        ):
            check_finite(tensors, what=what, step=self.step, lr=self._lr, besides=self.masks)

    @property
    def _lr(self) -> float:
        """Of the step that was taken last."""
        return learning_rate(max(0, self.step - 1), self.config)

    def _publish(self, name: str, *, anew: bool = True) -> bool:
        """Save the student as it is now in the run's folder.

        Args:
            name: of the folder.
            anew: False leaves it alone if it was published after this very step.

        Returns:
            Whether it was saved.
        """
        weights = None
        if self.gradients.sharded:
            model, keep = self.student.model, self.ranks.first
            named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            stored = model.state_dict().keys()
            weights = {n: whole(t, keep=keep) for n, t in named.items() if n in stored}
        folder, step = self.run / name, self.step

        def publish() -> bool:
            if not anew and is_published(
                folder, self.student, task=self.task, step=step, weights=weights
            ):
                return False
            publish_student(
                folder,
                self.student,
                self.tokenizer,
                task=self.task,
                step=step,
                lr=self._lr,
                besides={n.removeprefix("model.") for n in self.masks},
                notice=self.report.notice,
                weights=weights,
            )
            return True

        return self.ranks.from_first(publish)

    def _one_step(self, batch: Batch, stop: StopRequest) -> dict[str, float]:
        lr = learning_rate(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = self.loss.at(self.step)
        out = self.gradients.compute(loss, batch, self.step, lr=lr, stop=stop.asked)
        self.stopping = out.stop
        limit = self.config.clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), limit)
        if is_dealt_out(norm):
            norm = norm.full_tensor()
        self._check_norm(float(norm), lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "loss": out.loss,
            **out.means,
            "alpha": loss.alpha,
            "temperature": loss.temperature,
            "grad_norm": float(norm),
            "lr": lr,
            "epoch": self.stream.epoch,
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            / (1024 if sys.platform != "darwin" else 2**20),
            **self._peak_gpu(),
            "positions": out.positions,
        }

    def _check_norm(self, norm: float, lr: float) -> None:
        """Stop before weights and moments learn of it; all ranks together.

        Raises:
            RunError: the gradient is not finite on some rank.
        """
        for (found,) in self.ranks.gather([norm]):
            if not math.isfinite(found):
                raise not_finite(f"step {self.step + 1}: the gradient's norm is {found}", lr)

    def _peak_gpu(self) -> dict[str, float]:
        if self.device.type != "cuda":
            return {}
        return {"peak_gpu_mib": torch.cuda.max_memory_allocated(self.device) / 2**20}

    def _evaluated(self) -> dict[str, float]:
        """Measure the student on held-out rows if it is time; with --ema, its averaged weights."""
        heldout, config = self.heldout, self.config
        due = self.step % config.eval_every == 0 or self.step == config.steps
        if heldout is None or not due:
            return {}
        with self.ema.in_place() if self.ema is not None else nullcontext():
            self._check_weights()
            found = self._measure(heldout)
            if not math.isfinite(found.nll):
                raise not_finite(f"step {self.step}: the held-out loss is {found.nll}", self._lr)
            if heldout.record(self.step, found.nll):
                self._publish("best")
        if heldout.exhausted:
            self.report.notice(
                f"--patience {config.patience}: stopped after step {self.step}; the held-out loss was lowest "
                f"({heldout.best:.4f}) after step {heldout.best_step}: {self.run / 'best'}"
            )
        values = {"heldout_nll": found.nll, "heldout_accuracy": found.accuracy}
        return values if found.kl is None else values | {"heldout_kl": found.kl}

    def _check_weights(self) -> None:
        """Of weights that are not finite no score is one; all ranks stop together.

        Raises:
            RunError: some rank has one.
        """
        fine = all(is_finite(local(p.detach())) for p in self.student.parameters())
        if not all(f for (f,) in self.ranks.gather([fine])):
            raise not_finite(f"step {self.step}: a weight is NaN or infinite", self._lr)

    def _measure(self, heldout: HeldOut) -> Scores:
        def measure() -> Scores:
            return heldout.measure(self.student, self.device, batch_size=self.config.batch_size)

        if not self.gradients.sharded:
            return self.ranks.from_first(measure)
        with self.gradients.unsharded():  # all take part, and rank 0's numbers count
            found = measure()
        return self.ranks.from_first(lambda: found)

    def _finish(self, *, taken: bool) -> Path:
        """Publish what the run was for.

        Args:
            taken: whether a step was; of a run that had finished, only what is missing is made.
        """
        made = self._publish("student", anew=taken)
        if self.ema is not None:
            with self.ema.in_place():
                made = self._publish("student-ema", anew=taken) or made
        if made or taken:
            dropped = self.ranks.from_first(lambda: write_dropped(self.run, self.stream.store))
            if dropped:
                self.report.notice(dropped)
        else:
            self.report.notice(
                f"{self.run}: has finished, after step {self.step}; nothing is left to do"
            )
        return self.run / "student"
