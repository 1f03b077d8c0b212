"""`hf:PATH` for causal LMs, GGUF files included.

The body runs once for a batch of rows; the head is applied to chunks of positions, so that no more
than a byte budget of logits exists at a time. The head computes in float32 whatever the body's dtype:
bfloat16 logits of a large vocabulary are rounded by up to 1/16 nat, more than most codecs lose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softlabels.core.local_model import load_weights, loading
from softlabels.core.rows import Row, pad_rows
from softlabels.domains.causal_lm import DOMAIN
from softlabels.errors import TeacherError
from softlabels.teachers import Teacher
from softlabels.teachers.hf_source import (
    PROBE_IDS,
    HFSource,
    check_head,
    context_of,
    padded_on,
)
from softlabels.teachers.tokenizer import HFTokenizer, check_covers, repair_pre_tokenizer


def from_transformers(source: HFSource) -> HFTeacher:
    """Load model and tokenizer.

    Raises:
        TeacherError: it cannot be loaded, or its head is not a linear map of the last hidden state.
        MissingExtraError: gguf is not installed.
    """
    found, choice = source.found, source.choice
    with loading(source.where, TeacherError):
        model = load_weights(
            getattr(source.transformers, DOMAIN.transformers),
            found,
            dtype=choice.dtype if found.gguf is None else torch.float32,
        )
        tokenizer = source.tokenizer()
        if found.gguf is not None:
            declared = _declared_pre_tokenizer(found.folder / found.gguf)
            repair_pre_tokenizer(tokenizer, declared, source.options.notice)
    return HFTeacher(model.to(choice.device, choice.dtype).eval(), HFTokenizer(tokenizer), source)


class HFTeacher(Teacher):
    """A causal LM of transformers."""

    def __init__(
        self,
        model: Any,
        tokenizer: HFTokenizer,
        source: HFSource,
    ) -> None:
        self._body = model.base_model
        self._head = model.get_output_embeddings()
        if self._head is None or self._body is model:
            raise TeacherError(
                f"{source.spec}: {type(model).__name__} has no separate head over the vocabulary"
            )
        self._transform = _logit_transform(model.config)
        self._weight = self._head.weight.detach().float()
        bias = getattr(self._head, "bias", None)
        self._bias = None if bias is None else bias.detach().float()
        self.device = self._weight.device
        # Hidden states and weights of a bfloat16 body are exact in bfloat16: on a CPU their products may be
        # taken there, 1.7 times as fast, with sums and results still in float32.
        exact = self._head.weight.dtype == torch.bfloat16 and self.device.type == "cpu"
        self._exact_in = "medium" if exact else None
        self.tokenizer = tokenizer
        self.record = source.record(model, vocab_size=int(self._weight.shape[0]))
        self.context = context_of(model.config)
        check_covers(tokenizer.vocab_size, self.record)
        self._chunk = max(1, source.head_bytes // (4 * self.record.vocab_size))
        self._check_head(model)

    @torch.no_grad()
    def _check_head(self, model: Any) -> None:
        """Compare the head as applied here with the model's own logits on a few ids."""
        ids = torch.arange(PROBE_IDS, device=self.device)[None] + 1
        expected = model(input_ids=ids, use_cache=False).logits[0].float()
        found = self._logits(self._body(input_ids=ids, use_cache=False).last_hidden_state[0])
        check_head(model, found, expected, spec=self.record.spec)

    def _logits(self, hidden: Tensor) -> Tensor:
        with _products_of(self._exact_in):
            logits = torch.nn.functional.linear(hidden.float(), self._weight, self._bias)
        return self._transform(logits)

    @torch.no_grad()
    def logits(self, rows: Sequence[Row]) -> Iterator[Tensor]:
        """Chunks `[n, V] float32` of the positions of all rows, in order."""
        fed, flat = padded_on(pad_rows(rows), self.device)
        # transformers keeps documents apart where position_ids start again.
        hidden = self._body(**fed, use_cache=False).last_hidden_state
        hidden = hidden.flatten(0, 1).index_select(0, flat)
        for chunk in hidden.split(self._chunk):
            yield self._logits(chunk)


@contextmanager
def _products_of(precision: str | None) -> Iterator[None]:
    """Run float32 matrix products at a lower internal precision, for as long as it takes."""
    before = torch.get_float32_matmul_precision()
    if precision is not None:
        torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _logit_transform(config: Any) -> Callable[[Tensor], Tensor]:
    """What some families do to logits after the linear head."""
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def transform(logits: Tensor) -> Tensor:
        if scale != 1.0:
            logits = logits * scale
        return torch.tanh(logits / cap) * cap if cap else logits

    return transform


def _declared_pre_tokenizer(path: Path) -> str | None:
    from gguf import GGUFReader

    field = GGUFReader(path).get_field("tokenizer.ggml.pre")
    return None if field is None else str(field.contents())
