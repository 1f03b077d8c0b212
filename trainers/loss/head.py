"""A linear head over the vocabulary, what its logits cost, and the budget that they are made under.

Shapes: n rows of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softlabels.core.linear_head import Cap
from softlabels.core.ranks import Ranks
from softlabels.errors import ConfigError
from trainers.loss.vocabulary import DealtVocabulary, Vocabulary

CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 256 * 2**20}
"""Default budget of all that is V wide. On one CPU core at D=576 and V=49k the three products over 1,024 rows take
2.3 s in chunks of 64 rows, 1.8 s in chunks of 256 or more; this budget holds 340."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """A linear head over the vocabulary, as the primitive needs it."""

    weight: Tensor
    """`[V, D]`; of a head that is dealt out `[v, D]`, the rows of this process's ids."""
    bias: Tensor | None = None
    """`[V]`, or `[v]`."""
    softcap: float | None = None
    """Logits become `softcap * tanh(logits / softcap)`."""
    scale: float = 1.0
    """Logits are multiplied by it, before the cap."""
    compute_dtype: torch.dtype | None = None
    """In what the products run (None: as the weight is); sums are float32 at least."""
    ranks: Ranks | None = None
    """The processes that it is dealt out over, with the same hidden states in each; None: it is whole."""

    def __post_init__(self) -> None:
        if self.ranks is not None and len(self.weight) != len(self.ranks.ids):
            raise ConfigError(
                f"the head has {len(self.weight)} rows in process {self.ranks.rank}, where {len(self.ranks.ids)} of "
                f"its {self.ranks.vocab_size} are expected; deal it out as torch chunks a tensor: as many to each "
                "process, the rest to the last"
            )

    @property
    def vocabulary(self) -> Vocabulary:
        """Where its logits lie."""
        return Vocabulary(len(self.weight)) if self.ranks is None else DealtVocabulary(self.ranks)

    @property
    def width(self) -> int:
        """Logits of a position in a process, at most: of all processes the same, so that all cut the same chunks."""
        return len(self.weight) if self.ranks is None else self.ranks.each

    @property
    def cap(self) -> Cap:
        """Scale and cap."""
        return Cap(self.scale, self.softcap)


def accumulator(hidden: Tensor) -> torch.dtype:
    """The dtype of sums: float64 for float64 inputs, else float32."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def row_bytes(head: Head, dtype: torch.dtype, temperature: float, *, gradients: bool) -> int:
    """Bytes of all V-wide buffers for one row."""
    wide = 1 + (temperature != 1.0) + (gradients and head.softcap is not None)
    compute = head.compute_dtype or head.weight.dtype
    return head.width * (wide * dtype.itemsize + (compute.itemsize if compute != dtype else 0))


def chunk_rows(
    head: Head,
    dtype: torch.dtype,
    chunk_bytes: int | None,
    device: torch.device,
    *,
    temperature: float = 1.0,
    gradients: bool = False,
) -> int:
    """Rows of a chunk: the budget over the bytes of a row, at least 1."""
    budget = chunk_bytes or CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])
    return max(1, budget // row_bytes(head, dtype, temperature, gradients=gradients))


def head_logits(hidden: Tensor, head: Head) -> Tensor:
    """Logits `[n, V]` of a few positions, float32 (float64 if `hidden` is), of a head that is whole."""
    if head.ranks is not None:
        raise ConfigError(
            "the student's head is dealt out over processes, and all its logits are asked for; score it in one process"
        )
    compute = head.compute_dtype or head.weight.dtype
    bias = None if head.bias is None else head.bias.to(compute)
    z = torch.nn.functional.linear(hidden.to(compute), head.weight.to(compute), bias)
    return head.cap(z.to(accumulator(hidden)))
