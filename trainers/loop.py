"""The training loop.

The flow of a step: one batch from the stream -> micro-batches -> body in mixed precision -> loss on the
head in chunks -> gradients, normalised by the positions of the whole step -> clip -> AdamW.

On a CPU the result is a function of config and store alone, to the bit, wherever it was interrupted.
"""

from __future__ import annotations

import json
import math
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

import softlabels
from softlabels.devices import Choice, choose
from softlabels.errors import RunError
from softlabels.store.reader import Store
from trainers.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    publish_folder,
    save_checkpoint,
    write_json,
)
from trainers.config import RunConfig
from trainers.kernels import apply_kernels
from trainers.losses import LossOutput
from trainers.metrics import Metrics
from trainers.mixing import Weight, make_stream, mixture_digest, open_stores
from trainers.schedules import LossSchedule
from trainers.stopping import StopRequest
from trainers.stream import Batch
from trainers.students import Student, check_tokenizer, check_vocab, make_student
from trainers.vocabulary import check_same_view, renumbers, view_facts, write_dropped

__all__ = ["RunReporter", "learning_rate", "split_batch", "train"]


class RunReporter(Protocol):
    """Told how a run goes."""

    def notice(self, message: str) -> None:
        """A line for people."""

    def start(self, done: int, steps: int) -> None:
        """Training begins after `done` of `steps`."""

    def step(self, metrics: dict[str, float] | None) -> None:
        """A step was taken; metrics on the steps that are logged."""


class Silent:
    """Reports nothing."""

    def notice(self, message: str) -> None:
        """Say nothing."""

    def start(self, done: int, steps: int) -> None:
        """Say nothing."""

    def step(self, metrics: dict[str, float] | None) -> None:
        """Say nothing."""


def learning_rate(step: int, config: RunConfig) -> float:
    """Of the step numbered from 0: linear warm-up, then a cosine down to `min_lr` of the peak."""
    warmup = config.warmup_steps
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    low = config.min_lr
    return config.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def split_batch(batch: Batch, parts: int) -> Iterator[Batch]:
    """Micro-batches of consecutive rows, as rectangles of the batch's width."""
    if parts == 1:
        yield batch
        return
    rows, width = batch.input_ids.shape
    each = rows // parts
    row_of = batch.flat_positions // width
    for i in range(parts):
        here = slice(i * each, (i + 1) * each)
        inside = (row_of >= i * each) & (row_of < (i + 1) * each)
        start, stop = int((row_of < i * each).sum()), int((row_of < (i + 1) * each).sum())
        yield Batch(
            rows=batch.rows[here],
            input_ids=batch.input_ids[here],
            position_ids=None if batch.position_ids is None else batch.position_ids[here],
            flat_positions=batch.flat_positions[inside] - i * each * width,
            labels=batch.labels[inside],
            targets=batch.targets[start:stop],
        )


def train(
    config: RunConfig, run: Path | str, *, resume: bool = False, reporter: RunReporter | None = None
) -> Path:
    """Train a student, or go on with a run that was interrupted.

    Args:
        config: the run; with `resume` it must be the run's own.
        run: its folder.
        resume: continue from the newest checkpoint.
        reporter: told of progress.

    Returns:
        The folder of the finished student.

    Raises:
        RunError: the folder holds a run already, or another one.
        PairingError, TokenizerError: loss, student and store do not go together.
    """
    report = reporter or Silent()
    run = Path(run)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    stores = open_stores(config.store, view=config.vocab)
    store = stores[0][0]  # in what is asked of it below, all are alike
    loss = config.make_loss().on(store.manifest.identity.targets)
    for notice in loss.notices(store.manifest.identity.targets):
        report.notice(notice)
    recorded = _read_run(run, resume=resume)
    dtype = recorded["dtype"] if recorded and config.dtype == "auto" else config.dtype
    choice = choose(config.device, dtype)
    report.notice(f"student: {choice.reason}")
    student = make_student(config.student, seed=config.seed)
    check_vocab(student, store, where=f"--student {config.student}")
    if renumbers(store):
        report.notice(
            f"--vocab {config.vocab}: the ids are renumbered on your word; the student's tokenizer is neither compared "
            "with the store's nor saved beside it"
        )
    elif student.source is not None:
        check_tokenizer(student.source, store, where=f"--student {config.student}")
    apply_kernels(config.kernels, student, choice.device)
    facts = {
        "config": config.to_dict(),
        "store_digest": mixture_digest(stores),
        "view": view_facts(store),
        "tokenizer_sha256": store.manifest.identity.tokenizer.sha256,
        "parameters": student.parameter_count,
        "dtype": choice.dtype_name,
        "softlabels": softlabels.__version__,
        "torch": torch.__version__,
    }
    if recorded:
        _check_same_run(recorded, facts, run)
    else:
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / "run.json", facts)
    return _Trainer(config, run, stores, student, loss, choice, report).train()


