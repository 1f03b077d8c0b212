"""A causal LM of a few thousand weights in a folder, with a tokenizer: what every back-end can hold alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers

from softlabels.core.rows import Row
from softlabels.corpora import open_corpora
from softlabels.corpora.packing import pack
from softlabels.teachers import Teacher
from tests.fakes import TEXT
from tests.teachers.test_tokenizer import make

VOCAB = 416
"""Of the head; the tokenizer has fewer ids."""


def write_model(folder: Path, *, seed: int = 0, vocab_size: int = VOCAB) -> Path:
    """A llama with sharp logits: what a wrong position, mask or order gives is far from right."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.6,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    make().save_pretrained(folder)
    return folder


def rows_of(teacher: Teacher, corpus: str, *, seq_len: int = 48) -> list[Row]:
    """All rows of a corpus."""
    packed = pack(
        open_corpora([corpus]),
        teacher.tokenizer,
        seq_len=seq_len,
        vocab_size=teacher.record.vocab_size,
    )
    return [row for _, row in packed]


def log_probs(chunks: Iterator[torch.Tensor]) -> np.ndarray:
    """`[N, V] float64` of a teacher's chunks."""
    return torch.cat([c.clone() for c in chunks]).double().log_softmax(1).numpy()


def write_texts(folder: Path) -> str:
    """Short and long documents, so that rows are packed and cut; returns the corpus spec."""
    folder.mkdir(parents=True, exist_ok=True)
    words = TEXT.split()[:12]
    for i in range(9):
        text = " ".join(words[(i + j) % len(words)] for j in range(3 + 17 * (i % 3)))
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    return f"text:{folder}/*.txt"
