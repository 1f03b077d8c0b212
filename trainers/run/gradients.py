"""Gradients of a step: the sum over its micro-batches on all ranks.

With `--exact-ranks` the micro-batches of a step, numbered over all ranks, are summed as a binary tree: 0+1, 2+3, then
(0+1)+(2+3). Rank r has the r-th part of them, so its own sum is a whole branch, and ranks are added in pairs: r with
r^1, then r^2. Addition of two floats does not depend on their order; so 1, 2 and 4 ranks give the same sum to the bit,
as long as the step has as many micro-batches, a power of two, on each.

Price: where a rank has more than 2 micro-batches, one more copy of the gradients for each doubling. Without the flag a
rank's micro-batches are added one after the other, and other numbers of ranks agree within rounding.

On CUDA the kernels' own sums are not repeatable to the bit, so more than two ranks add by one nccl all-reduce.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from softlabels.core.allocator import give_back
from trainers.run.reduce import Ranks

_SYNC_BUFFERS = (  # renamed in torch 2.13
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


class GradientTree:
    """Adds up the gradients of a rank's micro-batches 0, 1, 2, … as a binary tree, or one after the other.

    What is complete lies in `parameter.grad`; the left branches that wait for their right ones lie here.

        for i in range(n):
            tree.before(i)
            loss.backward()
            tree.after(last=i == n - 1)

    Args:
        parameters: whose gradients.
        branches: False adds them one after the other, which takes no more memory.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, branches: bool) -> None:
        self._branches = branches
        self._parameters = [p for p in parameters if p.requires_grad]
        self._left: list[tuple[int, dict[nn.Parameter, Tensor]]] = []
        self._size = 0

    def before(self, i: int) -> None:
        """Micro-batch i is next: its gradient joins that of an even i - 1, else it begins a branch."""
        if i % 2 or not self._branches:
            return
        if i:
            whole = {p: p.grad for p in self._parameters if p.grad is not None}
            self._left.append((self._size, whole))
            for p in self._parameters:
                p.grad = None
        self._size = 0

    def after(self, *, last: bool) -> None:
        """The gradient of a micro-batch was added; with the last, all branches become one."""
        self._size += 1
        while self._left and (last or self._left[-1][0] == self._size):
            size, left = self._left.pop()
            for p, gradient in left.items():
                p.grad = gradient if p.grad is None else p.grad.add_(gradient)
            self._size += size

    def complete(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Add, in place, what waits for the last micro-batch's branch; `after` has then nothing left to do."""
        for _, left in reversed(self._left):
            if parameter in left:
                gradient.add_(left.pop(parameter))


class Local:
    """The gradients of one process; several processes have one of the classes below."""

    scale = 1.0
    """To multiply the loss by before backward."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of one."""
        return nullcontext()


class Sharded(Local):
    """The gradients of several processes that share one student's weights (FSDP2).

    Each layer is made whole when it is needed; each micro-batch's gradients are sharded at once, to save memory. A
    student on the host goes to the device layer by layer, so that no device ever holds all of it.
    """

    def __init__(
        self, module: nn.Module, layers: Iterable[nn.Module], ranks: Ranks, device: torch.device
    ) -> None:
        # A single process can do without.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        if device.type == "cpu":
            give_back()
        mesh = init_device_mesh(device.type, (ranks.world_size,))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh)
        super().__init__(module)
        self.scale = float(ranks.world_size)
        """FSDP takes the mean over ranks; gloo has no other choice of divisor."""


class DataParallel(Local):
    """The gradients of several processes, each with the whole student: sums, not means.

    Buckets are sent while backward goes on (DDP); not until a rank's last micro-batch.
    """

    def __init__(self, module: nn.Module, tree: GradientTree, ranks: Ranks, device: Any) -> None:
        self._tree = tree
        self._pairs = _pairs(ranks, device)
        synced: dict[str, Any] = {_SYNC_BUFFERS: False}  # training changes no student's buffers
        super().__init__(DistributedDataParallel(module, gradient_as_bucket_view=True, **synced))
        # a lambda, for DDP compares annotations with its own, and strings with classes
        # and weakly: torch holds it where the collector of cycles cannot see, so it would keep the process group alive
        me = weakref.ref(self)
        self.module.register_comm_hook(None, lambda _, bucket: me()._sum(bucket))  # type: ignore[union-attr]

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of one; gradients are exchanged in the last's."""
        return nullcontext() if last else self.module.no_sync()

    def _sum(self, bucket: Any) -> Any:
        """Of a `GradBucket`, a future of its sum over all ranks."""
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            self._tree.complete(parameter, gradient)
        buffer = bucket.buffer()
        for group in self._pairs[:-1]:
            dist.all_reduce(buffer, group=group)
        work = dist.all_reduce(buffer, group=self._pairs[-1], async_op=True)
        assert work is not None
        return _buffer_of(work.get_future())


def _buffer_of(sent: torch.futures.Future[list[Tensor]]) -> torch.futures.Future[Tensor]:
    found: torch.futures.Future[Tensor] = sent.then(lambda future: future.value()[0])
    return found


def _pairs(ranks: Ranks, device: torch.device) -> list[dist.ProcessGroup | None]:
    """Groups to add over, one after the other; None is all ranks at once."""
    w = ranks.world_size
    if w == 2 or w & (w - 1) or device.type != "cpu":
        return [None]
    mine: list[dist.ProcessGroup | None] = []
    bit = 1
    while bit < w:
        for low in (r for r in range(w) if not r & bit):  # every rank makes every group
            group = dist.new_group([low, low | bit])
            if ranks.rank in (low, low | bit):
                mine.append(group)
        bit *= 2
    return mine
