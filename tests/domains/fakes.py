"""A teacher of texts as a whole, small enough for fixtures: bytes for tokens, tables for a model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from softlabels.domains.text import TextRow
from softlabels.format.identity import TeacherRecord, TokenizerRecord
from softlabels.teachers import Teacher, TeacherTokenizer

CLS, SEP, MASK, PAD = 256, 257, 258, 259
Int32 = npt.NDArray[np.int32]


class ByteTextTokenizer(TeacherTokenizer):
    """Ids are UTF-8 bytes, between two marks."""

    vocab_size = 260

    def __init__(self) -> None:
        self.record = TokenizerRecord(
            sha256=hashlib.sha256(b"bytes between marks").hexdigest(),
            vocab_size=self.vocab_size,
            special_ids={"cls": CLS, "sep": SEP, "mask": MASK, "pad": PAD},
        )

    def files(self) -> Mapping[str, bytes]:
        return {"tokenizer.json": b'{"model": {"type": "bytes", "vocab": {}}}'}

    def encode_text(self, text: str, *, most: int) -> tuple[Int32, int]:
        data = text.encode()
        return np.array([CLS, *data[: most - 2], SEP], np.int32), len(data) + 2

    def encode_pieces(self, text: str, *, most: int) -> list[Int32]:
        data, step = text.encode(), most - 2
        return [
            np.array([CLS, *data[i : i + step], SEP], np.int32) for i in range(0, len(data), step)
        ]

    def encode_words(self, words: Sequence[str], *, most: int) -> tuple[Int32, Int32, int]:
        data = [(byte, i) for i, word in enumerate(words) for byte in word.encode()]
        kept = [(CLS, -1), *data[: most - 2], (SEP, -1)]
        ids, of_word = np.array(kept, np.int32).T
        return ids, of_word, len(data) + 2


class TinyTextTeacher(Teacher):
    """Logits of a position: a fixed random linear map of what is fed there, before and after."""

    def __init__(self, classes: Sequence[str] | None = None, vocab_size: int = 300) -> None:
        width = vocab_size if classes is None else len(classes)
        self.classes = None if classes is None else tuple(classes)
        g = torch.Generator().manual_seed(0)
        self.tables = [torch.randn(260, width, generator=g) * w for w in (2.0, 1.0, 1.0)]
        self.tokenizer = ByteTextTokenizer()
        self.hidden_size = 8
        self.layer = torch.randn(260, self.hidden_size, generator=g)
        self.last_layer = torch.empty(0)
        self.record = TeacherRecord(
            spec="fake:tiny-text",
            name="tiny-text",
            revision=None,
            weights_sha256=hashlib.sha256(f"{width}".encode()).hexdigest(),
            dtype="float32",
            device="cpu",
            engine="tests",
            vocab_size=width,
            parameters=3 * 260 * width,
        )

    def logits(self, rows: Sequence[Any]) -> Iterator[torch.Tensor]:
        fed = [torch.from_numpy(r.fed_ids[r.label_mask]).long() for r in rows]
        self.last_layer = self.layer[torch.cat(fed)]
        for row in rows:
            assert isinstance(row, TextRow)
            fed = torch.from_numpy(row.fed_ids).long()
            around = torch.cat([fed[:1], fed, fed[-1:]])
            z = sum(
                t[around[i : i + len(fed)]] for i, t in zip((1, 0, 2), self.tables, strict=True)
            )
            assert isinstance(z, torch.Tensor)
            yield z[torch.from_numpy(row.label_mask)].clone()


class TinyPairTeacher(Teacher):
    """Logits of a position: a fixed random linear map of what the decoder is fed there, and of the source's tokens."""

    def __init__(self, vocab_size: int = 300) -> None:
        g = torch.Generator().manual_seed(0)
        self.tables = [torch.randn(260, vocab_size, generator=g) * w for w in (2.0, 0.5)]
        self.tokenizer = ByteTextTokenizer()
        special = self.tokenizer.record.special_ids | {"decoder_start": PAD}
        self.tokenizer.record = msgspec.structs.replace(self.tokenizer.record, special_ids=special)
        self.record = TeacherRecord(
            spec="fake:tiny-pair",
            name="tiny-pair",
            revision=None,
            weights_sha256=hashlib.sha256(b"pair").hexdigest(),
            dtype="float32",
            device="cpu",
            engine="tests",
            vocab_size=vocab_size,
            parameters=2 * 260 * vocab_size,
        )

    def logits(self, rows: Sequence[Any]) -> Iterator[torch.Tensor]:
        for row in rows:
            fed, source = (torch.from_numpy(a).long() for a in (row.decoder_ids, row.source_ids))
            yield self.tables[0][fed] + self.tables[1][source].sum(dim=0)