def _read_run(run: Path, *, resume: bool) -> dict[str, Any] | None:
    path = run / "run.json"
    if not path.exists():
        if run.is_dir() and any(run.iterdir()):
            raise RunError(f"{run}: is not empty and not a run; choose another --out")
        return None  # nothing to resume yet: a run killed before it began is begun
    if not resume:
        raise RunError(
            f"{run}: holds a run already; pass --resume to go on with it, or choose another --out"
        )
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise RunError(f"{path}: cannot be read ({e}); choose another --out") from e
    return dict(facts)


def _check_same_run(recorded: dict[str, Any], facts: dict[str, Any], run: Path) -> None:
    """A resumed run must be the same run; where files lie, how often to log and on what is free."""
    free = {
        "store",
        "vocab",
        "log_every",
        "checkpoint_every",
        "keep_last",
        "threads",
        "device",
        "dtype",
    }
    if recorded["store_digest"] != facts["store_digest"]:
        raise RunError(
            f"{run}: was begun on store {recorded['store_digest'][:12]}…, this is {facts['store_digest'][:12]}…"
        )
    check_same_view(recorded, facts, run)
    if recorded["dtype"] != facts["dtype"]:
        raise RunError(
            f"{run}: was begun in {recorded['dtype']}, this would go on in {facts['dtype']}; "
            f"pass --dtype {recorded['dtype']}"
        )
    for name, value in facts["config"].items():
        if name not in free and _recorded(recorded, name) != value:
            raise RunError(
                f"{run}: was begun with {name} = {recorded['config'].get(name)!r}, this has {value!r}; resume it as it "
                "was begun, or choose another --out"
            )


def _recorded(facts: dict[str, Any], name: str) -> Any:
    """A setting of a run; runs from before it existed were run with its default."""
    return facts["config"].get(name, getattr(RunConfig, name, None))


