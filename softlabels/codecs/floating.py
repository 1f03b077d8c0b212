"""`float16` and `float32`: IEEE numbers, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from softlabels.codecs import Numbers
from softlabels.core.targets import SoftTargets, main_temperature
from softlabels.errors import TargetError

Float64 = npt.NDArray[np.float64]
UInt32 = npt.NDArray[np.uint32]


def stored_logp(targets: SoftTargets) -> npt.NDArray[np.float32]:
    """What is written of the kept ids: log-probabilities `[N, K]` at T=1, or at a sample's own temperature."""
    return targets.log_probs(main_temperature(targets.temperatures))


class _Floating:
    """IEEE numbers; as whole ones, their bits in an order that ascends as they fall."""

    plain: ClassVar[bool] = True
    samples_only: ClassVar[bool] = False
    unbiased: ClassVar[bool] = False
    by_id: ClassVar[bool] = False
    label_first: ClassVar[bool] = False
    dtype: ClassVar[np.dtype[Any]]
    bits: ClassVar[np.dtype[Any]]
    """A whole number of as many bits."""

    def encode(self, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Round to nearest even; what is too large is refused rather than made infinite."""
        with np.errstate(over="ignore"):
            out = np.ascontiguousarray(values, self.dtype)
        lost = np.isinf(out) & np.isfinite(values)
        if lost.any():
            raise TargetError(
                f"{self.dtype.name} cannot hold {values[lost][0]:g} (limit {np.finfo(self.dtype).max:g}); build with "
                "--values float32"
            )
        return out

    def decode(self, encoded: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Widen, exactly."""
        return encoded.astype(np.float32, copy=False)

    def rounding(self, gaps: Float64) -> None:
        """The bound says all."""

    def to_numbers(self, targets: SoftTargets, uniforms: npt.NDArray[np.float64] | None) -> Numbers:
        """The bits of what `open` would hold."""
        logp, odds = self.encode(stored_logp(targets)), self.encode(targets.log_odds)
        return Numbers(self._falling(logp.view(self.bits)), self._falling(odds.view(self.bits)))

    def scores(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Log-probabilities."""
        bits = self._falling(np.minimum(values, np.iinfo(self.bits).max))  # beyond: NaN, refused
        return self.decode(bits.astype(self.bits).view(self.dtype))

    def odds(self, numbers: UInt32) -> npt.NDArray[np.float32]:
        """Log-odds."""
        return self.scores(numbers)

    def _falling(self, bits: npt.NDArray[Any]) -> UInt32:
        """Its own inverse but for dtype."""
        numbers, sign = bits.astype(np.uint32), np.uint32(np.iinfo(self.bits).max // 2 + 1)
        return np.where(numbers >= sign, numbers, sign - np.uint32(1) - numbers).astype(np.uint32)


@dataclass(frozen=True)
class Float16(_Floating):
    """Half precision: 2 bytes; a log-probability of -8 is held to 1/256 nat."""

    id: ClassVar[str] = "float16"
    relative_error: ClassVar[float] = 2.0**-11
    dtype = np.dtype(np.float16)
    bits = np.dtype(np.uint16)

    def absolute_error(self, *, sample: bool) -> float:
        """Half the smallest half-precision number."""
        return 2.0**-25


@dataclass(frozen=True)
class Float32(_Floating):
    """Single precision: 4 bytes, as computed."""

    id: ClassVar[str] = "float32"
    relative_error: ClassVar[float] = 0.0
    dtype = np.dtype(np.float32)
    bits = np.dtype(np.uint32)

    def absolute_error(self, *, sample: bool) -> float:
        """None."""
        return 0.0
