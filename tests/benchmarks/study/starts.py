"""Where the study's students start from: far (from scratch), middle (the teacher's embeddings), near (its layers)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from softlabels.cli.demo import write_config
from softlabels.core.local_model import find_model, load_weights
from softlabels.errors import ConfigError

NEAR_LAYERS = "0,1,2,9,16,23,27,28,29"
"""Of SmolLM2-135M's 30: its first and last, and some of what lies between."""


def principal(weights: torch.Tensor, width: int) -> torch.Tensor:
    """The first `width` principal components of rows, scaled as embeddings are at the start (sd 0.02); [V, width]."""
    rows = weights.double()
    rows = rows - rows.mean(0)
    _, vectors = torch.linalg.eigh(rows.T @ rows)
    found = rows @ vectors[:, -width:].flip(1)
    return (found * (0.02 / found.std())).float()


def start(kind: str, seed: int, *, teacher: Path, store: Path, out: Path) -> str:
    """The `--student` of a kind; what has to be written is written below `out`, once."""
    if kind == "near":
        return f"layers-of:{teacher}?keep={NEAR_LAYERS}"
    out.mkdir(parents=True, exist_ok=True)
    file = out / "far.json"
    write_config(file, store)  # the demo's small Llama in the vocabulary of the store's teacher
    if kind == "far":
        return f"hf-config:{file}"
    config = json.loads(file.read_text(encoding="utf-8"))
    folder = out / f"middle-{seed}"
    if not (folder / "config.json").exists():
        found = find_model(str(teacher), where="the teacher", error=ConfigError)
        head = load_weights(AutoModelForCausalLM, found, dtype=torch.float32)
        weights = head.get_output_embeddings().weight.detach()
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**config))
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(principal(weights, config["hidden_size"]))
        model.save_pretrained(folder)
    return f"hf:{folder}"