class _Trainer:
    """State of a run in progress."""

    def __init__(
        self,
        config: RunConfig,
        run: Path,
        stores: Sequence[tuple[Store, Weight]],
        student: Student,
        loss: LossSchedule,
        choice: Choice,
        report: RunReporter,
    ) -> None:
        self.config, self.run, self.loss, self.report = config, run, loss, report
        self.device, self.dtype = choice.device, choice.dtype
        self.student = student.to(self.device).train()
        self.mixed = self.dtype != torch.float32
        self.student.head_dtype = self.dtype if self.mixed else None
        self.optimizer = torch.optim.AdamW(
            self._groups(),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            fused=False,
            foreach=False,
        )
        self.stream = make_stream(stores, batch_size=config.batch_size, seed=config.seed)
        self.step = 0

    def _groups(self) -> list[dict[str, Any]]:
        decayed = [p for p in self.student.parameters() if p.dim() >= 2]
        plain = [p for p in self.student.parameters() if p.dim() < 2]
        return [
            {"params": decayed, "weight_decay": self.config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]

    def train(self) -> Path:
        checkpoint = latest_checkpoint(self.run)
        if checkpoint is not None:
            self.step, state = load_checkpoint(checkpoint, self.student, self.optimizer)
            self.stream.load_state_dict(state)
            self.report.notice(f"resuming after step {self.step} from {checkpoint}")
        metrics = Metrics(self.run, self.step)
        self.report.start(self.step, self.config.steps)
        try:
            self._steps(metrics)
        finally:
            metrics.close()
        return self._finish()

    def _steps(self, metrics: Metrics) -> None:
        if self.step >= self.config.steps:
            return
        batches = iter(self.stream)
        try:
            with StopRequest() as stop:
                while self.step < self.config.steps:
                    self._logged_step(batches, metrics)
                    if stop.asked or self._checkpoint_due():
                        metrics.flush()
                        self._save()
                    if stop.asked and self.step < self.config.steps:
                        self.report.notice(
                            f"saved after step {self.step}; --resume goes on from there"
                        )
                        raise KeyboardInterrupt
        finally:
            batches.close()

    def _logged_step(self, batches: Iterator[Batch], metrics: Metrics) -> None:
        start = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - start
        values = self._one_step(batch)
        values["seconds"] = time.perf_counter() - start
        values["loader_wait"] = waited
        values["positions_per_second"] = batch.positions / values["seconds"]
        self.step += 1
        logged = self.step % self.config.log_every == 0 or self.step in (1, self.config.steps)
        if logged:
            metrics.write(self.step, values)
        self.report.step(values if logged else None)

    def _checkpoint_due(self) -> bool:
        return self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps

    def _save(self) -> None:
        save_checkpoint(
            self.run,
            self.step,
            self.student,
            self.optimizer,
            self.stream.state_dict(),
            keep_last=self.config.keep_last,
        )

    def _one_step(self, batch: Batch) -> dict[str, float]:
        lr = learning_rate(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        positions, soft_positions = batch.positions, batch.soft_positions
        step_loss = self.loss.at(self.step)
        soft_divisor = step_loss.soft_divisor(batch)
        loss, sums = 0.0, dict.fromkeys(LossOutput._fields[1:], 0.0)
        for micro in split_batch(batch, self.config.accumulate):
            if micro.positions == 0:
                continue
            moved = micro.to(self.device)
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.mixed):
                hidden = self.student.hidden(moved)
            out = step_loss(
                hidden,
                self.student.head(),
                moved,
                positions=positions,
                soft_positions=soft_divisor,
            )
            out.loss.backward()  # type: ignore[no-untyped-call]
            loss += out.loss.item()
            for name in sums:
                sums[name] += getattr(out, name)
        if not math.isfinite(loss):
            raise RunError(
                f"{self.run}: the loss is {loss} at step {self.step + 1}, rows {list(batch.rows)}; lower --lr "
                "or use --dtype float32. The last checkpoint is intact: --resume goes on from it"
            )
        limit = self.config.clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        n, m = max(positions, 1), max(soft_positions, 1)
        return {
            "loss": loss,
            "soft": sums["soft"] / m,
            "hard": sums["hard"] / n,
            "soft_weighted": sums["soft_weighted"] / (soft_divisor or 1.0),
            "hard_part": sums["hard_part"] / n,
            "teacher_tail": sums["teacher_tail"] / m,
            "student_tail": sums["student_tail"] / m,
            "agreement": sums["agreement"] / m,
            "alpha": step_loss.alpha,
            "temperature": step_loss.temperature,
            "grad_norm": float(norm),
            "lr": lr,
            "epoch": self.stream.epoch,
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            / (1024 if sys.platform != "darwin" else 2**20),
            **self._peak_gpu(),
        }

    def _peak_gpu(self) -> dict[str, float]:
        if self.device.type != "cuda":
            return {}
        return {"peak_gpu_mib": torch.cuda.max_memory_allocated(self.device) / 2**20}

    def _finish(self) -> Path:
        final = self.run / "student"
        temporary = self.run / ".tmp-student"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        self.student.save(temporary)
        store = self.stream.store
        for name in sorted(store.manifest.files):
            if name.startswith("tokenizer/") and not renumbers(store):
                (temporary / name.removeprefix("tokenizer/")).write_bytes(store.file(name))
        if dropped := write_dropped(self.run, store):
            self.report.notice(dropped)
        publish_folder(temporary, final)
        return final
