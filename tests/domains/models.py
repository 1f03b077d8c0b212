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


def t5(layers: int = 2, **settings: Any) -> transformers.T5Config:
    return transformers.T5Config(
        vocab_size=len(MARKS) + len(WORDS) + 3,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=layers,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        **{"initializer_factor": 4.0, **settings},
    )


def bart() -> transformers.BartConfig:
    return transformers.BartConfig(
        vocab_size=len(MARKS) + len(WORDS),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=32,
        init_std=0.5,
        dropout=0.0,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=3,
        forced_eos_token_id=None,
    )


def save_seq2seq(folder: Path, settings: Any, *, seed: int = 0) -> Path:
    """An encoder and a decoder with opinions; BART's has a bias beside its head."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForSeq2SeqLM.from_config(settings)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def write_pairs(path: Path, n: int = 24, *, seed: int = 0) -> Path:
    """Texts, and the same words backwards."""
    with path.open("w") as f:
        for text in texts(n, seed=seed):
            target = " ".join(reversed(text.split()))
            f.write(json.dumps({"source": text, "target": target}) + "\n")
    return path
