"""The processes of one run: who is there, what they tell each other, and what only the first does.

`torchrun` says in the environment how many there are. Without it, or with one, no process group is made and every
method here is a plain local act.

Small numbers go over gloo on the host, gradients over gloo (CPU) or nccl (CUDA): see `gradients.py`.
"""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from softlabels.errors import ConfigError, RunError, first_line

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)
"""Longer than the first rank's longest task alone, an evaluation. A rank that dies is noticed at once."""
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    """Of this process, from 0."""
    world_size: int = 1
    """How many there are."""
    local_rank: int = 0
    """Of this process on its host: the number of its GPU."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the only one that writes."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there is a process group."""
        return self.world_size > 1

    def device(self, wanted: str) -> str:
        """The device for this rank: on CUDA, the one of its number on the host.

        Raises:
            ConfigError: one GPU named for several ranks.
        """
        if not self.several or wanted == "cpu":
            return wanted
        if wanted.startswith("cuda:"):
            raise ConfigError(
                f"--device {wanted}: {self.world_size} ranks cannot share one GPU; pass --device cuda, which gives "
                "each its own"
            )
        if wanted == "auto" and not torch.cuda.is_available():
            return wanted
        found = torch.cuda.device_count()
        if self.local_rank >= found:
            raise ConfigError(
                f"--device {wanted}: local rank {self.local_rank} finds {found} GPUs on this host; start at most "
                f"{found} processes here, or pass --device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return f"cuda:{self.local_rank}"

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """The equally long lists of all ranks, in their order, on every rank; exact (float64).

        Raises:
            RunError: another rank is gone.
        """
        if not self.several:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.float64)
        everyone = [torch.empty_like(mine) for _ in range(self.world_size)]
        try:
            dist.all_gather(everyone, mine)
        except RuntimeError as e:
            raise self.lost(e) from e
        return [t.tolist() for t in everyone]

    def rows(self, mine: Iterable[Sequence[float]]) -> list[list[float]]:
        """A tuple of numbers for each of this rank's micro-batches -> those of all ranks', in the step's order."""
        rows = [list(row) for row in mine]
        width = len(rows[0])
        everyone = self.gather([value for row in rows for value in row])
        return [told[i : i + width] for told in everyone for i in range(0, len(told), width)]

    def gather_objects(self, value: T) -> list[T]:
        """One small object of each rank, in their order, on every rank."""
        if not self.several:
            return [value]
        everyone: list[Any] = [None] * self.world_size
        try:
            dist.all_gather_object(everyone, value)
        except RuntimeError as e:
            raise self.lost(e) from e
        return everyone

    def from_first(self, act: Callable[[], T]) -> T:
        """What `act` returns on rank 0, which alone performs it; every rank waits for it.

        Raises:
            RunError: elsewhere, if it failed on rank 0, where its own error is raised.
        """
        if not self.several:
            return act()
        told: list[Any] = [None, None]
        failed: Exception | None = None
        if self.first:
            try:
                told[0] = act()
            except Exception as e:
                failed, told[1] = e, f"{type(e).__name__}: {e}"
        try:
            dist.broadcast_object_list(told, src=0)
        except RuntimeError as e:
            raise self.lost(e) from e
        if failed is not None:
            raise failed
        if told[1] is not None:
            raise RunError(f"rank {self.rank}: rank 0 ended with {told[1]}")
        value: T = told[0]
        return value

    def lost(self, error: BaseException) -> RunError:
        """What to say where another rank no longer answers."""
        return RunError(
            f"rank {self.rank}: another rank ended or cannot be reached, and says why in its own output "
            f"({first_line(error)}); once that is mended --resume goes on from the last checkpoint"
        )

    def is_lost(self, error: BaseException) -> bool:
        """Whether an error of torch only means that another rank is gone."""
        if not self.several:
            return False
        words = str(error).lower()
        return isinstance(error, dist.DistError) or "gloo" in words or "nccl" in words


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun started; alone without it.

    A process group that is there already is used, and left in place.

    Raises:
        RunError: the others cannot be reached.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size(), local)
        return
    world_size = (
        int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in VARIABLES) else 1
    )
    if world_size == 1:
        yield Ranks()
        return
    ranks = Ranks(int(os.environ["RANK"]), world_size, local)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT
        )
    except (RuntimeError, ValueError) as e:
        raise RunError(
            f"rank {ranks.rank}: cannot meet the other {world_size - 1} ranks at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({first_line(e)})"
        ) from e
    try:
        yield ranks
        dist.barrier()  # none leaves while another still talks to it
    except KeyboardInterrupt as e:
        traceback.clear_frames(e.__traceback__)  # they hold the student, and it the group
        raise
    finally:
        gc.collect()  # what still holds the group's threads must not outlive it: they would abort the interpreter's end
        dist.destroy_process_group()
