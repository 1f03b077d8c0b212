"""The training loop, read from top to bottom: what `setup.py` made goes round until the run is done.

1. Go on from the newest checkpoint whose bytes are intact, if there is one.
2. A batch of the stream, an optimiser step (`step.py`), the average of the weights.
3. Now and then: evaluate on held-out rows, log, save a checkpoint; each is written by the first rank. Where an
   evaluation fails, the step is saved without it, and whoever goes on from there evaluates first.
4. At the end: publish the student.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from softlabels.core.progress import Reporter
from softlabels.errors import RunError, SoftLabelsError
from softlabels.store.reader import Store
from softlabels.store.waiting import WaitEnded
from trainers.data.batch import Batch
from trainers.data.mixing import MixedStream
from trainers.data.stream import SoftTargetStream
from trainers.data.tasks import Task
from trainers.evaluation.evaluate import evaluate
from trainers.evaluation.evaluations import Scores
from trainers.evaluation.heldout import HeldOut
from trainers.loss.schedules import LossSchedule
from trainers.run.checkpoint import load_checkpoint, newest_intact, save_checkpoint, take_snapshot
from trainers.run.config import RunConfig
from trainers.run.ema import Ema
from trainers.run.finite import check_finite, is_finite, not_finite
from trainers.run.folder import publish_student
from trainers.run.followed import settle_store
from trainers.run.length import Length
from trainers.run.metrics import Metrics
from trainers.run.reduce import Ranks
from trainers.run.sharded import local
from trainers.run.step import Optimisation, Taken
from trainers.run.stopping import StopRequest
from trainers.run.vocabulary import write_dropped
from trainers.students import Student


@dataclass(kw_only=True, eq=False)
class Loop:
    """A run in progress, on one of its ranks."""

    config: RunConfig
    run: Path
    """Its folder."""
    store_digest: str
    """What names its store from now on."""
    stream: SoftTargetStream | MixedStream
    student: Student
    loss: LossSchedule
    optimisation: Optimisation
    ema: Ema | None
    heldout: HeldOut | None
    ranks: Ranks
    device: torch.device
    task: Task
    tokenizer: Mapping[str, bytes]
    """Files that go beside the student."""
    length: Length
    report: Reporter
    masks: frozenset[str]
    """Buffers that hold infinities from the start."""
    step: int = 0
    """How many were taken."""
    _saved: int = 0
    """After how many the newest checkpoint was made."""
    _heldout_note: str = ""
    _unlogged: dict[str, float] | None = None
    """What is to be logged of the last step, once it is evaluated: it was saved before that."""

    def train(self) -> Path:
        """Take the steps that are left, from the newest checkpoint on; returns the folder of the finished student."""
        notice = self.report.notice
        checkpoint = self.ranks.from_first(lambda: newest_intact(self.run, notice))
        if checkpoint is not None:
            self._resume(checkpoint)
        # Not before the stream took the state: until then the store may be another.
        self.ranks.from_first(lambda: settle_store(self.run, self.store_digest))
        settled = self.ranks.from_first(
            lambda: self.length.settle(self.run, self.config, self.step)
        )
        if settled is not None:
            notice(settled)
        if checkpoint is not None:
            if self._done:
                return self._finish(taken=False)
            notice(f"resuming after step {self.step} from {checkpoint}")
        metrics = Metrics(self.run, self.config.track, notice)
        logged = self.step if self._unlogged is None else self.step - 1
        self.ranks.from_first(lambda: metrics.open(logged))
        self.report.stage("train", self.config.steps, "steps", logged)
        try:
            self._steps(metrics)
        finally:
            metrics.close()
        return self._finish(taken=True)

    def _resume(self, checkpoint: Path) -> None:
        optimizer, checked = self.optimisation.optimizer, self.ranks.first
        found = load_checkpoint(checkpoint, self.student, optimizer, self.ema, checked=checked)
        self.step, self._unlogged = found.step, found.unlogged
        self._saved = self.step
        self.stream.load_state_dict(found.stream)
        if self.heldout is not None and found.heldout is not None:
            self.heldout.load_state_dict(found.heldout, where=checkpoint)

    @property
    def _done(self) -> bool:
        exhausted = self.heldout is not None and self.heldout.exhausted
        return self._unlogged is None and (self.step >= self.config.steps or exhausted)

    def _steps(self, metrics: Metrics) -> None:
        with (
            closing(iter(self.stream)) as batches,
            StopRequest(patient=self.ranks.several, wake=self.stream.stop_waiting) as stop,
        ):
            if self._unlogged is not None:
                self._evaluate_and_log(metrics, self._unlogged)
                self._save(metrics)
            while not self._done:
                start = time.perf_counter()
                batch = self._awaited(batches, metrics)
                waited = time.perf_counter() - start
                taken = self.optimisation.take(
                    self.loss.at(self.step), batch, self.step, stop=stop.asked
                )
                values = taken.values | self._costs(taken, time.perf_counter() - start, waited)
                self.step += 1
                if self.ema is not None:
                    self.ema.update(self.step)
                self._evaluate_and_log(metrics, values)
                if taken.stop or self._done or self.step % self.config.checkpoint_every == 0:
                    self._save(metrics)
                if taken.stop and not self._done:
                    self.report.notice(f"saved after step {self.step}; --resume goes on from there")
                    raise KeyboardInterrupt

    def _awaited(self, batches: Iterator[Batch], metrics: Metrics) -> Batch:
        """The next batch; where there is none, what was learnt is saved before the run stops.

        Of several processes only some may have met that, so they go back to the newest checkpoint.
        """
        try:
            return self._next(batches)
        except (WaitEnded, RunError):
            if self.step > self._saved and not self.ranks.several:
                self._try_to_save(metrics)
            if self._saved:
                self.report.notice(f"saved after step {self._saved}; --resume goes on from there")
            raise

    def _try_to_save(self, metrics: Metrics) -> None:
        """Of two errors, what stops the run is the one to raise."""
        try:
            self._save(metrics)
        except SoftLabelsError as e:
            self.report.notice(f"step {self.step} is not saved: {e}")

    def _next(self, batches: Iterator[Batch]) -> Batch:
        try:
            return next(batches)
        except Exception as e:
            first, last = self.stream.offset, self.stream.offset + self.config.batch_size - 1
            rank = f"rank {self.ranks.rank}: " if self.ranks.several else ""
            raise RunError(
                f"{rank}step {self.step + 1}: rows {first} to {last} of the run's order cannot be read: {e}"
            ) from e

    def _costs(self, taken: Taken, seconds: float, waited: float) -> dict[str, float]:
        mib = 1024 if sys.platform != "darwin" else 2**20
        costs = {
            "epoch": self.stream.epoch,
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / mib,
        }
        if self.device.type == "cuda":
            costs["peak_gpu_mib"] = torch.cuda.max_memory_allocated(self.device) / 2**20
        return costs | {
            "seconds": seconds,
            "loader_wait": waited,
            "positions_per_second": taken.positions / seconds,
        }

    def _log(self, metrics: Metrics, values: dict[str, float], *, always: bool) -> None:
        step, config = self.step, self.config
        logged = always or step % config.log_every == 0 or step in (1, config.steps)
        if logged:
            self.ranks.from_first(lambda: metrics.write(step, values))
        self.report.advance(1, self._note(values) if logged else None)

    def _note(self, values: dict[str, float]) -> str:
        """What people are shown of a step that is logged."""
        if "heldout_nll" in values:
            self._heldout_note = f", held-out {values['heldout_nll']:.3f}"
        return (
            f"loss {values['loss']:.3f}, hard {values['hard']:.3f}, {values['positions_per_second']:,.0f} positions/s"
            f"{self._heldout_note}"
        )

    def _save(self, metrics: Metrics) -> None:
        optimizer = self.optimisation.optimizer
        snapshot = take_snapshot(self.student, optimizer, self.ema, keep=self.ranks.first)

        def save() -> None:
            metrics.flush()
            # A step of finite gradients may still lead to weights or moments that are none.
            whose = {
                "model": "the student's",
                "optimizer": "the optimiser's",
                "ema": "the average's",
            }
            for name, tensors in snapshot.items():
                what, masks = whose[name], self.masks
                check_finite(tensors, what=what, step=self.step, lr=self._lr, besides=masks)
            save_checkpoint(
                self.run,
                self.step,
                snapshot,
                self.stream.state_dict(),
                keep_last=self.config.keep_last,
                notice=self.report.notice,
                heldout=None if self.heldout is None else self.heldout.state_dict(),
                unlogged=self._unlogged,
            )

        self.ranks.from_first(save)
        self._saved = self.step

    @property
    def _lr(self) -> float:
        """Of the step that was taken last."""
        return self.config.learning_rate(max(0, self.step - 1))

    def _evaluate_and_log(self, metrics: Metrics, values: dict[str, float]) -> None:
        """Log the values of the step that was taken, with what the student is worth then, if it is time for that."""
        heldout, config = self.heldout, self.config
        due = self.step % config.eval_every == 0 or self.step == config.steps
        evaluated: dict[str, float] = {}
        if heldout is not None and due:
            self._unlogged = values
            evaluated = self._evaluated(heldout, metrics)
        self._unlogged = None
        self._log(metrics, values | evaluated, always=bool(evaluated))

    def _evaluated(self, heldout: HeldOut, metrics: Metrics) -> dict[str, float]:
        """Measure the student on held-out rows; with --ema, its averaged weights."""
        config = self.config
        failed: Exception | None = None
        with self.ema.in_place() if self.ema is not None else nullcontext():
            self._check_weights()
            try:
                found = self._scores(heldout.store)
            except Exception as e:
                failed = e  # raised once the student's own weights are back
            else:
                if not math.isfinite(found.nll):
                    where = f"step {self.step}: the held-out loss is {found.nll}"
                    raise not_finite(where, self._lr)
                if heldout.record(self.step, found.nll):
                    self._publish("best")
        if failed is not None:
            self._save_unevaluated(metrics)
            raise failed
        if heldout.exhausted:
            self.report.notice(
                f"--patience {config.patience}: stopped after step {self.step}; the held-out loss was lowest "
                f"({heldout.best:.4f}) after step {heldout.best_step}: {self.run / 'best'}"
            )
        values = {"heldout_nll": found.nll, "heldout_accuracy": found.accuracy}
        return values if found.kl is None else values | {"heldout_kl": found.kl}

    def _scores(self, store: Store) -> Scores:
        device, rows = str(self.device), self.config.batch_size
        return self.optimisation.on_whole(
            lambda: evaluate(self.student, store, device=device, batch_size=rows)
        )

    def _save_unevaluated(self, metrics: Metrics) -> None:
        """Save the step whose evaluation failed.

        Processes that share the weights do not: where one has failed, the others still wait for its part.
        """
        if self.step > self._saved and not (self.ranks.several and self.config.parallel == "fsdp"):
            self._try_to_save(metrics)
        if self._saved:
            self.report.notice(
                f"the evaluation after step {self.step} failed; saved after step {self._saved}: --resume goes on from "
                "there, on another --heldout if none was evaluated yet, or without one"
            )

    def _check_weights(self) -> None:
        """Of weights that are not finite no score is one; all ranks stop together."""
        fine = all(is_finite(local(p.detach())) for p in self.student.parameters())
        if not all(f for (f,) in self.ranks.gather([fine])):
            raise not_finite(f"step {self.step}: a weight is NaN or infinite", self._lr)

    def _publish(self, name: str, *, anew: bool = True) -> bool:
        """Save the student as it is now, as `publish_student`; returns whether it was saved."""
        weights = self.optimisation.whole_weights()
        return self.ranks.from_first(
            lambda: publish_student(
                self.run / name,
                self.student,
                self.tokenizer,
                task=self.task,
                step=self.step,
                lr=self._lr,
                besides={n.removeprefix("model.") for n in self.masks},
                notice=self.report.notice,
                weights=weights,
                anew=anew,
            )
        )

    def _finish(self, *, taken: bool) -> Path:
        """Publish what the run was for; of a run that had finished, and took no step, only what is missing."""
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
