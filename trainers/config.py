"""What a training run is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlabels.errors import ConfigError
from softlabels.settings import check_at_least, from_sources
from softlabels.store.remote.cache import CacheOptions

if TYPE_CHECKING:
    from trainers.schedules import LossSchedule

__all__ = ["RunConfig"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: store, student, loss, schedule."""

    store: tuple[str, ...] | str
    """Path or address (`s3://…`) of the store to train from; of several, repeatable, `PATH=WEIGHT`: its share of the
    rows."""
    student: str | None = None
    """`hf-config:FILE`, `layers-of:PATH?keep=…`, `hf:PATH`; of images also `cnn:WIDTHxDEPTH`, `timm:NAME`,
    `torchvision:NAME`; or --init."""
    init: str | None = None
    """Instead of --student: go on from the student of a finished run, with another store; recorded in run.json."""
    images: tuple[str, ...] = ()
    """Of a store of images: where they lie, as it was built from them, e.g. `arrays:FILE.npz`."""
    heldout_images: tuple[str, ...] = ()
    """Likewise, of the images of the held-out store."""
    vocab: str | None = None
    """Read the store in another vocabulary, the student's: `trim:N`, or `map:FILE` (new id of each id, or -1)."""
    inputs: str | None = None
    """Of a store without inputs (`softlabels subset --drop-inputs`): the store that holds them; joined by digest."""
    loss: str = "forward_kl"
    """Soft loss: `forward_kl`, `reverse_kl`, `jsd`, `tvd`, `skewed_forward_kl` or `skewed_reverse_kl`."""
    temperature: float = 1.0
    """T of the soft loss; must be in the store's grid."""
    temperature_schedule: str | None = None
    """Of T over the steps: `linear:END` or `cosine:END`, in stairs through the store's grid; default constant."""
    alpha: float = 0.5
    """Share of the soft loss; 0 trains on hard labels only."""
    alpha_schedule: str | None = None
    """Of alpha over the steps: `linear:END` or `cosine:END`; default constant."""
    weight: str = "even"
    """Of positions in the soft loss: `even`, the teacher's `entropy`, or `hard` (1 - its probability of the label)."""
    label_smoothing: float = 0.0
    """Of the hard loss: the share of the label that is spread evenly over the vocabulary."""
    z_loss: float = 0.0
    """Of the hard loss: times the square of the logits' log-sum-exp; 1e-4 keeps logits from drifting."""
    cosine: float = 0.0
    """Weight of 1 - the cosine between the last hidden states of student and teacher, of a store that keeps them (built
    with `--hidden`); student and teacher must be equally wide."""
    beta: float = 0.5
    """Of `jsd`: the teacher's share of the mixture."""
    skew: float = 0.1
    """Of the skewed losses: the share mixed in."""
    steps: int = 1000
    """Optimiser steps of the whole run."""
    batch_size: int = 8
    """Rows in an optimiser step, of all processes together."""
    accumulate: int = 1
    """Micro-batches of a step on all processes together, at least one on each; must divide batch_size."""
    exact_ranks: bool = False
    """Add up micro-batches so that CPU runs with the same accumulate, a power of two, agree to the bit on 1, 2, 4, … up
    to accumulate processes; takes memory: log2(micro-batches on a process) - 1 more copies of the gradients."""
    parallel: str = "ddp"
    """What several processes have: `ddp`: each the whole student; `fsdp`: each a part of its weights and optimiser."""
    lr: float = 1e-3
    """Peak learning rate."""
    warmup: int | None = None
    """Steps of linear warm-up; default 5 % of the run."""
    min_lr: float = 0.1
    """Where the cosine ends, as a share of the peak."""
    weight_decay: float = 0.1
    """Of matrices; vectors and biases are not decayed."""
    beta1: float = 0.9
    """AdamW."""
    beta2: float = 0.95
    """AdamW."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: no limit."""
    ema: float | None = None
    """Keep an average of the weights, too; each step leaves this share of it (`0.999`: about the last 1000 steps)."""
    heldout: str | None = None
    """Store of held-out rows to evaluate on; the best student so far is kept in OUT/best."""
    forgetting: tuple[str, ...] = ()
    """Store whose rows the student should not unlearn (repeatable): evaluated before the first step and after the
    last, reported and kept in OUT/forgetting.json."""
    eval_every: int = 200
    """Steps between evaluations on the held-out store; the last step always makes one."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a lower held-out loss; default never."""
    seed: int = 0
    """Of the student's first weights and of the order of rows."""
    device: str = "auto"
    """Where to train."""
    dtype: str = "auto"
    """`float32`, or `bfloat16` for mixed precision; auto takes bfloat16 where it was measured to pay."""
    kernels: str = "torch"
    """`torch`, or `liger` for Liger's norms, rotary embedding and gated MLP in the student (CUDA only)."""
    chunk_mib: int | None = None
    """MiB of logits that exist at a time; default 64 on a CPU, 256 on a GPU."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = 200
    """Steps between checkpoints; the last step always makes one."""
    keep_last: int = 2
    """Checkpoints to keep."""
    threads: int | None = None
    """CPU threads; default all cores."""
    cache: str | None = None
    """Folder for files of stores at an address; default SOFTLABELS_CACHE, or the user's cache folder."""
    cache_gib: float | None = None
    """GiB of such files to keep, those used last; 0: none. Default SOFTLABELS_CACHE_GIB, or 32."""

    def __post_init__(self) -> None:
        if not isinstance(self.store, str) and len(self.store) == 1:
            object.__setattr__(self, "store", self.store[0])
        if (self.student is None) == (self.init is None):
            raise ConfigError(
                "--student is missing (or 'student' in the config file); or go on from a run's with --init RUN"
                if self.student is None
                else f"--init {self.init}: is the student; leave out --student {self.student}"
            )
        if not isinstance(self.store, str) and self.vocab is not None:
            raise ConfigError(
                f"--vocab {self.vocab}: goes with one --store, not with {len(self.store)}; what a view drops is "
                "reported of one store only"
            )
        if not isinstance(self.store, str) and self.inputs is not None:
            raise ConfigError(
                f"--inputs {self.inputs}: goes with one --store, not with {len(self.store)}; put inputs and targets "
                "together in one store each first, or train on one"
            )
        self.make_loss()
        self.cache_options.resolved()
        check_at_least(
            self,
            steps=1,
            batch_size=1,
            accumulate=1,
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
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"--accumulate {self.accumulate}: must divide --batch-size {self.batch_size}"
            )
        if self.parallel not in ("ddp", "fsdp"):
            raise ConfigError(f"--parallel {self.parallel!r}: expected ddp or fsdp")
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
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"--ema {self.ema}: expected a share between 0 and 1, such as 0.999")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(
                f"--dtype {self.dtype!r}: expected auto, float32 or bfloat16 (float16 gradients underflow)"
            )
        if self.kernels not in ("torch", "liger"):
            raise ConfigError(f"--kernels {self.kernels!r}: expected torch or liger")
        for name, fits, expected in (
            ("lr", 0 < self.lr < 100, "a number above 0 (and below 100)"),
            ("min_lr", 0 <= self.min_lr <= 1, "0 to 1"),
            ("weight_decay", 0 <= self.weight_decay < float("inf"), "at least 0"),
            ("clip", 0 <= self.clip < float("inf"), "at least 0"),
            ("beta1", 0 <= self.beta1 < 1, "at least 0 and below 1"),
            ("beta2", 0 <= self.beta2 < 1, "at least 0 and below 1"),
            ("seed", self.seed < 2**63, "less than 2**63"),
        ):
            if not fits:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {getattr(self, name)}: expected {expected}")

    @property
    def cache_options(self) -> CacheOptions:
        """Where files of remote stores are kept."""
        return CacheOptions(folder=self.cache, gib=self.cache_gib)

    @property
    def student_spec(self) -> str:
        """`name:argument` of the student."""
        return self.student if self.student is not None else f"hf:{self.init}/student"

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up, resolved."""
        return self.warmup if self.warmup is not None else max(1, self.steps // 20)

    def micro_batches(self, world_size: int) -> int:
        """Micro-batches of a step on each of `world_size` processes.

        Raises:
            ConfigError: batch or micro-batches cannot be dealt out equally.
        """
        if self.batch_size % world_size:
            raise ConfigError(
                f"--batch-size {self.batch_size}: {world_size} processes cannot share it equally; expected a multiple "
                f"of {world_size}"
            )
        if self.accumulate <= world_size:
            return 1
        if self.accumulate % world_size:
            raise ConfigError(
                f"--accumulate {self.accumulate}: {world_size} processes cannot share it equally; expected a multiple "
                f"of {world_size}"
            )
        return self.accumulate // world_size

    def make_loss(self) -> LossSchedule:
        """The loss this run minimises, step by step."""
        from trainers.losses import DistillLoss  # torch, which --help can do without
        from trainers.schedules import LossSchedule

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
        """Flags over TOML over defaults; see `softlabels.settings`."""
        return from_sources(cls, toml, flags, required=("store",))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as TOML would hold them."""
        return asdict(self)
