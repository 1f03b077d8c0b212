"""A finished run to export, and a fresh process that lacks the libraries that it must not need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.fakes import build_tiny, write_corpus
from tests.students import LLAMA
from trainers.exports.domains import exported
from trainers.exports.formats import Runner
from trainers.run.config import RunConfig
from trainers.run.setup import train

ROOT = Path(__file__).parents[2]

GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 300,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
"""Absolute positions in a table of their own, biases, products as `Gemm`."""
STUDENTS = {"llama": LLAMA, "untied": LLAMA | {"tie_word_embeddings": False}, "gpt2": GPT2}
LM = exported("causal-lm")

TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {
        "type": "WordLevel",
        "vocab": {"It": 1, "is": 2, "a": 3, "truth": 4, "?": 0},
        "unk_token": "?",
    },
}
"""One that the library reads; the fake teacher's is not."""

BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not to be imported here")

BLOCKED = set(sys.argv[1].split(","))
assert not BLOCKED & set(sys.modules)
sys.meta_path.insert(0, Block())
"""


def make_stores(folder: Path) -> None:
    """`store` to train on, `heldout` to check on: some of their rows hold several documents."""
    build_tiny(folder / "store", write_corpus(folder / "corpus"))
    corpus = write_corpus(folder / "other", documents=3, repeat=1)
    for i in range(12):  # short enough to share a row
        (folder / "other" / f"short-{i}.txt").write_text("It is a truth. " * (1 + i % 3))
    build_tiny(folder / "heldout", corpus)


def make_run(folder: Path, name: str, **changes: Any) -> Path:
    """Train one of `STUDENTS` for a moment."""
    config = folder / f"{name}.json"
    config.write_text(json.dumps(STUDENTS[name]))
    values = {
        "store": str(folder / "store"),
        "student": f"hf-config:{config}",
        "steps": 40,
        "batch_size": 4,
        "lr": 1e-2,
        "dtype": "float32",
    }
    run = folder / f"run-{name}"
    train(RunConfig(**(values | changes)), run)
    return run


def fresh(code: str, *arguments: object, without: str) -> str:
    """What Python prints in a new process where some libraries cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + code, without, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    z = logits.astype(np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def distorted(runner: Runner, change: Any) -> Runner:
    """A runner whose logits `change` alters."""
    return lambda inputs: change(runner(inputs))
