"""What a format of exports is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from trainers.exports.domains import Arrays, Example, Exported, Origin
    from trainers.students.fake_quant import Grid

Runner = Callable[["Arrays"], npt.NDArray[np.float32]]
"""From a batch's inputs to its logits."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a format is to write."""

    model: Any
    """The student's model, float32, in evaluation mode."""
    folder: Path
    """Where the run keeps it."""
    domain: Exported
    samples: Sequence[Example]
    """Real examples to trace with, at least two."""
    calibration: Sequence[Example] = ()
    """Those to measure ranges on; none for a format that does not calibrate."""
    grids: Mapping[str, Grid] = field(default_factory=dict)
    """The grid of each layer, by name, that learnt on one; its weight lies there."""

    @property
    def origin(self) -> Origin:
        """What the model is made with."""
        return self.domain.origin(self.folder)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written."""

    model: str
    """The file to open, or `.`: the folder."""
    opset: int | None = None
    details: dict[str, Any] = field(default_factory=dict)
    libraries: Sequence[str] = ()
    """Whose versions matter."""


def in_torch(module: Any, threads: int | None) -> Runner:
    """A module of PyTorch as a runner; its inputs go in by name."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)

    def run(inputs: Arrays) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            out = module(**{name: torch.from_numpy(v) for name, v in inputs.items()})
        return np.asarray(out.numpy())

    return run


class Format(Protocol):
    """One way to ship a student."""

    name: str
    rule: str = "log-probability"
    """How it is checked: `log-probability` or `score` (`check.py`)."""
    tolerance: float = 1e-3
    """By default: nats, or a share of the student's score."""
    calibrates: bool = False
    takes_adapters: bool = False
    """Whether it can hold an adapter beside its base."""

    def write(self, job: Job, folder: Path) -> Written:
        """Write the model's files into a folder that holds configuration and tokenizer already."""

    def load(self, folder: Path, *, domain: Exported | None, threads: int | None) -> Runner:
        """Open what `write` wrote, as a user would."""

    def needs(self, origin: Origin) -> str:
        """What a user must install."""

    def snippet(self, origin: Origin) -> str:
        """Python from `inputs`, a dict of arrays, to `logits`, with imports; PATH is the folder."""
