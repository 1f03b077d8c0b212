"""How a causal LM of transformers is fed rows that several documents share, so that none of them sees another.

Position ids that start again are enough for most, which is tried once of each (`softlabels/core/documents_apart.py`).
Where they are not, every document is a sequence of its own (`separated`). FlashAttention cuts a single row at them, of
several at once it would not (`flattened`).
"""

from __future__ import annotations

import weakref
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from softlabels.core.documents_apart import keeps_apart
from softlabels.core.head_output import as_output, instead
from trainers.data.batch import COUNTED, Batch
from trainers.data.packing import as_one_row, flattened, separated
from trainers.students.model_head import head_width, states_here
from trainers.students.own_logits import evaluated

SEE_EACH_OTHER = (
    "student: in {model} documents that share a row see each other; each is given to it as a sequence of its own, as "
    "wide as the longest of a micro-batch, which costs padding"
)
_APART: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def keeps_documents_apart(model: Any) -> bool:
    """Whether position ids that start again keep documents apart in a model of transformers."""
    if model not in _APART:
        _APART[model] = _tried(model)
    return _APART[model]


def laid_out(model: Any, batch: Batch) -> Batch:
    """A batch as the model must be fed it; the same positions.

    Each of several processes tries its model with its first batch, whatever that holds: where weights are shared out,
    they must run it together.
    """
    shared = COUNTED in batch.inputs
    if not shared and not (dist.is_available() and dist.is_initialized()):
        return batch
    apart = keeps_documents_apart(model)
    if not shared:
        return batch
    if not apart:
        return separated(batch)
    return flattened(batch) if _is_flash(model) else batch


def _is_flash(model: Any) -> bool:
    return "flash" in str(getattr(model.config, "_attn_implementation", ""))


def _tried(model: Any) -> bool:
    from trainers.students.context import context_of  # which imports students

    head = model.get_output_embeddings()
    caught: list[Tensor] = []

    def catch(given: Tensor, *_: Any, **__: Any) -> Tensor:
        hidden = states_here(head, given)
        caught.append(hidden)
        return as_output(hidden.new_zeros(hidden.shape[0], 0, head_width(head)), given)

    def states(ids: Tensor, position_ids: Tensor) -> Tensor:
        inputs = {"input_ids": ids, COUNTED: position_ids}
        if _is_flash(model):
            inputs = as_one_row(inputs)
        caught.clear()
        model(**inputs, use_cache=False)
        return caught[0].reshape(*ids.shape, -1)

    with evaluated(model), instead(head, catch):
        return keeps_apart(
            states, vocab_size=head_width(head), context=context_of(model), device=model.device
        )
