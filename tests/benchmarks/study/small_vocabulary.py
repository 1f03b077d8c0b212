"""The study's teacher with a small vocabulary: the first ids of its byte-pair tokenizer, and their embeddings.

Ids of a byte-pair tokenizer are in the order of its merges, so that the first ones are a tokenizer of their own, which
writes every text. Cells then cost a fifth, and what differs from arm to arm is less noisy; but rare ids are fewer.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from softlabels.core.local_model import find_model, load_weights
from softlabels.errors import ConfigError


def cut_tokenizer(tokenizer: Tokenizer, size: int) -> Tokenizer:
    """The tokenizer that the first `size` ids are.

    Raises:
        ConfigError: ids are not those of bytes and then of merges, in their order.
    """
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    merges, ids = model["merges"], sorted(model["vocab"].values())
    joined = ["".join(m) if isinstance(m, list) else m.replace(" ", "", 1) for m in merges]
    first = len(ids) - len(merges)
    if [model["vocab"].get(token) for token in joined] != list(range(first, len(ids))):
        raise ConfigError("--vocabulary: the teacher's ids are not in the order of its merges")
    if not first < size <= len(ids):
        raise ConfigError(f"--vocabulary {size}: choose from {first + 1} to {len(ids)}")
    model["merges"] = merges[: size - first]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i < size}
    content["added_tokens"] = [t for t in content["added_tokens"] if t["id"] < size]
    return Tokenizer.from_str(json.dumps(content))


def small_teacher(teacher: Path, size: int, out: Path) -> Path:
    """Write the teacher of the first `size` ids, once; its folder."""
    folder = out / f"teacher-{size}"
    if (folder / "config.json").exists():
        return folder
    found = find_model(str(teacher), where="--teacher", error=ConfigError)
    whole = AutoTokenizer.from_pretrained(found.folder, **found.settings)
    small = cut_tokenizer(whole.backend_tokenizer, size)
    special = {
        name: token for name, token in whole.special_tokens_map.items() if isinstance(token, str)
    }
    PreTrainedTokenizerFast(tokenizer_object=small, **special).save_pretrained(folder)
    model = load_weights(AutoModelForCausalLM, found, dtype=torch.float32)
    old = model.get_input_embeddings().weight.detach()
    rows = nn.Embedding(size, old.shape[1])
    rows.weight = nn.Parameter(old[:size].clone())
    model.set_input_embeddings(rows)
    model.config.vocab_size = size
    model.tie_weights()
    model.save_pretrained(folder)
    return folder
