"""`float16` and `float32`: IEEE numbers, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from softlabels.codecs import Numbers
from softlabels.core.targets import SoftTargets, main_temperature
from softlabels.errors import TargetError

UInt32 = npt.NDArray[np.uint32]


def stored_logp(targets: SoftTargets) -> npt.NDArray[np.float32]:
    """What is written of the kept ids: log-probabilities `[N, K]` at T=1, or at a sample's own temperature."""
    return targets.log_probs(main_temperature(targets.temperatures))


def _falling(bits: npt.NDArray[Any], sign: int) -> UInt32:
    """Bit patterns of floats as whole numbers that ascend as the floats fall; its own inverse but for dtype."""
    numbers = bits.astype(np.uint32)
    return np.where(numbers >= sign, numbers, np.uint32(sign - 1) - numbers).astype(np.uint32)


@dataclass(frozen=True)
class Float16:
    """Half precision: 2 bytes; a log-probability of -8 is held to 1/256 nat."""

    id: ClassVar[str] = "float16"
    plain: ClassVar[bool] = True
    relative_error: ClassVar[float] = 2.0**-11

    def absolute_error(self, *, sample: bool) -> float:
        """Half the smallest half-precision number."""
        return 2.0**-25

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

    def to_numbers(self, targets: SoftTargets, uniforms: npt.NDArray[np.float64] | None) -> Numbers:
        """The bits of what `open` would hold."""
        logp, odds = self.encode(stored_logp(targets)), self.encode(targets.log_odds)
        return Numbers(_falling(logp.view(np.uint16), 2**15), _falling(odds.view(np.uint16), 2**15))

    def scores(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Log-probabilities."""
        bits = _falling(np.minimum(values, 2**16 - 1), 2**15)  # beyond: NaN, which is refused
        return bits.astype(np.uint16).view(np.float16).astype(np.float32)

    def odds(self, numbers: UInt32) -> npt.NDArray[np.float32]:
        """Log-odds."""
        return self.scores(numbers)


@dataclass(frozen=True)
class Float32:
    """Single precision: 4 bytes, as computed."""

    id: ClassVar[str] = "float32"
    plain: ClassVar[bool] = True
    relative_error: ClassVar[float] = 0.0

    def absolute_error(self, *, sample: bool) -> float:
        """None."""
        return 0.0

    def encode(self, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """As they are."""
        return values.astype(np.float32, copy=False)

    def decode(self, encoded: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """As they are."""
        return encoded.astype(np.float32, copy=False)

    def to_numbers(self, targets: SoftTargets, uniforms: npt.NDArray[np.float64] | None) -> Numbers:
        """The bits of what `open` would hold."""
        logp = stored_logp(targets).astype(np.float32)
        odds = np.ascontiguousarray(targets.log_odds, np.float32)
        return Numbers(_falling(logp.view(np.uint32), 2**31), _falling(odds.view(np.uint32), 2**31))

    def scores(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Log-probabilities."""
        return _falling(values, 2**31).view(np.float32)

    def odds(self, numbers: UInt32) -> npt.NDArray[np.float32]:
        """Log-odds."""
        return self.scores(numbers)
