"""Causal LMs of transformers that differ in what they do between body and logits, small enough for tests."""

from __future__ import annotations

from typing import Any

import torch

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GQA = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.6}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain (Llama)": ("llama", GQA),
    "cap (Gemma 2)": ("gemma2", {**GQA, "final_logit_softcapping": 3.0}),
    "scale (Cohere)": ("cohere", {**GQA, "logit_scale": 0.3}),
    "scale that divides (Granite)": ("granite", {**GQA, "logits_scaling": 4.0}),
    "scale that multiplies (HyperCLOVA X)": ("hyperclovax", {**GQA, "logits_scaling": 0.5}),
    "scale by another name (Falcon-H1)": (
        "falcon_h1",
        {
            **GQA,
            "lm_head_multiplier": 0.25,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
        },
    ),
    "cap by another name (RecurrentGemma)": (
        "recurrent_gemma",
        {
            **SMALL,
            "num_key_value_heads": 2,
            "lru_width": 32,
            "block_types": ["recurrent", "attention"],
            "attention_window_size": 16,
            "logits_soft_cap": 3.0,
            "w_init_variance_scale": 1.0,
        },
    ),
    "bias (Phi)": ("phi", {**SMALL, "partial_rotary_factor": 0.5, "initializer_range": 0.6}),
    "layers before the head (ModernBERT decoder)": (
        "modernbert-decoder",
        {**SMALL, "cls_token_id": 1, "sep_token_id": 2, "initializer_range": 0.6},
    ),
    "cap (Gemma 3n, its text model)": (
        "gemma3n_text",
        {
            **GQA,
            **LAYERS,
            "intermediate_size": [48, 48],
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 1024,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "num_kv_shared_layers": 0,
            "activation_sparsity_pattern": [0.0, 0.0],
            "final_logit_softcapping": 3.0,
        },
    ),
    "cap in the part for text (Gemma 4)": (
        "gemma4",
        {
            "text_config": {
                **GQA,
                **LAYERS,
                "hidden_size_per_layer_input": 8,
                "vocab_size_per_layer_input": 1024,
                "global_head_dim": 8,
                "final_logit_softcapping": 3.0,
            }
        },
    ),
}
"""Kind and configuration; widths of heads are what `initializer_range` makes: logits that caps bite."""


def family(name: str, **changes: Any) -> Any:
    """A model of a family, weights drawn."""
    import transformers

    kind, settings = FAMILIES[name]
    settings = {**settings, **changes}
    if "text_config" in settings:
        settings = {"text_config": {**settings["text_config"], **changes}}
    config = transformers.AutoConfig.for_model(kind, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        head = model.get_output_embeddings()
        with torch.no_grad():
            head.weight.mul_(2.0 / head.weight.std() / head.weight.shape[1] ** 0.5)
            if head.bias is not None:
                head.bias.normal_()
    return model.eval()
