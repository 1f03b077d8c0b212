"""What a training run is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from softlabels.core.settings import Group, check_at_least, check_fits, from_sources
from softlabels.errors import ConfigError
from softlabels.store.remote.cache import CacheOptions
from trainers.trackers import check_track

if TYPE_CHECKING:
    from softlabels.store.demand import Demand
    from trainers.loss.schedules import LossSchedule
T = TypeVar("T")
Data = Annotated[T, Group("Data")]
Model = Annotated[T, Group("Student")]
Loss = Annotated[T, Group("Loss")]
Schedule = Annotated[T, Group("Schedule and optimiser")]
HeldOut = Annotated[T, Group("Held-out rows")]
Saving = Annotated[T, Group("Checkpoints and logs")]
Devices = Annotated[T, Group("Devices")]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: store, student, loss, schedule."""

    store: Data[tuple[str, ...] | str]
    """Store to train from, a path or an address (`s3://…`); repeatable as `PATH=WEIGHT`, the weight being its share of
    the rows."""
    student: Model[str | None] = None
    """Student to train: `new:SIZE` makes one that fits the store, as `new:10M`. `hf-config:FILE` reads a configuration
    (`softtrain student --help` shows one). `layers-of:PATH?keep=…` and `hf:PATH` begin from a model's weights:
    `hf:PATH?fake-quant=int4-g64` with a grid of few bits, `hf:PATH?lora=r:16` with an adapter beside it, `&quant=nf4`
    over a base of few bits. For images also `cnn:WIDTHxDEPTH`, `timm:NAME` and `torchvision:NAME`."""
    same_tokenizer: Model[bool] = False
    """Take a pretrained student's tokenizer for the store's where one of the two is not there to be compared, or
    calls added tokens otherwise; recorded in run.json."""
    freeze: Model[tuple[str, ...]] = ()
    """Part of the student that does not learn: `head` or `embeddings` (repeatable)."""
    key: Data[str | None] = None
    """PEM file of the public key of whoever must have signed each --store (`softlabels sign`)."""
    digest: Data[tuple[str, ...]] = ()
    """Content digest that the store must have, its first 16 digits or more; with several stores one for each --store,
    in the same order."""
    release: Data[tuple[str, ...]] = ()
    """Name that the store must be signed with: `NAME`, or `NAME@VERSION` for that version or a later one. With several
    stores give one for each --store, in the same order. It needs --key."""
    init: Model[str | None] = None
    """Run whose finished student goes on, with another store, instead of --student; recorded in run.json."""
    images: Data[tuple[str, ...]] = ()
    """Images of a store of images, as it was built from them, e.g. `arrays:FILE.npz`."""
    vocab: Data[str | None] = None
    """Read the store in another vocabulary, the student's: `trim:N`, or `map:FILE` (new id of each id, or -1)."""
    inputs: Data[str | None] = None
    """Store that holds the inputs of a store without (`softlabels subset --drop-inputs`); joined by digest."""
    follow: Data[bool] = False
    """Begin while builders are at work on the store, and wait for its shards as they come, in the order `plan`. The run
    is to the bit that of `--order plan` on the finished store."""
    order: Data[str | None] = None
    """Order of rows: `corpus`, the same for all stores of one corpus, whatever they keep of it, so that runs on them
    can be compared; or `store`, another for each. `plan` is as `corpus`, but its first epoch goes from the first row to
    the last. Default `corpus`; a run that goes on keeps its own."""
    lanes: Data[int | None] = None
    """Lanes of the order of rows, a divisor of --batch-size: each process decodes the shards of its own lanes only.
    Choose a multiple of the processes you will ever use; the batches are then the same on any number of them. Default
    the most that divide --batch-size, up to 16; a run that goes on keeps its own."""
    loss: Loss[str] = "forward_kl"
    """Soft loss: `forward_kl`, `reverse_kl`, `jsd`, `tvd`, `skewed_forward_kl` or `skewed_reverse_kl`; or
    `sampled_reverse_kl`, of text that the student of --init wrote, scored by the teacher that taught it."""
    teacher_states: Loss[str | None] = None
    """Folder of the teacher's states (`softlabels states`): full distillation, from all of the teacher's distribution
    in place of the store's targets; exact at any temperature, for any loss."""
    temperature: Loss[float] = 1.0
    """Temperature T of the soft loss; must be in the store's grid."""
    temperature_schedule: Loss[str | None] = None
    """T over the steps: `linear:END` or `cosine:END`, in stairs through the store's grid; default constant."""
    alpha: Loss[float] = 0.5
    """Share of the soft loss; 0 trains on hard labels only."""
    alpha_schedule: Loss[str | None] = None
    """Alpha over the steps: `linear:END` or `cosine:END`; default constant."""
    weight: Loss[str] = "even"
    """Weight of a position in the soft loss: `even`, the teacher's `entropy`, or `hard` (1 - its probability of the
    label)."""
    label_smoothing: Loss[float] = 0.0
    """Label smoothing of the hard loss: share of the label that is spread evenly over the vocabulary."""
    z_loss: Loss[float] = 0.0
    """Weight of the squared log-sum-exp of the logits in the hard loss; 1e-4 keeps logits from drifting."""
    cosine: Loss[float] = 0.0
    """Weight of a loss on hidden states: 1 - the cosine between the student's last and the teacher's. The store must
    be built with `--hidden`, and student and teacher must be equally wide."""
    beta: Loss[float] = 0.5
    """Share of the teacher in the mixture of `jsd`."""
    skew: Loss[float] = 0.1
    """Share mixed in by the skewed losses."""
    steps: Schedule[int] = 1000
    """Optimiser steps of the whole run."""
    epochs: Schedule[float | None] = None
    """Passes over the store, in place of --steps; may be a fraction. With several stores, over the one that is passed
    most often."""
    batch_size: Schedule[int] = 8
    """Rows in an optimiser step, over all processes together."""
    accumulate: Devices[int] = 1
    """Micro-batches in a step, over all processes together, at least one on each; must divide batch_size."""
    batch_tokens: Devices[int | None] = None
    """Most tokens of a micro-batch, padding included, in place of --accumulate: the rows of a step are put together by
    length, in as few micro-batches as hold them. Memory is then that of so many tokens, however long rows are."""
    exact_ranks: Devices[bool] = False
    """Add up micro-batches so that CPU runs with the same accumulate, a power of two, agree to the bit on 1, 2, 4, … up
    to accumulate processes. It takes memory: log2(micro-batches on a process) - 1 more copies of the gradients."""
    parallel: Devices[str] = "ddp"
    """How several processes share a student: `ddp`, each holds all of it; `fsdp`, each holds a part of its weights and
    optimiser."""
    lr: Schedule[float] = 1e-3
    """Peak learning rate."""
    warmup: Schedule[int | None] = None
    """Steps of linear warm-up; default 5 % of the run."""
    min_lr: Schedule[float] = 0.1
    """Learning rate at the end of the cosine, as a share of the peak."""
    weight_decay: Schedule[float] = 0.1
    """Weight decay of matrices; vectors and biases are not decayed."""
    beta1: Schedule[float] = 0.9
    """Decay of AdamW's first moment."""
    beta2: Schedule[float] = 0.95
    """Decay of AdamW's second moment."""
    clip: Schedule[float] = 1.0
    """Largest norm of the gradient, to which larger ones are scaled down; 0: no limit."""
    ema: Model[float | None] = None
    """Keep an average of the weights as well; each step leaves this share of it (0.999: about the last 1000 steps)."""
    heldout: HeldOut[str | None] = None
    """Store of held-out rows to evaluate on; the best student so far is kept in OUT/best."""
    heldout_images: HeldOut[tuple[str, ...]] = ()
    """Images of a held-out store of images."""
    forgetting: HeldOut[tuple[str, ...]] = ()
    """Store whose rows the student should not unlearn (repeatable): evaluated before the first step and after the
    last, reported and kept in OUT/forgetting.json."""
    eval_every: HeldOut[int] = 200
    """Steps between evaluations on the held-out store; the last step always makes one."""
    patience: HeldOut[int | None] = None
    """Stop after this many evaluations in a row without a lower held-out loss; default never."""
    seed: Schedule[int] = 0
    """Seed of the student's first weights and of the order of rows."""
    device: Devices[str] = "auto"
    """Where to train: `auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: Devices[str] = "auto"
    """`float32`, or `bfloat16` for mixed precision; auto takes bfloat16 where it was measured to pay."""
    kernels: Devices[str] = "torch"
    """`torch`, or `liger` for Liger's norms, rotary embedding and gated MLP in the student (CUDA only)."""
    chunk_mib: Devices[int | None] = None
    """MiB of logits in memory at a time; default 64 on a CPU, 256 on a GPU."""
    log_every: Saving[int] = 10
    """Steps between lines of metrics.jsonl."""
    track: Saving[tuple[str, ...]] = ()
    """Tracker to log to besides metrics.jsonl (repeatable): `tensorboard`, `wandb`, `trackio` or `mlflow`, with
    parameters of its own as in `wandb?project=NAME`; or `none`. Default TensorBoard, where it is installed."""
    checkpoint_every: Saving[int] = 200
    """Steps between checkpoints; the last step always makes one."""
    keep_last: Saving[int] = 2
    """Checkpoints to keep."""
    threads: Devices[int | None] = None
    """CPU threads; default all cores."""
    cache: Data[str | None] = None
    """Folder for files of stores at an address; default SOFTLABELS_CACHE, or the user's cache folder."""
    cache_gib: Data[float | None] = None
    """GiB of cached files to keep, those used last; 0: none. Default SOFTLABELS_CACHE_GIB, or 32."""

    def __post_init__(self) -> None:
        if not isinstance(self.store, str) and len(self.store) == 1:
            object.__setattr__(self, "store", self.store[0])
        if (self.student is None) == (self.init is None):
            raise ConfigError(
                "--student is missing (or 'student' in the config file); or go on from a run's with --init RUN"
                if self.student is None
                else f"--init {self.init}: is the student; leave out --student {self.student}"
            )
        if self.order is not None:
            from trainers.data.order import check_order  # numpy, which --help can do without

            check_order(self.order, self.lanes)
        if self.lanes is not None:
            from trainers.data.lanes import check_lanes  # likewise

            check_lanes(self.lanes, self.batch_size)
        for flag, given, why in (
            ("--vocab", self.vocab, "what a view drops is reported of one store only"),
            ("--inputs", self.inputs, "join inputs and targets in a store each, or train on one"),
            (
                "--teacher-states",
                self.teacher_states,
                "the rows of a mixture are of several teachers",
            ),
        ):
            if given is not None and not isinstance(self.store, str):
                raise ConfigError(
                    f"{flag} {given}: goes with one --store, not with {len(self.store)}; {why}"
                )
        if self.teacher_states is not None and self.weight != "even":
            raise ConfigError(
                f"--weight {self.weight}: is read from the store's targets, which --teacher-states does without; leave "
                "one of the two out"
            )
        self._check_follow()
        check_track(self.track)
        self.demands()
        self.make_loss()
        self._check_own_text()
        self.cache_options.resolved()
        check_at_least(
            self,
            steps=1,
            batch_size=1,
            accumulate=1,
            batch_tokens=1,
            log_every=1,
            checkpoint_every=1,
            keep_last=1,
            eval_every=1,
            patience=1,
            warmup=0,
            chunk_mib=1,
            threads=1,
            seed=0,
        )
        if self.epochs is not None and self.steps != RunConfig.steps:
            raise ConfigError("--steps and --epochs say the same in two ways; give one")
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"--accumulate {self.accumulate}: must divide --batch-size {self.batch_size}"
            )
        if self.batch_tokens is not None and (self.accumulate > 1 or self.exact_ranks):
            raise ConfigError(
                "--batch-tokens says by itself how many micro-batches a step has; leave --accumulate and --exact-ranks "
                "out"
            )
        if self.parallel == "fsdp" and self.exact_ranks:
            raise ConfigError(
                "--exact-ranks: does not go with --parallel fsdp, whose sums have an order of their own; use ddp"
            )
        if self.patience is not None and self.heldout is None:
            raise ConfigError(
                f"--patience {self.patience}: nothing is evaluated to be patient about; give --heldout STORE, too"
            )
        if self.heldout_images and self.heldout is None:
            raise ConfigError("--heldout-images: there is no held-out store; give --heldout, too")
        for part in self.freeze:
            if part not in ("head", "embeddings"):
                raise ConfigError(f"--freeze {part}: expected head or embeddings")
        epochs, ema = self.epochs, self.ema
        check_fits(
            self,
            epochs=(epochs is None or 0 < epochs < 1e6, "a number above 0, such as 3 or 0.5"),
            parallel=(self.parallel in ("ddp", "fsdp"), "ddp or fsdp"),
            ema=(ema is None or 0 < ema < 1, "a share between 0 and 1, such as 0.999"),
            dtype=(
                self.dtype in ("auto", "float32", "bfloat16"),
                "auto, float32 or bfloat16 (float16 gradients underflow)",
            ),
            kernels=(self.kernels in ("torch", "liger"), "torch or liger"),
            lr=(0 < self.lr < 100, "a number above 0 (and below 100)"),
            min_lr=(0 <= self.min_lr <= 1, "0 to 1"),
            weight_decay=(0 <= self.weight_decay < float("inf"), "at least 0"),
            clip=(0 <= self.clip < float("inf"), "at least 0"),
            beta1=(0 <= self.beta1 < 1, "at least 0 and below 1"),
            beta2=(0 <= self.beta2 < 1, "at least 0 and below 1"),
        )

    def _check_follow(self) -> None:
        """Refuse what does not go with a store that is not finished."""
        if not self.follow:
            return
        for flag, given, why in (
            ("--order", self.order not in (None, "plan"), "only that of plan is known beforehand"),
            ("--lanes", self.lanes not in (None, 1), "each begins at another place of the store"),
            ("--store", not isinstance(self.store, str), "one store is followed, not several"),
            ("--key", self.key, "a store is signed when it is finished"),
            ("--digest", self.digest, "a store has its content digest when it is finished"),
            ("--release", self.release, "a store has its release when it is finished"),
        ):
            if given:
                raise ConfigError(f"--follow: does not go with this {flag}: {why}; leave one out")

    def _check_own_text(self) -> None:
        """Refuse what does not go with a loss on the student's own text."""
        if self.loss != "sampled_reverse_kl":
            return
        if self.init is None:
            raise ConfigError(
                f"--loss {self.loss}: learns from text that a run's student wrote; name that run with --init RUN"
            )
        if self.teacher_states is not None:
            raise ConfigError(
                f"--teacher-states {self.teacher_states}: --loss {self.loss} reads the store's own log-probabilities; "
                "leave one of the two out"
            )

    @property
    def cache_options(self) -> CacheOptions:
        """Where files of remote stores are kept."""
        return CacheOptions(folder=self.cache, gib=self.cache_gib)

    def demands(self) -> list[Demand]:
        """What each store must be.

        Raises:
            ConfigError: not one for each store, or no such digest or release.
        """
        from softlabels.store.demand import demands_for  # numpy, which --help can do without

        stores = 1 if isinstance(self.store, str) else len(self.store)
        return demands_for(stores, key=self.key, digest=self.digest, release=self.release)

    @property
    def student_spec(self) -> str:
        """`name:argument` of the student."""
        return self.student if self.student is not None else f"hf:{self.init}/student"

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up, resolved."""
        return self.warmup if self.warmup is not None else max(1, self.steps // 20)

    def learning_rate(self, step: int) -> float:
        """Of the step numbered from 0: linear warm-up, then a cosine down to `min_lr` of the peak."""
        warmup, low = self.warmup_steps, self.min_lr
        if step < warmup:
            return self.lr * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))

    def micro_batches(self, world_size: int) -> int:
        """Micro-batches of a step on each of `world_size` processes.

        Raises:
            ConfigError: batch or micro-batches cannot be dealt out equally.
        """
        least = max(self.accumulate, world_size)
        for flag, number in (("--batch-size", self.batch_size), ("--accumulate", least)):
            if number % world_size:
                raise ConfigError(
                    f"{flag} {number}: {world_size} processes cannot share it equally; expected a multiple of "
                    f"{world_size}"
                )
        return least // world_size

    def make_loss(self) -> LossSchedule:
        """The loss this run minimises, step by step."""
        from trainers.loss.losses import DistillLoss  # torch, which --help can do without
        from trainers.loss.schedules import LossSchedule

        loss = DistillLoss(
            divergence=self.loss,
            temperature=self.temperature,
            alpha=self.alpha,
            beta=self.beta,
            skew=self.skew,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            cosine=self.cosine,
            chunk_bytes=None if self.chunk_mib is None else self.chunk_mib * 2**20,
        )
        return LossSchedule.parse(loss, self.steps, self.alpha_schedule, self.temperature_schedule)

    @classmethod
    def from_sources(cls, toml: Path | None, flags: Mapping[str, Any]) -> RunConfig:
        """Flags over TOML over defaults; see `softlabels.core.settings`."""
        return from_sources(cls, toml, flags, either=[("steps", "epochs")])
