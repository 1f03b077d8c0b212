"""Weights that are sharded over processes (FSDP2), as whole tensors and back.

A checkpoint holds whole tensors, so it says nothing of who made it. One tensor is made whole at a time, and only the
first process keeps it, in its host's memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a `DTensor`, told without the import: seconds and 40 MiB that a single process can do without."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor, *, keep: bool) -> Tensor:
    """All of a tensor; every process must ask for it, and those that do not `keep` it get an empty one."""
    tensor = tensor.detach()
    if not is_sharded(tensor):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if keep else full.new_empty(0)


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process, to be changed in place."""
    return tensor.to_local() if is_sharded(tensor) else tensor


@torch.no_grad()
def copy_into(own: Tensor, value: Tensor) -> None:
    """Overwrite a tensor, whole or sharded, with a whole one."""
    if is_sharded(own):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
    own.copy_(value)


@torch.no_grad()
def swap(a: DTensor, b: DTensor) -> None:
    """Exchange the values of two tensors that are sharded alike (FSDP keeps the storage, so that must stay)."""
    mine, theirs = local(a), local(b)
    kept = mine.clone()
    mine.copy_(theirs)
    theirs.copy_(kept)
