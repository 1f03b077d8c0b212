"""`hf:PATH` for causal LMs, GGUF files included.

The model runs once for a batch of rows; the head is applied to chunks of positions (`teachers/hf_head.py`), in float32
whatever the body's dtype: bfloat16 logits of a large vocabulary are rounded by up to 1/16 nat, more than most codecs
lose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import torch
from torch import Tensor

from softlabels.core.documents_apart import keeps_apart
from softlabels.core.local_model import load_weights, loading
from softlabels.core.rows import Row
from softlabels.domains.causal_lm import DOMAIN
from softlabels.errors import TeacherError
from softlabels.teachers.hf_head import HFHeadTeacher
from softlabels.teachers.hf_source import HFSource, context_of
from softlabels.teachers.segments import grouped
from softlabels.teachers.tokenizer import HFTokenizer, repair_pre_tokenizer

ALONE = ", documents that share a row as sequences of their own"
"""How the engine of a teacher ends whose model does not keep them apart."""


class HFTeacher(HFHeadTeacher):
    """A causal LM of transformers, whose rows may hold several documents.

    It is tried whether the model keeps them apart where `position_ids` start again (`core/documents_apart.py`); if not,
    each is a sequence of its own, and the record's engine says so.

    Raises:
        TeacherError: it cannot be loaded, or its head is not a linear map of the last hidden state.
        MissingExtraError: gguf is not installed.
    """

    settings: ClassVar[dict[str, Any]] = {"use_cache": False}

    def __init__(self, source: HFSource) -> None:
        found = source.found
        with loading(source.where, TeacherError):
            model = self.load(source)
            tokenizer = source.tokenizer()
            if found.gguf is not None:
                declared = _declared_pre_tokenizer(found.folder / found.gguf)
                repair_pre_tokenizer(tokenizer, declared, source.options.notice)
        self.context = context_of(model.config)
        model = source.on_device(model)
        super().__init__(model, HFTokenizer(tokenizer), source, fed=("input_ids",))
        self._apart = keeps_apart(
            self._tried,
            vocab_size=self.record.vocab_size,
            context=self.context,
            device=self.device,
        )
        if not self._apart:
            self.record = msgspec.structs.replace(self.record, engine=self.record.engine + ALONE)
            source.options.notice(
                f"teacher: in {type(model).__name__} documents that share a row see each other; each is given to it as "
                "a sequence of its own, which costs padding"
            )

    def _tried(self, ids: Tensor, position_ids: Tensor) -> Tensor:
        fed = {"input_ids": ids, "position_ids": position_ids}
        everywhere = torch.arange(ids.numel(), device=self.device)
        return self._given(fed, everywhere).view(*ids.shape, -1)

    @staticmethod
    def load(source: HFSource) -> Any:
        """The model; whatever transformers raises."""
        return load_weights(
            getattr(source.transformers, DOMAIN.transformers),
            source.found,
            dtype=source.choice.dtype if source.found.gguf is None else torch.float32,
            **source.placement.settings,
        )

    @torch.no_grad()
    def states(self, rows: Sequence[Row]) -> Tensor:  # type: ignore[override]  # rows of this domain
        """`[N, D]`: what the head is given at the positions of all rows, in order; rectangles are none larger."""
        of = super().states
        if self._apart or all(len(row.segment_lengths) == 1 for row in rows):
            return of(rows)
        cells = len(rows) * max(row.size for row in rows)
        alone = [piece for row in rows for piece in row.alone()]
        return torch.cat([of(group) for group in grouped(alone, cells)])

    def to_logits(self, hidden: Tensor) -> Tensor:
        """Logits `[n, V] float32` of what the head is given, `[n, D]`."""
        # Hidden states and weights of a bfloat16 body are exact in bfloat16: on a CPU their products may be
        # taken there, 1.7 times as fast, with sums and results still in float32.
        exact = self._head.weight.dtype == torch.bfloat16 and self.device.type == "cpu"
        with _products_of("medium" if exact else None):
            return super().to_logits(hidden)


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


def _declared_pre_tokenizer(path: Path) -> str | None:
    from gguf import GGUFReader

    field = GGUFReader(path).get_field("tokenizer.ggml.pre")
    return None if field is None else str(field.contents())
