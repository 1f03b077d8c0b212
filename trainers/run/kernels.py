"""Faster kernels in a student's body.

Attention is torch's scaled dot product wherever the model has it: transformers' own default, unless a student's
`config.json` says `"attn_implementation": "eager"`. Liger's kernels (norms, rotary embedding, gated MLP) are asked for
by name, since they round otherwise. Their losses are left out: `topk_tail` makes no logits that they could fuse.
"""

from __future__ import annotations

import torch

from softlabels.errors import ConfigError, MissingExtraError
from trainers.students import Student


def apply_kernels(name: str, student: Student, device: torch.device) -> None:
    """Put kernels into a student's model; `torch` leaves it as it is. Its weights, and what it saves, stay the same.

    Raises:
        ConfigError: no GPU for them, or none for this kind of model.
        MissingExtraError: they are not installed.
    """
    if name == "torch":
        return
    if device.type != "cuda":
        raise ConfigError(
            f"--kernels liger: they run on CUDA, this run is on {device.type}; use --kernels torch"
        )
    try:
        from liger_kernel.transformers import monkey_patch as liger
    except ImportError as e:
        raise MissingExtraError("liger-kernel", "liger", "--kernels liger") from e
    kind = student.model.config.model_type
    if kind not in liger.MODEL_TYPE_TO_APPLY_LIGER_FN:  # Liger itself would do nothing, in silence
        raise ConfigError(
            f"--kernels liger: there are none for a model of type {kind!r}; use --kernels torch"
        )
    liger._apply_liger_kernel_to_instance(
        model=student.model, cross_entropy=False, fused_linear_cross_entropy=False
    )
