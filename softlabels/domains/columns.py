"""Rows as columns, and back: what all domains need for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.format.columns import Column

__all__ = ["listed", "lists_of", "scalar"]


def listed(arrays: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> Column:
    """A list a row."""
    offsets = np.concatenate([[0], np.cumsum([len(a) for a in arrays], dtype=np.int64)])
    return Column(values=np.concatenate(arrays).astype(dtype, copy=False), offsets=offsets)


def scalar(values: Sequence[int], dtype: npt.DTypeLike) -> Column:
    """A number a row."""
    return Column(values=np.array(values, dtype))


def lists_of(column: Column) -> list[npt.NDArray[Any]]:
    """The rows' lists."""
    assert column.offsets is not None
    return np.split(column.values, column.offsets[1:-1])[: len(column.offsets) - 1]
