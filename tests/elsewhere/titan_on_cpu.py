"""torchtitan's own entry point, `torchtitan.train`, where the CPU is an accelerator.

It looks for one when it is imported, and has no other way to be told. What it asks of it beyond what `torch.cpu` has is
what its log says of memory; what it asks of gloo is a sum times 1, which gloo has under the name of a sum.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch._utils
import torch.distributed.distributed_c10d as c10d
from torch.distributed.fsdp import FSDPModule

LOGGED = {
    "current_device": 0,
    "empty_cache": None,
    "get_device_name": "CPU",
    "get_device_properties": SimpleNamespace(total_memory=2**34),
    "memory_stats": {},
    "reset_peak_memory_stats": None,
}
for name, value in LOGGED.items():
    setattr(torch.cpu, name, lambda *_, value=value: value)
torch._utils._get_available_device_type = lambda: "cpu"
torch.distributed.set_timeout = c10d._set_pg_timeout  # public from the torch on that it is made for
divide = FSDPModule.set_gradient_divide_factor


def sum_alone(module: FSDPModule, factor: float) -> None:
    divide(module, factor)
    module.set_force_sum_reduction_for_comms(True)


FSDPModule.set_gradient_divide_factor = sum_alone  # type: ignore[method-assign]

from torchtitan.models import llama3  # noqa: E402
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm  # noqa: E402
from torchtitan.models.common.attention import ScaledDotProductAttention  # noqa: E402
from torchtitan.train import main  # noqa: E402


def tiny(attn_backend: str, **_: Any) -> llama3.Llama3Model.Config:
    """The student of `tests/teachers/tiny.py`."""
    init = {"weight": torch.nn.init.ones_}
    layers = llama3._build_llama3_layers(
        n_layers=2,
        dim=32,
        n_heads=4,
        n_kv_heads=2,
        hidden_dim=48,
        attn_backend=attn_backend,
        rope=ComplexRoPE.Config(dim=8, max_seq_len=2048),
    )
    for layer in layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    config = llama3.Llama3Model.Config(
        dim=32,
        vocab_size=416,
        tok_embeddings=Embedding.Config(num_embeddings=416, embedding_dim=32, param_init=init),
        norm=RMSNorm.Config(normalized_shape=32, param_init=init),
        lm_head=Linear.Config(in_features=32, out_features=416, param_init=init),
        layers=layers,
    )
    for _, norm, _, _ in config.traverse(RMSNorm.Config):
        norm.eps = 1e-6
    return config


llama3.llama3_configs["8B"] = tiny

if __name__ == "__main__":
    main()
