"""Train students from soft-target stores; the teacher is never in memory.

    for batch in trainers.SoftTargetStream("STORE", batch_size=8, seed=0):
        hidden = student.hidden(batch)
        out = trainers.DistillLoss(temperature=2.0, alpha=0.9)(hidden, student.head(), batch)
        out.loss.backward()

Importing this package is cheap: everything heavy is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "SoftTargetStream": "trainers.stream",
    "MixedStream": "trainers.mixing",
    "SoftTargetDataset": "trainers.dataset",
    "Batch": "trainers.batch",
    "DistillLoss": "trainers.losses",
    "Head": "trainers.topk_tail",
    "RunConfig": "trainers.config",
}

if TYPE_CHECKING:
    from trainers.batch import Batch
    from trainers.config import RunConfig
    from trainers.dataset import SoftTargetDataset
    from trainers.losses import DistillLoss
    from trainers.mixing import MixedStream
    from trainers.stream import SoftTargetStream
    from trainers.topk_tail import Head

__all__ = [
    "Batch",
    "DistillLoss",
    "Head",
    "MixedStream",
    "RunConfig",
    "SoftTargetDataset",
    "SoftTargetStream",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
