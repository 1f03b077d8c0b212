"""Streams: whole numbers as entropy-coded bytes (pco), and several of them in one file.

pco bins the numbers of a stream, gives each bin a code as short as it is frequent, and writes the place in
the bin with fixed bits: within a few per cent of the stream's zero-order entropy, at hundreds of millions
of numbers a second. The bytes are those of its standalone format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, PagingSpec, standalone

from softlabels.errors import IntegrityError

LEVEL = 8
_SERIES = ChunkConfig(compression_level=LEVEL)
HEADER_LIMIT = 2**20
"""Bytes of the index of a file of streams."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Numbers in their coded form."""

    entries: int
    """How many numbers."""
    data: bytes
    """pco; nothing at all if there are no entries."""
    dtype: str = field(default="", compare=False)
    """What the numbers are, e.g. `uint32`; '' where the file that it was read from does not say."""
    width: int | None = field(default=None, compare=False)
    """Of plain numbers, which are not pco, how many an entry has."""


def pack(values: npt.NDArray[Any], parts: Sequence[int] | None = None) -> Stream:
    """Code numbers, `uint32` or `int64`, whose order tells nothing.

    Args:
        values: the numbers.
        parts: how many of them, from the first on, are distributed alike, and so on; none of them 0.
    """
    paging = {"paging_spec": PagingSpec.exact_page_sizes(list(parts))} if parts else {}
    config = ChunkConfig(
        compression_level=LEVEL,
        mode_spec=ModeSpec.classic(),
        delta_spec=DeltaSpec.no_op(),
        **paging,
    )
    return _pack(values, config)


def pack_series(values: npt.NDArray[Any]) -> Stream:
    """Code numbers that resemble the ones before them."""
    return _pack(values, _SERIES)


def _pack(values: npt.NDArray[Any], config: ChunkConfig) -> Stream:
    data = standalone.simple_compress(np.ascontiguousarray(values), config) if len(values) else b""
    return Stream(entries=len(values), data=bytes(data), dtype=values.dtype.name)


def plain(values: npt.NDArray[Any]) -> Stream:
    """Numbers as they are, little-endian, which coding would not make smaller; of a matrix a line is an entry."""
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    width = values.shape[1] if values.ndim == 2 else 1
    return Stream(entries=len(values), data=little.tobytes(), dtype=values.dtype.name, width=width)


def plain_numbers(
    stream: Stream, dtype: np.dtype[Any], entries: int, width: int = 1, *, where: str
) -> npt.NDArray[Any]:
    """The numbers of a plain stream, `[entries * width]`, not copied; `IntegrityError` if it has others."""
    _check_kind(stream, dtype, where)
    if stream.entries != entries or len(stream.data) != entries * width * dtype.itemsize:
        raise IntegrityError(
            f"{where}: is torn, {len(stream.data)} bytes of {stream.entries} entries; expected {entries} entries of "
            f"{width * dtype.itemsize} bytes"
        )
    return np.frombuffer(stream.data, dtype.newbyteorder("<"))


def _check_kind(stream: Stream, dtype: np.dtype[Any], where: str) -> None:
    if stream.dtype and stream.dtype != dtype.name:
        raise IntegrityError(f"{where}: holds {stream.dtype}, expected {dtype.name}")


def unpack(stream: Stream, out: npt.NDArray[Any], *, where: str) -> npt.NDArray[Any]:
    """Decode into `out`; `IntegrityError` if it is of another length or dtype, or the stream is not pco."""
    _check_kind(stream, out.dtype, where)
    if stream.entries != len(out):
        raise IntegrityError(f"{where}: holds {stream.entries} entries, expected {len(out)}")
    if len(out) == 0 and not stream.data:
        return out
    try:
        progress = standalone.simple_decompress_into(stream.data, out)
    except (RuntimeError, ValueError, TypeError) as e:
        raise IntegrityError(f"{where}: cannot be decoded ({e})") from e
    except BaseException as e:
        if type(e).__name__ != "PanicException":  # what a failed assertion in pco becomes
            raise
        raise IntegrityError(f"{where}: cannot be decoded ({e})") from e
    if not progress.finished or progress.n_processed != len(out):
        raise IntegrityError(
            f"{where}: decodes to {progress.n_processed} numbers or more than {len(out)}, expected {len(out)}"
        )
    return out


def exactly(
    streams: Mapping[str, Stream], name: str, entries: int, where: str
) -> npt.NDArray[np.uint32]:
    """A stream of so many numbers; `IntegrityError` if it is missing, or holds another number of them."""
    out = np.empty(entries, np.uint32)
    fill(streams, name, out, where)
    return out


def fill(streams: Mapping[str, Stream], name: str, out: npt.NDArray[np.uint32], where: str) -> None:
    """Decode a stream into `out`; `IntegrityError` if it is missing, or holds another number of them."""
    unpack(stream_of(streams, name, where), out, where=f"{where}: stream {name!r}")


def stream_of(streams: Mapping[str, Stream], name: str, where: str) -> Stream:
    """A stream by its name; `IntegrityError` if it is missing."""
    if name not in streams:
        raise IntegrityError(f"{where}: has no stream {name!r}")
    return streams[name]


def join(magic: bytes, facts: Mapping[str, Any], streams: Mapping[str, Stream]) -> bytes:
    """One file: `magic` and a line feed, one line of JSON (`facts` and the index), the streams' bytes."""
    index = [[name, s.entries, len(s.data)] for name, s in streams.items()]
    head = json.dumps({**facts, "streams": index}, separators=(",", ":"), sort_keys=True)
    return b"".join([magic, b"\n", head.encode(), b"\n", *(s.data for s in streams.values())])


def split(magic: bytes, data: bytes, *, where: str) -> tuple[dict[str, Any], dict[str, Stream]]:
    """Take apart a file of `join`; `IntegrityError` if its magic is another, or its index does not fit the bytes."""
    begin = len(magic) + 1
    end = data.find(b"\n", begin, begin + HEADER_LIMIT)
    if data[:begin] != magic + b"\n" or end < 0:
        raise IntegrityError(f"{where}: does not begin like {magic.decode()!r}")
    try:
        facts = json.loads(data[begin:end])
        index = facts.pop("streams")
        found: dict[str, Stream] = {}
        at = end + 1
        for name, entries, size in index:
            if not (isinstance(name, str) and type(entries) is type(size) is int):
                raise ValueError(f"an entry {name!r}")
            if name in found or entries < 0 or not 0 <= size <= len(data) - at:
                raise ValueError(f"stream {name!r} twice, or outside the file")
            found[name] = Stream(entries=entries, data=data[at : at + size])
            at += size
        if at != len(data):
            raise ValueError(f"{len(data) - at} bytes beyond its streams")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise IntegrityError(f"{where}: its index is malformed ({e})") from e
    return facts, found
