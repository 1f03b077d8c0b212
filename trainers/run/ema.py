"""An average of the student's weights over the last steps, which is often a better student than the last weights.

After step n (from 1) the average moves by 1 - d towards the weights, d = min(decay, n / (n + 9)): early on it
is a mean over nearly all steps, so that the first, random weights are soon forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from trainers.run.sharded import copy_into, is_sharded, local, swap
from trainers.students import Student


class Ema:
    """The average, beside a student and on its device; as large as its weights."""

    def __init__(self, student: Student, decay: float) -> None:
        self.decay = decay
        self._student = student
        self.weights = {n: p.detach().clone() for n, p in _averaged(student)}
        """By name, in the dtype of each."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step`, from 1."""
        decay = min(self.decay, step / (step + 9))
        for name, parameter in _averaged(self._student):
            local(self.weights[name]).lerp_(local(parameter.detach()), 1 - decay)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the average; names and shapes must be the student's."""
        assert set(weights) == set(self.weights)
        for name, mine in self.weights.items():
            copy_into(mine, weights[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The student has the averaged weights, until this is left; nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in _averaged(self._student):
            average = self.weights[name]
            if is_sharded(parameter) and is_sharded(average):
                swap(parameter, average)
            else:
                parameter.data, self.weights[name] = average, parameter.data


def _averaged(student: Student) -> list[tuple[str, Tensor]]:
    """Parameters, and what else of the state is learnt: the statistics of batch normalisation."""
    state = student.state_dict(keep_vars=True)
    learnt = [
        (name, buffer)
        for name, buffer in student.named_buffers()
        if name in state and buffer.is_floating_point()
    ]
    own = [(n, p) for n, p in student.named_parameters() if p.requires_grad]
    return [*own, *learnt]
