"""How hidden states are held: two ways to make a vector of D numbers small.

What is lost is told relative to the largest absolute value of the vector, since that decides the angle.

Shapes: N positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.errors import TargetError

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class HiddenCodec:
    """One way."""

    dtype: np.dtype[Any]
    """Of a stored number; little-endian."""
    scaled: bool
    """Whether each position has a scale, float32, by which its numbers are to be multiplied."""
    error: float
    """Largest error of a number, as a share of the largest absolute value of its position; 2^-25 if that is more."""
    encode: Callable[[Float32], tuple[npt.NDArray[Any], Float32]]
    """Of `[N, D]`: stored numbers `[N, D]` and scales `[N]`, all 1 if there are none."""

    @staticmethod
    def decode(numbers: npt.NDArray[Any], scales: Float32 | None) -> Float32:
        """`[N, D] float32` of both."""
        wide = numbers.astype(np.float32)
        return wide if scales is None else wide * scales[:, None]


def _int8(hidden: Float32) -> tuple[npt.NDArray[Any], Float32]:
    scale = (np.abs(hidden).max(axis=1, initial=0.0) / 127).astype(np.float32)
    divisor = np.where(scale > 0, scale, np.float32(1))[:, None]
    return np.clip(np.rint(hidden / divisor), -127, 127).astype(np.int8), scale


def _float16(hidden: Float32) -> tuple[npt.NDArray[Any], Float32]:
    with np.errstate(over="ignore"):
        out = hidden.astype("<f2")
    if np.isinf(out).any():
        raise TargetError("float16 cannot hold a hidden state beyond 65504; use --hidden int8")
    return out, np.ones(len(hidden), np.float32)


HIDDEN_CODECS: Mapping[str, HiddenCodec] = {
    "int8": HiddenCodec(dtype=np.dtype(np.int8), scaled=True, error=1 / 253, encode=_int8),
    "float16": HiddenCodec(
        dtype=np.dtype("<f2"), scaled=False, error=2.0**-11 + 2.0**-20, encode=_float16
    ),
}
"""By the name that `--hidden` takes."""
