"""Causal LMs of transformers of every kind, a few thousand random weights each.

In the first kind `position_ids` that start again keep documents apart, in the second they do not: recurrent layers and
convolutions carry on, and old attention makes no mask of them.
"""

from __future__ import annotations

from typing import Any

import transformers as t

VOCAB = 416
"""As `tests/teachers/tiny.py` has it."""
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
OLD: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": None,
    "eos_token_id": 0,
}
DELTA: dict[str, Any] = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}

APART = {
    "llama": lambda: t.LlamaConfig(**SMALL),
    "mistral with a window": lambda: t.MistralConfig(**SMALL, sliding_window=4),
    "gemma3": lambda: t.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=4),
    "qwen3 with experts": lambda: t.Qwen3MoeConfig(**SMALL, head_dim=8, **EXPERTS),
    "gpt2": lambda: t.GPT2Config(**OLD),
}
NOT_APART = {
    "openai": lambda: t.OpenAIGPTConfig(**OLD),
    "opt": lambda: t.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    ),
    "bloom": lambda: t.BloomConfig(
        vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=0
    ),
    "qwen3_next": lambda: t.Qwen3NextConfig(
        **SMALL, **DELTA, **EXPERTS, shared_expert_intermediate_size=16
    ),
    "qwen3_5": lambda: t.Qwen3_5TextConfig(**SMALL, **DELTA),
    "lfm2": lambda: t.Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]),
    "mamba2": lambda: t.Mamba2Config(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_heads=8,
        head_dim=8,
        state_size=8,
        n_groups=1,
        chunk_size=8,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    ),
    "bamba": lambda: t.BambaConfig(**SMALL, **MAMBA, attn_layer_indices=[1]),
}
EVERY = {
    **{n: (c, True) for n, c in APART.items()},
    **{n: (c, False) for n, c in NOT_APART.items()},
}


def model_of(family: str, *, seed: int = 0) -> Any:
    """Of one of the families, with weights large enough that tokens do something to each other."""
    import torch

    torch.manual_seed(seed)
    config, _ = EVERY[family]
    made = config()
    made.initializer_range = 0.2
    return t.AutoModelForCausalLM.from_config(made).eval()
