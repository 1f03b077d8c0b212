"""Rows of logits, as many at a time as a core's cache holds: then only the first of several passes waits for memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CACHED, LAUNCHED = 3 * 2**18, 2**26
"""Bytes of a tile: a part of a core's cache; on a GPU, enough that launches of kernels do not count."""


def tiles(logits: Tensor) -> Iterator[slice]:
    """Rows of `logits [n, V]`, as many at a time as are worth one look."""
    size = CACHED if logits.device.type == "cpu" else LAUNCHED
    step = max(1, size // (4 * logits.shape[1]))
    return (slice(begin, begin + step) for begin in range(0, len(logits), step))
