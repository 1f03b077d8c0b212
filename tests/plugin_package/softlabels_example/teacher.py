"""`bigrams:SEED`: logits of the next byte, drawn for each byte before it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from softlabels.core.rows import Row
from softlabels.corpora.packing import Tokenized
from softlabels.format.identity import TeacherRecord, TokenizerRecord
from softlabels.teachers import Teacher, TeacherOptions, TeacherTokenizer, causal_only

END, V = 256, 260


def load_bigrams(argument: str, options: TeacherOptions) -> Bigrams:
    causal_only(options, f"bigrams:{argument}")
    return Bigrams(int(argument))


class Bytes(TeacherTokenizer):
    """Ids are the bytes of UTF-8; 256 ends a document."""

    vocab_size = END + 1
    record = TokenizerRecord(
        sha256=hashlib.sha256(b"bytes").hexdigest(), vocab_size=END + 1, special_ids={"eos": END}
    )

    def files(self) -> Mapping[str, bytes]:
        return {"tokenizer.json": b'{"model": {"type": "bytes", "vocab": {}}}'}

    def encode(self, text: str) -> Tokenized:
        ids = np.array([*text.encode(), END], np.int32)
        return Tokenized(input_ids=ids, learn=np.ones(len(ids), np.bool_))


class Bigrams(Teacher):
    def __init__(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self._table = torch.randn(V, V, generator=g) * 3
        self.tokenizer = Bytes()
        self.record = TeacherRecord(
            spec=f"bigrams:{seed}",
            name=f"bigrams-{seed}",
            revision=None,
            weights_sha256=hashlib.sha256(f"bigrams {seed}".encode()).hexdigest(),
            dtype="float32",
            device="cpu",
            engine=f"softlabels-example, torch {torch.__version__}",
            vocab_size=V,
            parameters=V * V,
        )

    def logits(self, rows: Sequence[Row]) -> Iterator[Tensor]:
        for row in rows:
            yield self._table[torch.from_numpy(row.input_ids[row.positions]).long()]
