"""An optimiser step in parts: micro-batches over processes, each with what it must know of the whole step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from softlabels.errors import ConfigError
from trainers.data.stream import Batch, SoftTargetStream
from trainers.run.setup import split_batch

__all__ = ["StepPart", "step_parts"]


class StepPart(NamedTuple):
    """A micro-batch of one process."""

    batch: Batch
    parts: int
    """Micro-batches of the step, over all processes."""
    positions: int
    """N of the whole step."""
    soft_positions: int
    """M of the whole step."""
    after: int
    """The stream's position once the step is done."""


def step_parts(
    stream: SoftTargetStream, accumulate: int, world: int, rank: int
) -> Iterator[StepPart]:
    """Micro-batches of a process, without end: `accumulate` for each batch of the stream.

    Args:
        stream: of whole steps; each process reads all their rows.
        accumulate: micro-batches of a step in each process.
        world: processes.
        rank: which of them, from 0.

    Raises:
        ConfigError: a step's rows cannot be split evenly.
    """
    parts = accumulate * world
    if stream.batch_size % parts:
        raise ConfigError(
            f"batch_size {stream.batch_size}: cannot be split into {accumulate} micro-batches "
            f"(accumulate_grad_batches) on each of {world} processes; take a multiple of {parts}"
        )
    for batch in stream:
        step = (parts, batch.positions, batch.soft_positions, stream.position)
        for i, micro in enumerate(split_batch(batch, parts)):
            if i % world == rank:
                yield StepPart(micro, *step)
