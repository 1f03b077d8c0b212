"""`float16` and `float32`: IEEE numbers, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from softlabels.errors import TargetError

__all__ = ["Float16", "Float32"]


@dataclass(frozen=True)
class Float16:
    """Half precision: 2 bytes; a log-probability of -8 is held to 1/256 nat."""

    id: ClassVar[str] = "float16"
    relative_error: ClassVar[float] = 2.0**-11
    absolute_error: ClassVar[float] = 2.0**-25

    def encode(self, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Round to nearest even; values beyond ±65504 are refused rather than made infinite."""
        with np.errstate(over="ignore"):
            out = values.astype(np.float16)
        lost = np.isinf(out) & np.isfinite(values)
        if lost.any():
            raise TargetError(
                f"float16 cannot hold {values[lost][0]:g} (limit 65504); build with --values float32"
            )
        return out

    def decode(self, encoded: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Widen, exactly."""
        return encoded.astype(np.float32)


@dataclass(frozen=True)
class Float32:
    """Single precision: 4 bytes, as computed."""

    id: ClassVar[str] = "float32"
    relative_error: ClassVar[float] = 0.0
    absolute_error: ClassVar[float] = 0.0

    def encode(self, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """As they are."""
        return values.astype(np.float32, copy=False)

    def decode(self, encoded: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """As they are."""
        return encoded.astype(np.float32, copy=False)
