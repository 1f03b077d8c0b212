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
    "evaluate": "trainers.api",
    "export": "trainers.api",
    "generate": "trainers.api",
    "train": "trainers.api",
    "SoftTargetStream": "trainers.data.stream",
    "MixedStream": "trainers.data.mixing",
    "SoftTargetDataset": "trainers.data.dataset",
    "Batch": "trainers.data.batch",
    "DistillLoss": "trainers.loss.losses",
    "Head": "trainers.loss.head",
    "distil_loss": "trainers.integrations.distil",
    "StepTotals": "trainers.loss.totals",
    "RunConfig": "trainers.run.config",
}

if TYPE_CHECKING:
    from trainers.api import evaluate as evaluate
    from trainers.api import export as export
    from trainers.api import generate as generate
    from trainers.api import train as train
    from trainers.data.batch import Batch as Batch
    from trainers.data.dataset import SoftTargetDataset as SoftTargetDataset
    from trainers.data.mixing import MixedStream as MixedStream
    from trainers.data.stream import SoftTargetStream as SoftTargetStream
    from trainers.integrations.distil import distil_loss as distil_loss
    from trainers.loss.head import Head as Head
    from trainers.loss.losses import DistillLoss as DistillLoss
    from trainers.loss.totals import StepTotals as StepTotals
    from trainers.run.config import RunConfig as RunConfig

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
