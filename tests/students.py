"""Students small enough for tests: configurations that `hf-config:` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainers.evaluation.config import EvalConfig
from trainers.evaluation.evaluate import evaluate, open_run, open_teacher_states
from trainers.evaluation.evaluations import Scores


def llama(*, layers: int = 1, width: int = 8, vocab_size: int = 300, **more: Any) -> dict[str, Any]:
    """A causal LM of a few thousand weights, with heads of 8, for the vocabulary of `TinyTeacher`."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 8,
        "num_key_value_heads": width // 8,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        **more,
    }


LLAMA = llama(layers=4, width=16)
"""Enough layers to take some of them."""


def evaluate_run(run: Path, store: Path | str, **settings: Any) -> Scores:
    """The scores of a finished run's student on a store; settings as of `EvalConfig`."""
    config = EvalConfig(store=str(store), **settings)
    student, opened = open_run(run, config)
    return evaluate(
        student,
        opened,
        device=config.device,
        batch_size=config.batch_size,
        teacher=open_teacher_states(config, opened),
    )
