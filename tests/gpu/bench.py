"""Where it runs and how it is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Found = dict[str, Any]
"""What a piece found, as JSON."""


@dataclass(frozen=True)
class Bench:
    """A device, and whether sizes are those of a test."""

    device: torch.device
    small: bool

    @property
    def name(self) -> str:
        """Of the device, for people."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return self.device.type

    def size(self, large: int, small: int) -> int:
        """One of two."""
        return small if self.small else large

    def seconds(self, work: Callable[[], object], *, repeats: int = 5) -> float:
        """The median, after one that pays for what happens once."""
        taken = []
        for _ in range(2 if self.small else repeats + 1):
            self.wait()
            begin = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - begin)
        return statistics.median(taken[1:])

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
