"""A teacher small enough for tests: real tensors, a real (byte-level) tokenizer, no model library."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.core.linear_head import LinearHead
from softlabels.core.progress import Silent
from softlabels.core.rows import Row
from softlabels.corpora.packing import Tokenized
from softlabels.format.identity import TeacherRecord, TokenizerRecord
from softlabels.format.manifest import Manifest
from softlabels.teachers import Teacher, TeacherTokenizer

BYTES = 256
EOS = 256


class ByteTokenizer(TeacherTokenizer):
    """Ids are UTF-8 bytes; 256 ends a document."""

    vocab_size = BYTES + 1

    def __init__(self, salt: str = "") -> None:
        self.salt = salt
        self.record = TokenizerRecord(
            sha256=hashlib.sha256(f"bytes{salt}".encode()).hexdigest(),
            vocab_size=self.vocab_size,
            special_ids={"eos": EOS},
        )

    def files(self) -> Mapping[str, bytes]:
        return {
            "tokenizer.json": f'{{"model": {{"type": "bytes", "vocab": {{"salt": "{self.salt}"}}}}}}'.encode()
        }

    def encode(self, text: str) -> Tokenized:
        ids = np.array([*text.encode(), EOS], np.int32)
        return Tokenized(input_ids=ids, learn=np.ones(len(ids), np.bool_))

    def encode_completion(self, prompt: str, completion: str) -> Tokenized:
        ids = np.array([*(prompt + completion).encode(), EOS], np.int32)
        return Tokenized(input_ids=ids, learn=np.arange(len(ids)) >= len(prompt.encode()))

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, where: str) -> Tokenized:
        ids: list[int] = []
        learn: list[bool] = []
        for m in messages:
            part = f"{m['role'][0]}:{m['content']}\n".encode()
            ids += part
            learn += [m["role"] == "assistant" and i >= 2 for i in range(len(part))]
        return Tokenized(input_ids=np.array(ids, np.int32), learn=np.array(learn, np.bool_))


class TinyTeacher(Teacher):
    """Logits of a position: a fixed random linear map of the last three tokens of its document."""

    def __init__(
        self,
        vocab_size: int = 300,
        *,
        seed: int = 0,
        chunk: int = 101,
        scale: float = 3.0,
        salt: str = "",
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        self.tables = [
            torch.randn(vocab_size, vocab_size, generator=g) * scale * w for w in (1.0, 0.6, 0.3)
        ]
        self.head = LinearHead(torch.eye(vocab_size))
        self.chunk = chunk
        self.tokenizer = ByteTokenizer(salt)
        self.poison: tuple[int, float] | None = None
        """(position of the whole build, value) at which to put a bad logit."""
        self.seen = 0
        self.record = TeacherRecord(
            spec="fake:tiny",
            name="tiny",
            revision=None,
            weights_sha256=hashlib.sha256(f"{vocab_size} {seed} {scale}".encode()).hexdigest(),
            dtype="float32",
            device="cpu",
            engine="tests",
            vocab_size=vocab_size,
            parameters=3 * vocab_size**2,
        )

    def dense(self, row: Row) -> torch.Tensor:
        """Logits `[N, V]` of one row."""
        starts = np.concatenate([[0], np.cumsum(row.segment_lengths)])
        begins = starts[np.searchsorted(starts, row.positions, side="right") - 1]
        z = torch.zeros(len(row.positions), self.tables[0].shape[1])
        for back, table in enumerate(self.tables):
            known = row.positions - back >= begins
            z[torch.from_numpy(known)] += table[row.input_ids[row.positions[known] - back]]
        return z

    def states(self, rows: Sequence[Row]) -> torch.Tensor:
        """Its head makes its logits of themselves."""
        return torch.cat([self.dense(r) for r in rows])

    def logits(self, rows: Sequence[Row]) -> Iterator[torch.Tensor]:
        z = torch.cat([self.dense(r) for r in rows])
        for chunk in z.split(self.chunk):
            if self.poison is not None and self.seen <= self.poison[0] < self.seen + len(chunk):
                chunk[self.poison[0] - self.seen, 5] = self.poison[1]
            self.seen += len(chunk)
            yield chunk.clone()


class LinearTeacher(TinyTeacher):
    """Its states, 12 wide, are what `TinyTeacher` calls logits; its head has all that a head may have."""

    def __init__(self, vocab_size: int = 300, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(vocab_size)
        g = torch.Generator().manual_seed(4)
        self.tables = [t[:, :12].to(dtype).float() for t in self.tables]
        weight = torch.randn(vocab_size, 12, generator=g).to(dtype)
        self.head = LinearHead(weight, torch.randn(vocab_size, generator=g).to(dtype), 0.7, 15.0)
        self.dtype = dtype

    def states(self, rows: Sequence[Row]) -> torch.Tensor:
        """In the dtype of the head, as a body gives them."""
        return torch.cat([super(LinearTeacher, self).dense(r) for r in rows]).to(self.dtype)

    def dense(self, row: Row) -> torch.Tensor:
        """Logits `[N, V]` of one row, in float32."""
        weight, bias, scale, cap = self.head
        assert bias is not None
        assert cap is not None
        z = (self.states([row]).float() @ weight.float().T + bias.float()) * scale
        return torch.tanh(z / cap) * cap


TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, "
    "must be in want of a wife. However little known the feelings or views of such a man may be on "
    "his first entering a neighbourhood, this truth is so well fixed in the minds of the surrounding "
    "families, that he is considered the rightful property of some one or other of their daughters. "
)


def write_corpus(folder: Path, *, documents: int = 3, repeat: int = 2) -> str:
    """A few files of text; returns the corpus spec."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(documents):
        (folder / f"{i}.txt").write_text(f"Chapter {i}. " + TEXT * repeat, encoding="utf-8")
    return f"text:{folder}/*.txt"


def config_of(corpus: str, **changes: Any) -> BuildConfig:
    """A small build: rows of 64 tokens, shards of 8 rows."""
    values: dict[str, Any] = {"estimator": "topk", "k": 5, "seq_len": 64, "shard_rows": 8}
    return BuildConfig(teacher="fake:tiny", corpus=(corpus,), **(values | changes))


def build_tiny(
    out: Path, corpus: str, *, teacher: TinyTeacher | None = None, **changes: Any
) -> Manifest:
    """Build a store with the tiny teacher."""
    return build(config_of(corpus, **changes), out, teacher=teacher or TinyTeacher())


class Notices(Silent):
    """A progress callback that remembers its notices."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def notice(self, message: str) -> None:
        self.lines.append(message)


class Steps(Silent):
    """A progress callback that remembers how far each advance was, and of how much."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int | None]] = []

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> None:
        self.done, self.total = done, total

    def advance(self, amount: int, note: str | None = None) -> None:
        self.done += amount
        self.seen.append((self.done, self.total))


def load_tiny(argument: str, options: Any) -> TinyTeacher:
    """What a registry entry `fake:SECONDS` loads: a tiny teacher that takes its time for each batch."""
    import time

    class Slow(TinyTeacher):
        def logits(self, rows: Sequence[Row]) -> Iterator[torch.Tensor]:
            time.sleep(float(argument))
            yield from super().logits(rows)

    options.notice("teacher: tiny")
    return Slow()
