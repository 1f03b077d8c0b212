"""A student against all of its teacher's distribution, a few rows of logits at a time, at T=1.

Shapes: N positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trainers.data.batch import TeacherLogits
from trainers.loss.divergences import Shape, forward_kl
from trainers.loss.full import chunks_of, teacher_log_probs
from trainers.loss.head import CHUNK_BYTES, Head, accumulator, head_logits


class Whole(NamedTuple):
    """What is exact once all V ids of both are known; `[N]` each."""

    kl: Tensor
    """KL(teacher || student), nats."""
    acceptance: Tensor
    """Sum of min(p, q): the chance that a token that the student drafts is accepted."""
    top: Tensor
    """The teacher's first choice."""
    confidence: Tensor
    """Its probability."""


@torch.no_grad()
def compare_whole(hidden: Tensor, head: Head, teacher: TeacherLogits) -> Whole:
    """Compare a student's distribution with its teacher's.

    Args:
        hidden: `[N, D]` of the student.
        head: the student's.
        teacher: at the same positions.
    """
    dtype = accumulator(hidden)
    budget = CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["cuda"])
    parts = []
    for part in chunks_of(len(hidden), len(head.weight), dtype, budget):
        log_q = torch.log_softmax(head_logits(hidden[part], head), dim=1)
        log_p = teacher_log_probs(teacher.at(part), dtype, 1.0)
        first = log_p.max(dim=1)
        kl = forward_kl(log_p, log_q, Shape())
        accepted = torch.minimum(log_p, log_q).exp().sum(dim=1)
        parts.append((kl, accepted, first.indices, first.values.exp()))
    return Whole(*map(torch.cat, zip(*parts, strict=True)))
