"""The loss of a store for code that owns its loop: one call with the model as it is, whatever wraps it.

    for batch in SoftTargetStream("store", batch_size=8):
        distil_loss(model, batch).loss.backward()

The flow:
 1. The model is called as its own loop would call it, so that DDP, FSDP2, autocast and adapters do what they do.
 2. When its forward comes to the head, the loss is computed there and then, a few rows of logits at a time: inside the
    forward the head's weights are whole (FSDP2 has gathered them). The head returns logits of no positions.
 3. The loss goes out beside the output, tied to it, so that what waits for gradients of the output hears of them.

Nothing of positions x vocabulary is ever made. What the head computes: `trainers/students/model_head.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from softlabels.core.head_output import as_output, instead
from softlabels.errors import ConfigError, PairingError
from trainers.data.batch import Batch
from trainers.loss.losses import DistillLoss, LossOutput
from trainers.loss.totals import StepTotals
from trainers.students.documents import laid_out
from trainers.students.model_head import (
    bare_model,
    cap_of,
    head_of,
    head_width,
    local,
    states_here,
)


def distil_loss(
    model: Any,
    batch: Batch,
    loss: DistillLoss | None = None,
    *,
    totals: StepTotals | None = None,
) -> LossOutput:
    """The loss of a model of transformers on a batch of a store; `.loss` is what to differentiate.

    Args:
        model: a causal LM of transformers: bare, a PeftModel, quantised, or wrapped by DDP or FSDP2.
        batch: of a `SoftTargetStream`, or of `collate_rows`; on any device.
        loss: what is minimised; None: `DistillLoss()`.
        totals: of the whole optimiser step, where the batch is a part of it: `StepTotals.over(loss.count(b) for b in
            batches)`, over all processes.

    Raises:
        ConfigError: no head over a vocabulary was found, or it is not understood.
        PairingError: the head has another vocabulary than the store, or the targets do not serve the loss.
    """
    loss = loss or DistillLoss()
    return forward_loss(model, batch, loss if totals is None else replace(loss, totals=totals))[0]


def forward_loss(model: Any, batch: Batch, loss: DistillLoss) -> tuple[LossOutput, Any]:
    """The loss, and what the model's forward returned, with logits `[B, 0, V]`."""
    bare = bare_model(model)
    head = bare.get_output_embeddings()
    _check_vocab(head, batch, type(bare).__name__)
    batch = batch.to(bare.device)
    cap = cap_of(model, batch.inputs)
    batch = laid_out(bare, batch)
    found: list[LossOutput] = []

    def compute(given: Tensor, *_: Any, **__: Any) -> Tensor:
        hidden = states_here(head, given)
        _check_states(hidden, batch, calls=len(found))
        layer = head_of(head, before, cap, given)
        out = loss(hidden, layer, batch.to(hidden.device))
        found.append(out)
        empty = (hidden.shape[0], 0) if hidden.dim() == 3 else (0,)
        return as_output(out.loss.expand(*empty, head_width(head)), given)

    with instead(head, compute) as before:
        outputs = model(**batch.inputs, use_cache=False)
    if not found:
        raise ConfigError(
            f"{type(bare).__name__}: its forward does not call its head, {type(head).__name__}, so the loss cannot be "
            "computed in its place; switch off what computes another loss there (fused cross-entropy), or compute the "
            "hidden states yourself and call DistillLoss on them"
        )
    out = found[0]
    return out._replace(loss=out.loss + local(outputs.logits).sum()), outputs


def _check_vocab(head: Any, batch: Batch, where: str) -> None:
    mine, theirs = head_width(head), batch.targets.vocab_size
    if mine != theirs:
        raise PairingError(
            f"{where}: its head has {mine} ids, the targets {theirs}; use a student with the teacher's vocabulary, or "
            f"read the store with vocab='trim:{mine}'"
        )


def _check_states(hidden: Tensor, batch: Batch, *, calls: int) -> None:
    """The head is called once, on every place of the batch."""
    if calls:
        raise ConfigError(
            "the model's forward calls its head more than once; use a model that calls it once"
        )
    places = tuple(hidden.shape[:-1])
    expected = (next(iter(batch.inputs.values())).shape[0], batch.width)
    if hidden.dim() == 3 and places != expected:
        raise ConfigError(
            f"the model's head is given {places[0]} rows of {places[1]} places, the batch has {expected[0]} of "
            f"{expected[1]}: something was put before the tokens, or cut (prompt tuning?); use LoRA instead"
        )
    if hidden.dim() == 2 and len(hidden) not in (batch.positions, expected[0]):
        raise ConfigError(
            f"the model's head is given {len(hidden)} states, the batch has {batch.positions} positions"
        )
