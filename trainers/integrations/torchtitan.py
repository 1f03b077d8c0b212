"""Distillation inside torchtitan: its models, parallelism and checkpoints, with the rows and the loss of a store.

    SoftTargetTrainer.Config(
        dataloader=SoftTargetLoader.Config(dataset_path="store"),
        loss=SoftTargetLoss.Config(distill=DistillLoss(alpha=0.9)),
        …                                                            # as of any other configuration
    )

1. The loader gives this process's rows of a step in micro-batches, those of `softtrain run` of the same seed.
2. Before a step the trainer adds up, over all of its processes, what each part of the loss is divided by.
3. The model gives hidden states, as it does for torchtitan's own chunked loss. The loss is computed in place of the
   head's forward, where FSDP2 has made its weight whole, a few rows of logits at a time.
4. Documents that share a row are kept apart by FlexAttention and variable-length attention, by their positions. For
   other layers each document is taken out of its row.
5. A checkpoint holds the stream's state as of its step, which goes on on any number of processes.

Data parallelism alone (`data_parallel_shard_degree`, `data_parallel_replicate_degree`): what cuts rows, the head or the
layers between processes is refused. The loss is not compiled. The price: the processes gather a few numbers each step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from softlabels.core.head_output import instead
from softlabels.errors import ConfigError, MissingExtraError, PairingError
from softlabels.store.reader import Store
from trainers.data.batch import COUNTED, Batch
from trainers.data.microbatches import split_batch
from trainers.data.packing import separated
from trainers.data.stream import SoftTargetStream, opened
from trainers.data.tasks import renumbers
from trainers.loss.head import Head
from trainers.loss.losses import DistillLoss, LossOutput
from trainers.loss.totals import StepTotals
from trainers.students.tokenizers import why_not_compared

try:
    from torchtitan.components.dataloader import BaseDataLoader
    from torchtitan.components.loss import IGNORE_INDEX, BaseLoss, ChunkedLossWrapper
    from torchtitan.models.common.attention import FlexAttention, VarlenAttention
    from torchtitan.tools.logging import logger
    from torchtitan.trainer import Trainer
except ImportError as e:
    raise MissingExtraError("torchtitan", "torchtitan", "trainers.integrations.torchtitan") from e

Part = tuple[dict[str, Any], Tensor]
"""A micro-batch as torchtitan takes one: what the model is fed and its `Batch`, and labels `[B, S]`."""
SERVED: tuple[tuple[str, Any, str], ...] = (
    ("parallelism.tensor_parallel_degree", 1, "the loss needs the whole head"),
    ("parallelism.context_parallel_degree", 1, "the loss needs whole rows"),
    ("parallelism.pipeline_parallel_degree", 1, "every process needs the head"),
    ("parallelism.expert_parallel_degree", 1, "it was run with data parallelism alone"),
    ("parallelism.spmd_backend", "partial_dtensor", "the loss was run with no other"),
    ("training.disable_cuda_graphs", True, "batches differ in size"),
    ("validator.enable", False, "it reads no store; `softtrain eval` does"),
)
"""Settings that have to be so, and why."""


class SoftTargetLoader(BaseDataLoader):
    """This process's micro-batches of a stream, without end."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        """`dataset_path` is the path of a store."""

        seed: int = 0
        """Of the order of rows."""
        vocab: str | None = None
        """Another vocabulary to read the store in, as of `SoftTargetStream`."""
        batch_size: int = -1
        """Rows of a step; the trainer sets it to `training.global_batch_size`."""

    def __init__(
        self,
        config: Config,
        *,
        dp_world_size: int,
        dp_rank: int,
        local_batch_size: int,
        **_: Any,
    ) -> None:
        rows = local_batch_size * dp_world_size
        self.stream = SoftTargetStream(
            open_store_of(config),
            batch_size=rows if config.batch_size < 0 else config.batch_size,
            seed=config.seed,
            rank=dp_rank,
            world_size=dp_world_size,
        )
        self._parts = self.stream.batch_size // rows

    def __iter__(self) -> Iterator[Part]:
        """Micro-batches from where the stream is on."""
        for batch in self.stream:
            yield from map(part_of, split_batch(batch, self._parts))

    def state_dict(self) -> dict[str, Any]:
        """The stream's after the step whose last micro-batch was taken; the same on each process."""
        return {"stream": json.dumps(self.stream.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; a state of another store or seed is a RunError."""
        self.stream.load_state_dict(json.loads(state_dict["stream"]))


def open_store_of(config: SoftTargetLoader.Config) -> Store:
    """The store of a loader, open.

    Raises:
        ConfigError: none is given, or a vocabulary that does not fit it.
        StoreError: it cannot be opened.
    """
    if not config.dataset_path:
        raise ConfigError("SoftTargetLoader: dataset_path is not set; give the path of a store")
    return opened(config.dataset_path, config.vocab)


def part_of(batch: Batch) -> Part:
    """A batch as torchtitan takes one."""
    tokens = batch.inputs["input_ids"]
    labels = torch.full_like(tokens, IGNORE_INDEX)
    labels.view(-1)[batch.flat_positions] = batch.labels.clamp(
        min=0
    )  # counted; learnt from the batch
    places = batch.inputs.get(COUNTED)
    if places is None:
        places = torch.arange(batch.width).expand_as(tokens)
    return {"input": tokens, "positions": places, "batch": batch}, labels


def alone(batch: Batch) -> Part:
    """A batch as torchtitan takes one, each of its documents in a row of its own; the same positions."""
    return part_of(separated(batch) if COUNTED in batch.inputs else batch)


def keeps_documents_apart(model: Any) -> bool:
    """Whether every layer of a model of torchtitan masks documents by their positions; what is not known does not."""
    attention = (getattr(layer, "attention", None) for layer in model.layers.values())
    kinds = [type(getattr(a, "inner_attention", None)) for a in attention]
    return all(issubclass(kind, (FlexAttention, VarlenAttention)) for kind in kinds)


class SoftTargetLoss(ChunkedLossWrapper):
    """`DistillLoss` on the states that torchtitan's head is given; never positions × vocabulary logits."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        """Of torchtitan's chunked loss nothing: how large a chunk is follows from `DistillLoss.chunk_bytes`."""

        distill: DistillLoss = field(default_factory=DistillLoss)
        """What is minimised."""

    def __init__(self, config: Config, **_: Any) -> None:
        self.loss = config.distill
        self.lm_head: Any = None
        self.outputs: list[LossOutput] = []
        """Of the step's micro-batches so far."""
        self._batch: Batch | None = None

    def begin(self, totals: StepTotals) -> None:
        """A step begins, of these totals."""
        self.loss, self.outputs = replace(self.loss, totals=totals), []

    def take(self, batch: Batch) -> None:
        """The next call is on the states of this batch."""
        self._batch = batch

    def __call__(
        self,
        pred: Tensor,
        labels: Tensor,
        global_valid_tokens: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's share of the step's loss, of hidden states `[B, S, D]`."""
        batch, self._batch = self._batch, None
        layer = self.lm_head
        if batch is None or layer is None:
            raise ConfigError(
                "SoftTargetLoss: called without a batch of a store; train with SoftTargetTrainer and SoftTargetLoader, "
                "and leave torchtitan's validator off"
            )

        def compute(hidden: Tensor) -> Tensor:
            head = Head(weight=layer.weight, bias=layer.bias)
            out = self.loss(hidden, head, batch.to(hidden.device))
            self.outputs.append(out._replace(loss=out.loss.detach()))
            return out.loss

        with instead(layer, compute):
            return layer(pred), {}


class SoftTargetTrainer(Trainer):
    """torchtitan's trainer on a store."""

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        """As of torchtitan's; its loader and loss are those of this module."""

    def __init__(self, config: Config) -> None:
        check_config(config)
        check_store(config)
        step = config.training.global_batch_size
        config.dataloader = replace(config.dataloader, batch_size=step)  # `build` gave a copy
        super().__init__(config)
        self._check_head()
        self._apart = all(map(keeps_documents_apart, self.model_parts))
        if not self._apart:
            logger.info(
                f"{_student(config)}: not all of its layers keep documents apart that share a row; each is given to it "
                "as a sequence of its own, which costs padding"
            )

    def _check_head(self) -> None:
        """Refuse a model whose head is another than the loss computes, or of other ids than the store."""
        store, head = self.dataloader.stream.store, self.model_parts[0].lm_head
        where, ids = _student(self.config), head.out_features
        if type(head).forward is not torch.nn.Linear.forward:
            raise ConfigError(
                f"{where}: its head is a {type(head).__name__}, expected a plain Linear; leave it out of what is "
                "converted"
            )
        if ids != store.vocab_size:
            raise PairingError(
                f"{where}: its head has {ids} ids, {store.path} has {store.vocab_size}; use a student with the "
                f"teacher's vocabulary, or read the store with vocab='trim:{ids}'"
            )

    def train_step(self, data_iterator: Iterator[Part]) -> None:
        """torchtitan's, whose loss is normalised over all parts of the step."""
        parts = list(islice(data_iterator, self.gradient_accumulation_steps))
        if not self._apart:
            parts = [alone(given["batch"]) for given, _ in parts]
        counts = [self.loss_fn.loss.count(given["batch"]) for given, _ in parts]
        totals = StepTotals.over(self._everywhere(counts))
        self.loss_fn.begin(totals)
        super().train_step(iter(parts))
        if self.metrics_processor.should_log(self.step):
            own = [[out.loss.item(), *out[1:]] for out in self.loss_fn.outputs]
            means = LossOutput.over(self._everywhere(own)).means(totals)
            named = {f"distil/{name}": value for name, value in means.items()}
            self.metrics_processor.logger.log(named, self.step)
            logger.info("  ".join(f"{name}: {value:.5f}" for name, value in means.items()))

    def post_dataloading_process(
        self, input_dict: dict[str, Any], labels: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """torchtitan's; the batch goes to the loss."""
        self.loss_fn.take(input_dict.pop("batch"))
        found: tuple[Tensor, Tensor, dict[str, Any]]
        found = super().post_dataloading_process(input_dict, labels)
        return found

    def _everywhere(self, own: list[Any]) -> list[Any]:
        """The parts of a step of all processes."""
        found: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(found, own)
        return [part for parts in found for part in parts]


def check_config(config: Trainer.Config) -> None:
    """Refuse what this module does not serve.

    Raises:
        ConfigError: names the setting.
    """
    if not isinstance(config.dataloader, SoftTargetLoader.Config):
        raise ConfigError("SoftTargetTrainer: dataloader: expected SoftTargetLoader.Config")
    if not isinstance(config.loss, SoftTargetLoss.Config):
        raise ConfigError("SoftTargetTrainer: loss: expected SoftTargetLoss.Config")
    for name, expected, why in SERVED:
        part, setting = name.split(".")
        found = getattr(getattr(config, part), setting)
        if found != expected:
            raise ConfigError(f"SoftTargetTrainer: {name} {found}: {why}; set it to {expected}")


def check_store(config: Trainer.Config) -> None:
    """Refuse a store that cannot serve the loss, or whose rows the model cannot be fed; no model is made yet.

    Raises:
        ConfigError: of the store's path or vocabulary, or the loss does not go with its targets.
        StoreError: it cannot be opened.
        PairingError, TokenizerError: it is not for this model.
    """
    store = open_store_of(config.dataloader)
    identity, most = store.identity, store.identity.corpus.seq_len
    if identity.domain != "causal-lm":
        raise PairingError(f"{store.path}: is of {identity.domain}; expected a store of causal-lm")
    config.loss.distill.check(identity.targets)
    if most > config.training.seq_len:
        raise PairingError(
            f"training.seq_len {config.training.seq_len}: rows of {store.path} have up to {most} tokens; set it to "
            f"{most}"
        )
    if not renumbers(store):
        where = _student(config)
        unknown = why_not_compared(Path(config.hf_assets_path), store, where=where)
        if unknown is not None:
            logger.warning(
                f"{where}: {unknown}, so nothing says that its ids mean what they mean in {store.path}"
            )


def _student(config: Trainer.Config) -> str:
    return f"{config.model_spec.name} {config.model_spec.flavor}"
