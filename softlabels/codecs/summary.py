"""How a summary is held: two bytes or less for the label's log-probability, one or less for the entropy.

`label_logp` is a binary16, `-inf` if it is below -65504. Entropy is held in steps of its square root, since a small
one is worth more digits than a large one: with u = round(64 sqrt(H)) it is the binary16 of (u / 64)^2, so that it is
a plain number which few different values stand for. Both come back from what was decoded without another error.

As whole numbers, for the profile `packed`: 0 is "not known", else one more than the binary16's bits without the sign,
and one more than u.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
UInt32 = npt.NDArray[np.uint32]

LABEL_LOGP, ENTROPY = "float16", "root64"
"""Names of the two codecs in a manifest."""
STEPS = 64
"""Of the square root of a nat."""
LARGEST = 0x7C00
"""Bits of infinity."""
MOST_STEPS = 297
"""Of the entropy of 2^31 equally likely ids."""


def held_label_logp(logp: Float32) -> Float16:
    """`[N] float32`, at most 0, as a store holds it."""
    with np.errstate(over="ignore"):
        return (-np.abs(logp)).astype(np.float16)


def label_logp_to_numbers(logp: Float32) -> UInt32:
    """Whole numbers, of the same length."""
    held = held_label_logp(logp)
    bits = held.view(np.uint16) & np.uint16(0x7FFF)
    return np.where(np.isnan(held), 0, bits.astype(np.uint32) + 1).astype(np.uint32)


def label_logp_of_numbers(numbers: UInt32) -> Float32:
    """Back; `ValueError` if a number stands for nothing."""
    if numbers.max(initial=0) > LARGEST + 1:
        raise ValueError(f"a number of {numbers.max()}, expected at most {LARGEST + 1}")
    bits = (np.maximum(numbers, 1) - 1).astype(np.uint16)
    return np.where(numbers == 0, np.nan, -bits.view(np.float16).astype(np.float32)).astype(
        np.float32
    )


def _steps(entropy: Float32) -> npt.NDArray[np.float64]:
    steps: npt.NDArray[np.float64] = np.rint(STEPS * np.sqrt(entropy.astype(np.float64)))
    return steps


def _value(steps: npt.NDArray[Any]) -> Float16:
    return np.square(steps / STEPS).astype(np.float16)


def held_entropy(entropy: Float32) -> Float16:
    """`[N] float32`, nats, as a store holds it."""
    return _value(_steps(entropy))


def entropy_to_numbers(entropy: Float32) -> UInt32:
    """Whole numbers, of the same length."""
    return np.nan_to_num(_steps(entropy) + 1, nan=0.0).astype(np.uint32)


def entropy_of_numbers(numbers: UInt32) -> Float32:
    """Back; `ValueError` if a number is more than any entropy."""
    if numbers.max(initial=0) > MOST_STEPS + 1:
        raise ValueError(f"a number of {numbers.max()}, expected at most {MOST_STEPS + 1}")
    steps = np.where(numbers == 0, np.nan, numbers.astype(np.float64) - 1)
    return _value(steps).astype(np.float32)


def entropy_bound(entropy: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """By how much what is held may differ from `entropy`, nats."""
    h = np.asarray(entropy, np.float64)
    return np.sqrt(h) / STEPS + h / 2048 + 2.0**-13
