"""`hf:PATH` for masked LMs: an encoder whose head over the vocabulary is applied to chunks of positions.

The model runs once for a batch of rows and gives its head nothing to do; what the head was to be given is caught,
the positions are picked, and the head computes them in float32, as many at a time as a byte budget holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softlabels.domains.text import TextRow
from softlabels.errors import TeacherError
from softlabels.teachers import Teacher
from softlabels.teachers.encoder_tokenizer import EncoderTokenizer
from softlabels.teachers.hf_source import PROBE_IDS, HFSource, check_head, pad_texts
from softlabels.teachers.tokenizer import check_covers

__all__ = ["HFMaskedTeacher"]


class HFMaskedTeacher(Teacher):
    """A masked LM of transformers."""

    def __init__(
        self,
        model: Any,
        tokenizer: EncoderTokenizer,
        source: HFSource,
        *,
        head_bytes: int,
    ) -> None:
        self._model, self.tokenizer = model, tokenizer
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise TeacherError(
                f"{source.spec}: {type(model).__name__} has no linear layer over the vocabulary as its output "
                "embeddings"
            )
        if "mask" not in tokenizer.record.special_ids:
            raise TeacherError(
                f"{source.spec}: its tokenizer has no mask token, so nothing can be hidden"
            )
        self._head = head
        self._weight = head.weight.detach().float()
        self._bias = None if head.bias is None else head.bias.detach().float()
        self.device = self._weight.device
        self.record = source.record(model, vocab_size=int(self._weight.shape[0]))
        check_covers(tokenizer.vocab_size, self.record)
        self.hidden_size = int(model.config.hidden_size)
        self.last_layer = torch.empty(0, self.hidden_size)
        self._chunk = max(1, head_bytes // (4 * self.record.vocab_size))
        self._check_head()

    @torch.no_grad()
    def _check_head(self) -> None:
        """Compare the head as applied here with the model's own logits on a few ids."""
        ids = torch.arange(PROBE_IDS, device=self.device)[None] + 1
        mask = torch.ones_like(ids)
        expected = self._model(input_ids=ids, attention_mask=mask).logits[0].float()
        found = self._logits(self._hidden(ids, mask)[0][0])
        check_head(self._model, found, expected, spec=self.record.spec)

    def _hidden(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, S, D]` twice: what the head is given, and what the last layer gave."""
        caught: list[Tensor] = []
        layers: list[Tensor] = []

        def catch(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            caught.append(args[0])
            return (args[0][:, :0],)

        def keep(_: nn.Module, __: Any, out: Any) -> None:
            layers.append(out[0])

        body = self._model.base_model
        with self._head.register_forward_pre_hook(catch), body.register_forward_hook(keep):
            self._model(input_ids=ids, attention_mask=mask)
        if len(caught) != 1:
            raise TeacherError(
                f"{self.record.spec}: {type(self._model).__name__} calls its head {len(caught)} times, expected once"
            )
        return caught[0], layers[-1]

    def _logits(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden.float(), self._weight, self._bias)

    @torch.no_grad()
    def logits(self, rows: Sequence[TextRow]) -> Iterator[Tensor]:
        """Chunks `[n, V] float32` of the positions of all rows, in order."""
        padded, ids, mask = pad_texts(rows, self.device)
        flat = torch.from_numpy(padded.flat_positions).to(self.device)
        states = self._hidden(ids, mask)
        hidden, layer = (s.flatten(0, 1).index_select(0, flat) for s in states)
        self.last_layer = layer.float()
        for chunk in torch.split(hidden, self._chunk):
            yield self._logits(chunk)
