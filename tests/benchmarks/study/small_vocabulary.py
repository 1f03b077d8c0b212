"""The study's teacher with a small vocabulary: the ids that the rows of a text use, and no others.

The tokenizer keeps those tokens, and the merges that lead to them, so that it cuts the text as the whole one does; the
teacher keeps their embeddings, so that its softmax is the whole one's on them. Cells then cost a third, and arms differ
less by chance; but the teacher's rare ids are fewer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from softlabels.core.local_model import find_model, load_weights
from softlabels.errors import ConfigError


def used_ids(tokenizer: Tokenizer, text: Path, tokens: dict[str, int]) -> list[int]:
    """Ids of the first tokens of each part of a text, of what they are merged from, and of bytes; ascending.

    Args:
        tokenizer: byte-pair.
        text: folder with `train` and `heldout`.
        tokens: how many of each part.
    """
    model = json.loads(tokenizer.to_str())["model"]
    vocab, pairs = model["vocab"], list(map(tuple, model["merges"]))
    parts = {vocab["".join(pair)]: [vocab[token] for token in pair] for pair in pairs}
    used = set(vocab.values()) - parts.keys()
    for part, count in tokens.items():
        used |= set(_first_ids(tokenizer, text / part, count))
    open_ids = list(used)
    while open_ids:
        new = set(parts.get(open_ids.pop(), ())) - used
        used |= new
        open_ids += new
    return sorted(used)


def _first_ids(tokenizer: Tokenizer, folder: Path, count: int) -> Iterator[int]:
    for path in sorted(folder.glob("*.txt")):
        ids = tokenizer.encode(path.read_text(encoding="utf-8")).ids[:count]
        yield from ids
        count -= len(ids)


def cut_tokenizer(tokenizer: Tokenizer, ids: list[int]) -> Tokenizer:
    """The tokenizer of these ids alone, which become 0, 1, …"""
    content = json.loads(tokenizer.to_str())
    new = {old: i for i, old in enumerate(ids)}
    model: dict[str, Any] = content["model"]
    model["vocab"] = {token: new[i] for token, i in model["vocab"].items() if i in new}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    for token in content["added_tokens"]:
        token["id"] = new[token["id"]]
    return Tokenizer.from_str(json.dumps(content))


def small_teacher(teacher: Path, text: Path, tokens: dict[str, int], folder: Path) -> Path:
    """Write the teacher that knows the ids of a text's first tokens alone, once; its folder."""
    if (folder / "config.json").exists():
        return folder
    found = find_model(str(teacher), where="--teacher", error=ConfigError)
    whole = AutoTokenizer.from_pretrained(found.folder, **found.settings)
    ids = used_ids(whole.backend_tokenizer, text, tokens)
    small = cut_tokenizer(whole.backend_tokenizer, ids)
    special = {
        name: token for name, token in whole.special_tokens_map.items() if isinstance(token, str)
    }
    PreTrainedTokenizerFast(tokenizer_object=small, **special).save_pretrained(folder)
    model = load_weights(AutoModelForCausalLM, found, dtype=torch.float32)
    old = model.get_input_embeddings().weight.detach()
    rows = nn.Embedding(len(ids), old.shape[1])
    rows.weight = nn.Parameter(old[ids].clone())
    model.set_input_embeddings(rows)
    model.config.vocab_size = len(ids)
    model.tie_weights()
    model.save_pretrained(folder)
    return folder
