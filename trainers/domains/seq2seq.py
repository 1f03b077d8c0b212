"""Models with an encoder and a decoder as students, and as exports.

`input_ids`, `attention_mask`, `decoder_input_ids` -> `logits [B, T, V]`. Padding stands on the right of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from softlabels.domains.seq2seq import START, PairRow
from softlabels.errors import ConfigError
from trainers.data.batch import Batch
from trainers.data.tasks import Task
from trainers.domains import SizedDomain
from trainers.exports.domains import Example, Laid, Wrapped
from trainers.exports.texts import Texts, text_example
from trainers.students.encoders import EncoderStudent, token_head
from trainers.students.made import heads

FED = ("input_ids", "attention_mask", "decoder_input_ids")
BUCKETS = 32
"""Of T5's relative positions, for each head of encoder and decoder."""


class Seq2SeqStudent(EncoderStudent):
    """An encoder and a decoder with a linear head over the tokens."""

    fed: ClassVar[tuple[str, ...]] = FED

    def forward_model(self, batch: Batch) -> Any:
        """Encoder and decoder, each once."""
        return self.model(**batch.inputs, use_cache=False)


class _Pairs(Wrapped):
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor
    ) -> Tensor:
        logits: Tensor = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            use_cache=False,
        ).logits
        return logits.float()


class Seq2Seq(SizedDomain, Texts):
    """A pair is an example; sized students are a T5."""

    name = "seq2seq"
    stacked = False
    inputs = FED
    axes: Mapping[str, Mapping[int, str]] = {
        **Texts.axes,
        "decoder_input_ids": {0: "batch", 1: "decoder_length"},
    }
    usage = (
        "`input_ids` and `attention_mask` are `[batch, length]` int64: the source, 1 at tokens and 0 at padding, which "
        "is on the right. `decoder_input_ids` is `[batch, decoder_length]`: `decoder_start_token_id` of `config.json`, "
        "then the target as far as it is known, padded on the right. `logits[b, t]` are those of token t of the target."
    )
    unit = "tokens"
    module = _Pairs
    sample = "It is a truth"

    def student(
        self, model: Any, task: Task, *, where: str, source: Path | None = None
    ) -> Seq2SeqStudent:
        """Its decoder begins as the teacher's did.

        Raises:
            ConfigError: it was trained to begin otherwise.
        """
        start, own = task.special_ids.get(START), model.config.decoder_start_token_id
        if start is not None and own not in (None, start):
            raise ConfigError(
                f"{where}: its decoder begins with id {own} (decoder_start_token_id), the store's with {start}; use a "
                "student of the teacher's own family, or new:SIZE"
            )
        model.config.decoder_start_token_id = own if start is None else start
        return Seq2SeqStudent(model, token_head(model, where=where), source=source)

    def parameters(self, task: Task, width: int, depth: int) -> int:
        """Of a T5 with so many layers in either half, whose head is tied to its embeddings."""
        d, inner = width, 4 * width
        attention, gated = 4 * d * d + d, 2 * d * inner + d
        return (
            task.vocab_size * d + depth * (3 * attention + 2 * gated) + 2 * (BUCKETS * heads(d) + d)
        )

    def config(self, task: Task, width: int, depth: int, transformers: Any) -> Any:
        """Of a T5."""
        count = heads(width)
        ids = {n: i for n, i in task.tokens.items() if i is not None and n != "bos_token_id"}
        return transformers.T5Config(
            **ids,
            d_model=width,
            d_kv=width // count,
            d_ff=4 * width,
            num_layers=depth,
            num_heads=count,
            dropout_rate=0.0,
            relative_attention_num_buckets=BUCKETS,
            decoder_start_token_id=task.special_ids.get(START),
            architectures=["T5ForConditionalGeneration"],
        )

    def of_row(self, row: PairRow) -> list[Example]:
        """Its pair."""
        return [text_example(row.source_ids, row.labels, decoder_input_ids=row.decoder_ids)]

    def lay(self, examples: Sequence[Example], *, left: bool = False) -> Laid:
        """On the right always: a decoder counts its places from the first."""
        sources, _ = self.side_by_side(examples, left=False)
        sizes = [self.size(e) for e in examples]
        fed = np.zeros((len(examples), max(sizes)), np.int64)
        for b, (example, n) in enumerate(zip(examples, sizes, strict=True)):
            fed[b, :n] = example.inputs["decoder_input_ids"]
        places = [b * fed.shape[1] + np.arange(n) for b, n in enumerate(sizes)]
        return Laid(inputs={**sources, "decoder_input_ids": fed}, places=np.concatenate(places))

    def preparation(self, folder: Path, details: Mapping[str, Any]) -> str:
        """The source with the tokenizer; of the target nothing is known yet."""
        return super().preparation(folder, details) + (
            "import json, pathlib\n"
            'start = json.loads(pathlib.Path("PATH/config.json").read_text())["decoder_start_token_id"]\n'
            'inputs["decoder_input_ids"] = np.array([[start]])\n'
        )

    def size(self, example: Example) -> int:
        """Tokens of the target."""
        return len(example.inputs["decoder_input_ids"])


DOMAIN = Seq2Seq()
