"""Weights that are dealt out over processes (FSDP2), as whole tensors and back.

A checkpoint holds whole tensors, so it says nothing of who made it. One tensor is made whole at a time, and only the
first process keeps it, in its host's memory.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["copy_into", "local", "swap", "whole"]


def whole(tensor: Tensor, *, keep: bool) -> Tensor:
    """All of a tensor; every process must ask for it, and those that do not `keep` it get an empty one."""
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if keep else full.new_empty(0)


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process, to be changed in place."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_into(own: Tensor, value: Tensor) -> None:
    """Overwrite a tensor, whole or dealt out, with a whole one."""
    if isinstance(own, DTensor):
        value = distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
    own.copy_(value)


@torch.no_grad()
def swap(a: DTensor, b: DTensor) -> None:
    """Exchange the values of two tensors that are dealt out alike (FSDP keeps the storage, so that must stay)."""
    mine, theirs = local(a), local(b)
    kept = mine.clone()
    mine.copy_(theirs)
    theirs.copy_(kept)
