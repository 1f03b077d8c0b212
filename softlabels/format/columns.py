"""What a profile hands to a container: named columns, or named streams, and a few facts.

A profile decides what is written of a shard (`plain.py`: columns that people can read; `packed.py`: coded
streams). A container decides what file it becomes (`parquet.py`, `zarr.py`). Neither knows the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from softlabels.codecs.streams import Stream
from softlabels.errors import IntegrityError

DECODED_LIMIT = 2**30
"""Bytes of all columns in memory: a shard that holds more is neither written nor read."""

Facts = Mapping[str, str]
"""What a file says of itself besides its columns: names beginning with `softlabels.`, and JSON."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """One column of R records."""

    values: npt.NDArray[Any]
    """`[R]`, or all records' lists one after the other `[L]`; fixed-size bytes are `[R, B] uint8`."""
    offsets: npt.NDArray[np.int64] | None = None
    """`[R + 1]`, if a record is a list: record r's are `values[offsets[r] : offsets[r + 1]]`."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a column must be, before it is decoded."""

    dtype: np.dtype[Any]
    listed: bool = True
    width: int | None = None
    """Bytes of a record, of fixed-size bytes."""
    most: int | None = None
    """Entries, over all records; None: not known."""


def offsets_of(lengths: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """`[R + 1]`: where each of R lists begins that lie one after the other, and where the last ends."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, dtype=np.int64, out=offsets[1:])
    return offsets


def cut(values: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
    """R views of lists that lie one after the other, `offsets [R + 1]`."""
    return [values[begin:end] for begin, end in pairwise(offsets.tolist())]


def check_declared(
    entries: Mapping[str, tuple[int, int | None]], size: int, where: str, *, spare: int = 0
) -> None:
    """Refuse columns that declare too much, before they are decoded.

    Args:
        entries: of each column, and how many it may have at most; None: not known.
        size: bytes of all in memory.
        spare: entries that a column may declare beyond those, where a file counts what is empty.
    """
    for name, (found, most) in entries.items():
        if most is not None and found > most + spare:
            raise IntegrityError(
                f"{where}: column {name!r} declares {found} entries, at most {most} fit the manifest; not decoded. "
                "Copy it again from a source that you trust"
            )
    if size > DECODED_LIMIT:
        raise IntegrityError(
            f"{where}: would decode to {size} bytes, more than the {DECODED_LIMIT} that a shard may hold; not decoded"
        )


class Container(Protocol):
    """A kind of file. A module is one."""

    suffix: str

    def write_columns(self, columns: Mapping[str, Column], facts: Facts) -> bytes:
        """The file of some columns. Equal input gives equal bytes with one version of its library."""

    def read_columns(
        self, data: bytes, expected: Mapping[str, Expected], *, records: int | None, where: str
    ) -> dict[str, Column]:
        """The columns of a file, each as expected; `IntegrityError` before decoding what is too large."""

    def write_streams(self, streams: Mapping[str, Stream], facts: Facts) -> bytes:
        """The file of some streams, as they are."""

    def read_streams(self, data: bytes, *, where: str) -> dict[str, Stream]:
        """The streams of a file; `IntegrityError` if it is not one."""

    def read_facts(self, data: bytes, *, where: str) -> dict[str, str]:
        """What the file says of itself."""

    def column_bytes(self, path: Path) -> dict[str, int]:
        """Compressed bytes of each column of a file that `write_columns` made."""
