"""NaN and the infinities: found before they reach a checkpoint or a student, and what to do about them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from softlabels.errors import RunError


def is_finite(tensor: Tensor) -> bool:
    """Whether no number of a tensor is NaN or infinite."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def check_finite(
    tensors: Mapping[str, Tensor], *, what: str, step: int, lr: float, besides: Collection[str] = ()
) -> None:
    """Refuse to save what holds NaN or an infinity, but for those that had such values when the run began, as masks do.

    Raises:
        RunError: names the first such tensor.
    """
    for name, tensor in tensors.items():
        if name not in besides and not is_finite(tensor):
            raise not_finite(f"step {step}: {what} {name} holds NaN or an infinity", lr)


def not_finite(where: str, lr: float) -> RunError:
    """The error of a run whose numbers are no longer numbers; `where` begins the sentence, with the step and what."""
    return RunError(
        f"{where}, at a learning rate of {lr:.3g}; nothing of that step is saved, and earlier checkpoints are intact. "
        "--resume would take the same steps again: begin again in another --out with a lower --lr, more --warmup, "
        "--clip 1 or --dtype float32"
    )
