"""Small encoders and their tokenizer, made from nothing, in folders that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

WORDS = "the a film book was is good bad dull great funny sad very not and but it plot cast".split(" ")  # fmt: skip # noqa: SIM905
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLASSES = ("negative", "neutral", "positive")


def config(layers: int = 2, **settings: Any) -> transformers.BertConfig:
    return transformers.BertConfig(
        vocab_size=len(MARKS) + len(WORDS),
        hidden_size=settings.pop("hidden_size", 16),
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **{"initializer_range": 0.5, **settings},
    )


def save_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {word: i for i, word in enumerate([*MARKS, *WORDS])}
    transformers.BertTokenizer(vocab=vocab).save_pretrained(folder)


def save_classifier(folder: Path, *, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Path:
    """A classifier of three classes whose random head has opinions."""
    names = dict(enumerate(classes))
    torch.manual_seed(seed)
    model = transformers.BertForSequenceClassification(
        config(id2label=names, label2id={n: i for i, n in names.items()})
    )
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_masked_lm(folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    """A masked LM with opinions; its head is tied to its embeddings and has a bias."""
    torch.manual_seed(seed)
    model = transformers.BertForMaskedLM(config(**settings))
    with torch.no_grad():
        model.cls.predictions.bias.normal_()
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tagger(folder: Path, *, seed: int = 0) -> Path:
    """A classifier of words."""
    names = dict(enumerate(CLASSES))
    torch.manual_seed(seed)
    model = transformers.BertForTokenClassification(
        config(id2label=names, label2id={n: i for i, n in names.items()})
    )
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def texts(n: int, *, seed: int = 0) -> list[str]:
    g = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(n):
        length = int(torch.randint(3, 12, (), generator=g))
        out.append(
            " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (length,), generator=g))
        )
    return out


def write_corpus(path: Path, n: int = 40, *, seed: int = 0, labelled: bool = True) -> Path:
    with path.open("w") as f:
        for i, text in enumerate(texts(n, seed=seed)):
            record = {"text": text}
            if labelled:
                record["label"] = CLASSES[i % 3] if i % 2 else i % 3
            f.write(json.dumps(record) + "\n")
    return path
