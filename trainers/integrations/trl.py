"""TRL's `SFTTrainer` on a store: `SoftLabelSFTTrainer`.

    SoftLabelSFTTrainer(
        "HuggingFaceTB/SmolLM2-135M", SFTConfig("out", max_steps=2000), store="store",
        distill=DistillLoss(temperature=2.0, alpha=0.9), peft_config=LoraConfig(r=16),
    ).train()

What TRL learns from (a dataset, its tokens, its masks, its loss) is the store's; everything else is TRL's own: PEFT,
gradient checkpointing, DDP and FSDP2 through accelerate, callbacks, checkpoints, cards. Rows come in the order of
`softtrain run`, and whether they lie padded, in one row without padding (`padding_free`) or packed into rows of
`max_length` (`packing`), a step has the same rows and the same loss (`trainers/data/packing.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from softlabels.errors import ConfigError, MissingExtraError
from softlabels.format.shard import StoredRow
from softlabels.store.tokenizer_process import TokenizerProcess
from trainers.data.packing import collate_packed
from trainers.integrations.rows import StoreRows, collate_rows
from trainers.integrations.transformers import DistillMixin
from trainers.loss.losses import DistillLoss
from trainers.run.folder import student_tokenizer

try:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
except ImportError as e:
    raise MissingExtraError("trl", "trl", "trainers.integrations.trl") from e

Collate = Callable[[Sequence[StoredRow]], dict[str, Any]]


class SoftLabelSFTTrainer(DistillMixin, SFTTrainer):
    """TRL's SFTTrainer, learning from a store.

    Args:
        model: as TRL takes it: a name, a model or a PeftModel.
        args: TRL's. `per_device_train_batch_size` counts rows of the store, also of those that are packed.
        store: a path, whose rows are ordered by `data_seed` (or `seed`), or a `StoreRows`.
        distill: the loss; None: `DistillLoss()`.
        eval_store: held-out rows, likewise, or several by name.
        processing_class: tokenizer to save beside the model; None: the store's.
        others: as of SFTTrainer.

    Raises:
        ConfigError: an argument that TRL's own loss or dataset would need, or rows that are longer than `max_length`.
        PairingError, TokenizerError: the store does not serve the loss, or the model is not one for it.
    """

    def __init__(
        self,
        model: Any,
        args: Any = None,
        *,
        store: StoreRows | Path | str,
        distill: DistillLoss | None = None,
        eval_store: StoreRows | Path | str | dict[str, StoreRows | Path | str] | None = None,
        processing_class: Any = None,
        **others: Any,
    ) -> None:
        args = SFTConfig("trl-out") if args is None else args
        _check_arguments(args, others)
        seed = args.seed if args.data_seed is None else args.data_seed
        rows = _rows(store, seed)
        held: Any = (
            {n: _rows(s, seed) for n, s in eval_store.items()}
            if (isinstance(eval_store, dict))
            else (None if eval_store is None else _rows(eval_store, seed))
        )
        for one in [rows, *(held.values() if isinstance(held, dict) else [held] if held else [])]:
            _check_length(one, args)
        layout = (args.padding_free, args.packing)
        # TRL's layouts are of TRL's datasets: it is told of neither, and of a dataset that it leaves alone.
        args.padding_free = args.packing = False
        args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        super().__init__(
            model,
            args,
            distill=distill or DistillLoss(),
            train_dataset=Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}),
            processing_class=processing_class or _tokenizer(rows),
            data_collator=_collator(*layout, args.max_length),
            **others,
        )
        args.padding_free, args.packing = layout
        self.train_dataset, self.eval_dataset = rows, held
        self._check(rows)
        self._check(held)
        self._in_steps(rows)
        self._signature_columns = ["batch"]

    def _check(self, data: Any) -> None:
        if not isinstance(data, Dataset):  # the one that TRL was told of, which is never read
            super()._check(data)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """TRL's, of a `StoreRows`, of a store's path, or of those given at first."""
        if isinstance(eval_dataset, Path):
            eval_dataset = _rows(eval_dataset, 0)
        found: dict[str, float] = super().evaluate(eval_dataset, *args, **kwargs)
        return found

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The store's loss; TRL has written into the configuration whether routers have one, too."""
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        mode = "train" if self.model.training else "eval"
        self._total_train_tokens += inputs["input_ids"].numel() * (mode == "train")
        self._metrics[mode]["num_tokens"] = [
            self._total_train_tokens * self.accelerator.num_processes
        ]
        return (loss, outputs) if return_outputs else loss


def _rows(store: StoreRows | Path | str, seed: int) -> StoreRows:
    return store if isinstance(store, StoreRows) else StoreRows(store, seed=seed)


def _tokenizer(rows: StoreRows) -> Any:
    """The store's own, as a student of `softtrain run` gets it."""
    from transformers import AutoTokenizer

    files = student_tokenizer(rows.store, lambda _: None)
    if not files:
        raise ConfigError(
            f"{rows.store.path}: the store is read in another vocabulary, or holds no tokenizer; give processing_class="
        )
    with tempfile.TemporaryDirectory(prefix="softlabels-") as folder:
        for name, data in files.items():
            path = Path(folder) / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        try:
            if (serialised := files.get("tokenizer.json")) is not None:  # of a store from anywhere
                TokenizerProcess(serialised, where="tokenizer.json").close()
            return AutoTokenizer.from_pretrained(folder)
        except Exception as e:
            raise ConfigError(
                f"{rows.store.path}: its tokenizer cannot be loaded ({type(e).__name__}: {e}); give processing_class="
            ) from e


def _collator(padding_free: bool, packing: bool, max_length: int | None) -> Collate:
    if not padding_free and not packing:
        return collate_rows
    return partial(_packed, most=max_length if packing else None)


def _packed(rows: Sequence[StoredRow], *, most: int | None) -> dict[str, Any]:
    batch = collate_packed(rows, most=most)
    return {**batch.inputs, "batch": batch}


def _check_arguments(args: Any, others: dict[str, Any]) -> None:
    """Refuse what asks for another loss, or for another dataset."""
    for unfit, what in (
        ("train_dataset" in others, "train_dataset; give store="),
        ("eval_dataset" in others, "eval_dataset; give eval_store="),
        ("data_collator" in others, "data_collator: rows of a store have their own"),
        (others.get("formatting_func") is not None, "formatting_func: a store's rows are tokens"),
        (others.get("compute_metrics") is not None, "compute_metrics: no logits are made"),
        (others.get("compute_loss_func") is not None, "compute_loss_func; give distill="),
        (args.loss_type != "nll", f"loss_type={args.loss_type!r}; give distill="),
        (args.assistant_only_loss, "assistant_only_loss: the build said which tokens have targets"),
        (
            args.completion_only_loss,
            "completion_only_loss: the build said which tokens have targets",
        ),
        (args.chat_template_path, "chat_template_path: the rows are tokens already"),
        (args.packing and not args.max_length, "packing without max_length"),
        (
            args.packing and args.packing_strategy != "bfd",
            f"packing_strategy={args.packing_strategy!r}, which cuts rows; use 'bfd'",
        ),
    ):
        if unfit:
            raise ConfigError(f"SoftLabelSFTTrainer cannot train with {what}")


def _check_length(rows: StoreRows, args: Any) -> None:
    longest = rows.store.identity.corpus.seq_len
    if args.max_length is not None and longest > args.max_length:
        raise ConfigError(
            f"max_length={args.max_length}: rows of {rows.store.path} may have {longest} tokens, and are never cut; "
            f"set max_length=None (without packing) or to {longest} or more"
        )
