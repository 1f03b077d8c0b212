"""`wide:WIDTH`: a llama of one layer."""

from __future__ import annotations

import torch

from softlabels.errors import ConfigError
from trainers.data.tasks import CAUSAL, Task
from trainers.students import Student


def make_wide(argument: str, *, seed: int, task: Task = CAUSAL) -> Student:
    import transformers

    if task.domain != CAUSAL.domain or not argument.isdigit():
        raise ConfigError(f"--student wide:{argument}: expected a width, and a causal LM's store")
    config = transformers.LlamaConfig(
        vocab_size=task.vocab_size,
        hidden_size=int(argument),
        intermediate_size=2 * int(argument),
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=max(task.row_tokens, 64),
        bos_token_id=None,
        eos_token_id=task.special_ids.get("eos"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Student(transformers.LlamaForCausalLM(config))
