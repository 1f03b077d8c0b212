"""The processes of a torch group as parts of a vocabulary (`estimators/vocab_parallel.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Of W processes each has `ceil(V / W)` ids, the last one fewer; every process has one at least.

    Args:
        group: of torch.distributed, initialised; None: all processes.
    """

    vocab_size: int
    group: Any = None

    @property
    def rank(self) -> int:
        """Of this process, in the group."""
        return dist.get_rank(self.group)

    @property
    def ids(self) -> range:
        """Those of this process."""
        size, count = dist.get_world_size(self.group), self.vocab_size
        each = -(-count // size)
        return range(min(self.rank * each, count), min((self.rank + 1) * each, count))

    @property
    def first(self) -> int:
        """The lowest of them."""
        return self.ids.start

    def gather(self, own: Tensor) -> Tensor:
        """`[W, …]`: what each process gave."""
        found = own.new_empty((dist.get_world_size(self.group), *own.shape))
        dist.all_gather(list(found.unbind()), own.contiguous(), group=self.group)
        return found


def dealt(head: Tensor, ranks: Ranks) -> Tensor:
    """This process's rows of a head, `[V, D]` or `[V]`."""
    ids = ranks.ids
    return head[ids.start : ids.stop]


def backend_of(device: torch.device) -> str:
    """Of torch.distributed, for tensors on a device."""
    return "nccl" if device.type == "cuda" else "gloo"
