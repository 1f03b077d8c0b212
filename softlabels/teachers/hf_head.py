"""Models of transformers with a linear head over the vocabulary, which is applied to chunks of positions.

The model runs once for a batch of rows and gives its head nothing to do; what the head was to be given is caught,
the positions are picked, and the head computes them in float32 (`head_product.py`), as many at a time as a byte budget
holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from softlabels.capture import Job, Kept, keep, labels_of
from softlabels.core.head_input import head_input
from softlabels.core.head_output import (
    cap_of_output,
    check_logits,
    few_ids,
    seen_by_head,
)
from softlabels.core.linear_head import Cap, LinearHead, bias_of
from softlabels.core.ranks import Ranks, dealt
from softlabels.core.rows import InputRow
from softlabels.errors import ConfigError, TeacherError
from softlabels.teachers import Teacher
from softlabels.teachers.head_product import HeadProduct
from softlabels.teachers.hf_source import HFSource, padded_on
from softlabels.teachers.tokenizer import FastTokenizer, check_covers


class HFHeadTeacher(Teacher):
    """A model whose `get_output_embeddings` is a linear layer.

    Args:
        model: it.
        tokenizer: its own.
        source: what it was loaded from.
        fed: names of the sequences that it is fed.
    """

    settings: ClassVar[dict[str, Any]] = {}
    """What else its forward is told."""

    def __init__(
        self,
        model: Any,
        tokenizer: FastTokenizer,
        source: HFSource,
        *,
        fed: Sequence[str] = ("input_ids", "attention_mask"),
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise TeacherError(
                f"{source.spec}: {type(model).__name__} has no linear layer over the vocabulary as its output "
                "embeddings"
            )
        self._head = head
        own = bias_of(model, head)
        weight, bias = head.weight.detach(), None if own is None else own.detach()
        self.record = source.record(model, vocab_size=int(weight.shape[0]))
        self._ranks = Ranks(self.record.vocab_size) if source.placement.tp else None
        if self._ranks is not None:
            weight, bias = (
                dealt(weight, self._ranks),
                None if bias is None else dealt(bias, self._ranks),
            )
        self._product = HeadProduct.of(weight, bias)
        self.device = model.device
        check_covers(tokenizer.vocab_size, self.record)
        budget = source.options.chunk_bytes(self.device.type)
        self._chunk = max(1, budget // (4 * self.record.vocab_size))
        few = few_ids(fed, self.record.vocab_size, self.device)
        try:
            scale, softcap = self._cap(few)
            self._linear = LinearHead(weight, bias, scale, softcap)
            self._check_logits(few)
        except ConfigError as e:
            raise TeacherError(
                f"{source.spec}: {e}; a causal LM can be a `py:` teacher, which returns logits itself"
            ) from e
        self.head = self._linear if self._ranks is None else None

    def _cap(self, few: dict[str, Tensor]) -> Cap:
        """What the model does with its head's output."""
        return cap_of_output(
            self.model,
            self._head,
            self.record.vocab_size,
            lambda: self.model(**few, **self.settings),
        )

    @torch.no_grad()
    def _check_logits(self, few: dict[str, Tensor]) -> None:
        """Compare the head as applied here with the model's own logits on a few ids."""
        states, expected = seen_by_head(self._head, lambda: self.model(**few, **self.settings))
        own = self.to_logits(states)
        found = own if self._ranks is None else self._ranks.whole(own)
        check_logits(self.model, found, expected.to(found.device))

    def _given(self, fed: dict[str, Tensor], flat: Tensor) -> Tensor:
        """`[N, D]`: what the head is given at positions `[N]` of the flattened output."""
        try:
            hidden, _ = head_input(self._head, lambda: self.model(**fed, **self.settings))
        except ConfigError as e:
            raise TeacherError(f"{self.record.spec}: {e}") from e
        return hidden.flatten(0, 1).index_select(0, flat.to(hidden.device))

    def to_logits(self, hidden: Tensor) -> Tensor:
        """Logits `[n, V] float32` of what the head is given, `[n, D]`; of this process's ids, if they are dealt out."""
        return self._linear.cap(self._product(hidden))

    @torch.no_grad()
    def states(self, rows: Sequence[InputRow]) -> Tensor:
        """`[N, D]`: what the head is given at the positions of all rows, in order."""
        return self._given(*padded_on(rows[0].pad(rows), self.device))

    @torch.no_grad()
    def logits(self, rows: Sequence[InputRow]) -> Iterator[Tensor]:
        """Chunks `[n, V] float32` of the positions of all rows, in order."""
        for chunk in torch.split(self.states(rows), self._chunk):
            own = self.to_logits(chunk)
            yield own if self._ranks is None else self._ranks.whole(own)

    @torch.no_grad()
    def selected(
        self, rows: Sequence[InputRow], job: Job, uniforms: Tensor | None
    ) -> Iterator[Kept]:
        """What is kept of the positions of all rows; in each process the same, if the vocabulary is dealt out."""
        if self._ranks is None:
            yield from super().selected(rows, job, uniforms)
            return
        states, labels = self.states(rows), labels_of(rows)
        budget = 4 * self.record.vocab_size * self._chunk
        yield from keep(
            states,
            labels,
            uniforms,
            job,
            self.to_logits,
            head_bytes=budget,
            vocab_size=self.record.vocab_size,
            part=self._ranks,
        )
