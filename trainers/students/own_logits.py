"""Whether a student's states and head make the logits of its model's own forward, seen on a few ids.

What is trained and scored is then what anybody who loads the student runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from softlabels.core.head_output import cap_of_output, check_logits, few_ids, seen_by_head
from softlabels.core.linear_head import Cap
from softlabels.errors import ConfigError, PairingError
from trainers.loss.head import head_logits

if TYPE_CHECKING:
    from trainers.students import Student


def measured_cap(student: Student) -> Cap:
    """What a student's model does with its head's output; nothing, where it is fed no ids.

    Raises:
        ConfigError: it is not understood.
    """
    if not student.fed:
        return Cap()
    few = _few(student)
    return cap_of_output(
        student.model, student.head_layer(), student.vocab_size, lambda: _run(student, few)
    )


@torch.no_grad()
def check_own_logits(student: Student, *, where: str) -> None:
    """Refuse a student whose logits would be others than its model's.

    Raises:
        PairingError: they are, or its head is not understood.
    """
    if not student.fed:
        return
    few = _few(student)
    try:
        with evaluated(student):
            states, expected = seen_by_head(student.head_layer(), lambda: _run(student, few))
            check_logits(student.model, head_logits(states, student.head()), expected)
    except ConfigError as e:
        raise PairingError(
            f"{where}: {e}; what would be trained is not what the model computes, so take a student of another family"
        ) from e


def _few(student: Student) -> dict[str, Tensor]:
    return few_ids(student.fed, student.vocab_size, student.head_layer().weight.device)


def _run(student: Student, few: dict[str, Tensor]) -> Any:
    return student.model(**few, use_cache=False)


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Without dropout, for a while."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True
