"""The processes of a torch group as parts of a vocabulary (`estimators/vocab_parallel.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from softlabels.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """Of W processes each has `ceil(V / W)` ids, the last one fewer; every process has one at least.

    Args:
        group: of torch.distributed, initialised; None: all processes.
    """

    vocab_size: int
    group: Any = None

    def __post_init__(self) -> None:
        size = dist.get_world_size(self.group)
        if (size - 1) * self.each >= self.vocab_size:
            raise ConfigError(
                f"{self.vocab_size} ids over {size} processes, {self.each} to each: none are left for the last; use "
                "fewer processes"
            )

    @property
    def rank(self) -> int:
        """Of this process, in the group."""
        return dist.get_rank(self.group)

    @property
    def each(self) -> int:
        """How many ids a process has, at most."""
        return -(-self.vocab_size // dist.get_world_size(self.group))

    @property
    def ids(self) -> range:
        """Those of this process."""
        each, count = self.each, self.vocab_size
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

    def total(self, own: Tensor) -> Tensor:
        """The sum over all processes, in each of them the same; of its dtype, in its place."""
        dist.all_reduce(own, dist.ReduceOp.SUM, group=self.group)
        return own

    def largest(self, own: Tensor) -> Tensor:
        """The largest of all processes, in its place."""
        dist.all_reduce(own, dist.ReduceOp.MAX, group=self.group)
        return own

    def whole(self, own: Tensor) -> Tensor:
        """`[n, V]` of each process's `[n, v]`."""
        parts = self.gather(torch.nn.functional.pad(own, (0, self.each - own.shape[1])))
        return parts.movedim(0, 1).flatten(1)[:, : self.vocab_size]


def dealt(head: Tensor, ranks: Ranks) -> Tensor:
    """This process's rows of a head, `[V, D]` or `[V]`, which may be dealt out already (`DTensor`)."""
    ids = ranks.ids
    if not hasattr(head, "to_local"):
        return head[ids.start : ids.stop]
    own: Tensor = head.to_local()
    return own if len(own) == len(ids) else own[ids.start : ids.stop]  # of all processes the same
