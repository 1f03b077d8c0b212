"""Container `zarr`: a group of arrays (Zarr v3) in one zip file, every chunk with its checksum.

A column becomes an array of its name; a list column is the values of all records one after the other, and
`offsets/NAME` says where each record's begin. Streams become one array of bytes, since a hundred arrays
would cost more than some of them hold; the group's attributes say where each begins.

Files are written by the library zarr. They are read without it: what a file says of its arrays is compared
with what they must be, and then there is nothing left to choose but one checksum or one decompression. A
library that can be told by a file which codecs to load, and that reads a missing chunk as zeros, would be
of no use here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import google_crc32c
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabels.codecs.streams import Stream
from softlabels.errors import IntegrityError, TargetError
from softlabels.store.archive import ENTRIES_LIMIT, SIZE_LIMIT, Archive, write_archive
from softlabels.store.columns import DECODED_LIMIT, Column, Expected, Facts

__all__ = ["read_columns", "read_facts", "read_streams", "suffix", "write_columns", "write_streams"]

suffix = "zarr.zip"
ZSTD_LEVEL = 3
OFFSETS = "offsets"
STREAMS = "streams"
INDEX = "softlabels.streams"
"""The attribute that lists the streams: of each its name, entries and bytes."""
GROUP_LIMIT = 2**20
ARRAY_LIMIT = 2**12
"""Bytes of the `zarr.json` of a group, and of an array: more is refused unread."""
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
INT64 = np.dtype(np.int64)
UINT8 = np.dtype(np.uint8)

Codec = Literal["zstd", "crc32c"]


# -- writing --------------------------------------------------------------------------------------


def write_columns(columns: Mapping[str, Column], facts: Facts) -> bytes:
    """One array for each column, and one of offsets for each list column."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, column in columns.items():
        arrays[name] = column.values
        if column.offsets is not None:
            arrays[f"{OFFSETS}/{name}"] = column.offsets
    if (size := sum(a.nbytes for a in arrays.values())) > DECODED_LIMIT:
        rows = min(len(a) for a in arrays.values())
        raise TargetError(
            f"a shard of {rows} rows takes {size} bytes, more than the {DECODED_LIMIT} that a reader accepts; lower "
            "--shard-rows"
        )
    return _write(arrays, facts, "zstd")


def write_streams(streams: Mapping[str, Stream], facts: Facts) -> bytes:
    """One array of all streams' bytes; nothing is compressed again."""
    index = [[name, s.entries, len(s.data)] for name, s in streams.items()]
    data = np.frombuffer(b"".join(s.data for s in streams.values()), np.uint8)
    return _write({STREAMS: data}, {**facts, INDEX: index}, "crc32c")


def _write(
    arrays: Mapping[str, npt.NDArray[Any]], attributes: Mapping[str, Any], codec: Codec
) -> bytes:
    import zarr  # 0.3 s, which readers need not wait for
    from zarr.codecs import Crc32cCodec, ZstdCodec
    from zarr.storage import MemoryStore

    last = ZstdCodec(level=ZSTD_LEVEL, checksum=True) if codec == "zstd" else Crc32cCodec()
    files: dict[str, Any] = {}
    # Set here, so that no setting of the user's changes the bytes. A chunk of zeros is a chunk.
    with zarr.config.set({"json_indent": None, "array.write_empty_chunks": True}):
        group = zarr.create_group(
            store=MemoryStore(files), zarr_format=3, attributes=dict(attributes)
        )
        if any("/" in name for name in arrays):
            group.create_group(OFFSETS)
        for name, values in arrays.items():
            array = group.create_array(
                name,
                shape=values.shape,
                dtype=values.dtype,
                chunks=_chunk(values.shape),
                filters=None,
                compressors=[last],
                fill_value=values.dtype.type(0),
            )
            array[...] = values
    entries = {name: files[name].to_bytes() for name in sorted(files)}
    size = sum(map(len, entries.values()))
    if len(entries) > ENTRIES_LIMIT or size > SIZE_LIMIT:
        raise TargetError(
            f"a shard of {len(entries)} entries and {size} bytes is too large for one zip file; lower --shard-rows, or "
            "name fewer temperatures"
        )
    return write_archive(entries)


def _chunk(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The chunk that is all of an array. A chunk cannot be empty: an empty array has none."""
    return tuple(max(n, 1) for n in shape)


# -- what a file says -----------------------------------------------------------------------------


class _Named(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    configuration: dict[str, bool | int | str | list[int]] = {}


class _Group(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    zarr_format: Literal[3]
    node_type: Literal["group"]
    attributes: dict[str, msgspec.Raw] = {}
    consolidated_metadata: None = None
    """A second account of the arrays, which could be another one."""


class _Array(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    zarr_format: Literal[3]
    node_type: Literal["array"]
    shape: list[int]
    data_type: str
    chunk_grid: _Named
    chunk_key_encoding: _Named
    codecs: list[_Named]
    fill_value: bool | int | float | str
    """Of no concern: every chunk must be there."""
    attributes: dict[str, msgspec.Raw] = {}
    storage_transformers: tuple[()] = ()
    dimension_names: list[str | None] | None = None


WIDTHS = {
    np.dtype(t).name: np.dtype(t).itemsize
    for t in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
}
"""Bytes of a value, by `data_type`."""
BYTES = {
    False: (_Named("bytes", {"endian": "little"}),),
    True: (_Named("bytes"), _Named("bytes", {"endian": "little"})),
}
"""How the codec that comes first may be spelled, for types of several bytes and of one."""
CRC32C = _Named("crc32c")
CHUNK_KEYS = (_Named("default"), _Named("default", {"separator": "/"}))


class _Declared:
    """An array as its metadata and the head of its chunk declare it; nothing is decoded yet.

    Raises:
        ValueError: not one chunk with the codec that it must have, or a chunk of another size.
    """

    def __init__(self, archive: Archive, name: str, codec: Codec) -> None:
        about = _metadata(archive, name, _Array, ARRAY_LIMIT)
        self._codec = codec
        self.shape = tuple(about.shape)
        self.type = about.data_type
        width = WIDTHS.get(self.type)
        if width is None or min(self.shape, default=-1) < 0 or len(self.shape) > 2:
            raise ValueError(f"array {name!r} of {self.type!r}, shape {about.shape}")
        self.bytes = math.prod(self.shape) * width
        if about.chunk_grid != _Named("regular", {"chunk_shape": list(_chunk(self.shape))}):
            raise ValueError(f"array {name!r} of shape {about.shape} is not one chunk")
        if about.chunk_key_encoding not in CHUNK_KEYS:
            raise ValueError(f"array {name!r} names its chunks in another way")
        self._check_codecs(about.codecs, name, single=width == 1)
        self.key = f"{name}/c" + "/0" * len(self.shape)
        self.keys = {f"{name}/zarr.json", *([self.key] if self.bytes else [])}
        self.data = archive.read(self.key) if self.bytes else memoryview(b"")
        self._check_size(name)

    def _check_codecs(self, codecs: list[_Named], name: str, *, single: bool) -> None:
        fits = len(codecs) == 2 and codecs[0] in BYTES[single]
        if self._codec == "crc32c":
            fits = fits and codecs[1] == CRC32C
        else:
            fits = fits and codecs[1].name == "zstd"
            fits = fits and codecs[1].configuration.get("checksum") is True
            fits = fits and set(codecs[1].configuration) <= {"level", "checksum"}
        if not fits:
            want = "zstd with its checksum" if self._codec == "zstd" else "crc32c"
            found = [c.name[:40] for c in codecs[:8]]
            raise ValueError(
                f"array {name!r} has the codecs {found}, expected bytes (little-endian) and {want}"
            )

    def _check_size(self, name: str) -> None:
        if not self.bytes:
            return
        if self._codec == "crc32c":
            found: int | None = len(self.data) - 4
        else:
            found = _frame_size(self.data)
        if found != self.bytes:
            raise ValueError(
                f"the chunk of array {name!r} declares {found} bytes, its shape asks for {self.bytes}"
            )

    def decode(self, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """The values, read only.

        Raises:
            ValueError: other bytes than those of the checksum.
        """
        if not self.bytes:
            return np.zeros(self.shape, dtype)
        if self._codec == "crc32c":
            raw: Any = self.data[:-4]
            if google_crc32c.value(raw) != int.from_bytes(self.data[-4:], "little"):
                raise ValueError("a checksum does not fit its bytes")
        else:
            try:
                raw = pa.Codec("zstd").decompress(self.data, decompressed_size=self.bytes)
            except (pa.ArrowException, OSError) as e:
                raise ValueError(str(e)) from e
        if dtype == np.bool_ and np.frombuffer(raw, np.uint8).max() > 1:
            raise ValueError("a truth value is neither 0 nor 1")
        little = np.frombuffer(raw, dtype.newbyteorder("<")).reshape(self.shape)
        return little.astype(dtype, copy=False)


def _metadata(archive: Archive, name: str, kind: type[Any], limit: int) -> Any:
    path = f"{name}/zarr.json" if name else "zarr.json"
    data = archive.read(path, limit=limit)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ValueError(f"{path}: {e}") from e


def _frame_size(frame: memoryview) -> int | None:
    """Bytes that a zstd frame says it decodes to; None if it does not say, or carries no checksum."""
    if len(frame) < 6 or frame[:4] != ZSTD_MAGIC:
        return None
    head = frame[4]
    single, checksum, dictionary = head & 32, head & 4, head & 3
    width = (1 if single else 0, 2, 4, 8)[head >> 6]
    if not checksum or dictionary or head & 8 or width == 0:
        return None
    at = 5 if single else 6
    size = int.from_bytes(frame[at : at + width], "little")
    return size + 256 if width == 2 else size


@contextmanager
def _refusing(where: str) -> Iterator[None]:
    try:
        yield
    except ValueError as e:
        raise IntegrityError(
            f"{where}: not a readable Zarr file ({e}); copy it again from its source"
        ) from e


def _open(data: bytes) -> tuple[Archive, _Group]:
    archive = Archive(data)
    return archive, _metadata(archive, "", _Group, GROUP_LIMIT)


# -- reading --------------------------------------------------------------------------------------


def read_columns(
    data: bytes, expected: Mapping[str, Expected], *, records: int | None, where: str
) -> dict[str, Column]:
    """Decode the expected columns; other arrays are left alone.

    Raises:
        IntegrityError: not such a zip file, an array missing or of another type, shape or codec, a chunk
            missing or altered, or more than there should be.
    """
    with _refusing(where):
        archive, _ = _open(data)
        _metadata(archive, OFFSETS, _Group, ARRAY_LIMIT)
    values: dict[str, _Declared] = {}
    offsets: dict[str, _Declared] = {}
    rows: dict[str, int] = {}
    for name, about in expected.items():
        if f"{name}/zarr.json" not in archive:
            raise IntegrityError(f"{where}: has no column {name!r}, expected one")
        with _refusing(where):
            values[name] = _Declared(archive, name, "zstd")
            if about.listed:
                offsets[name] = _Declared(archive, f"{OFFSETS}/{name}", "zstd")
        _check_column(values[name], name, about, where)
        rows[name] = values[name].shape[0]
        if about.listed:
            _check_offsets(offsets[name], name, where)
            rows[name] = offsets[name].shape[0] - 1
    found = sorted(set(rows.values()))
    if len(found) != 1 or (records is not None and found != [records]):
        want = "one number of all columns" if records is None else records
        raise IntegrityError(
            f"{where}: holds {' or '.join(map(str, found))} rows, expected {want}; copy it again from its source"
        )
    arrays = [*values.values(), *offsets.values()]
    if (size := sum(a.bytes for a in arrays)) > DECODED_LIMIT:
        raise IntegrityError(
            f"{where}: would decode to {size} bytes, more than the {DECODED_LIMIT} that a shard may hold; not decoded"
        )
    with _refusing(where):
        _check_strangers(archive, arrays)
    return {
        name: _column(values[name], offsets.get(name), name, about, where)
        for name, about in expected.items()
    }


def _check_column(found: _Declared, name: str, about: Expected, where: str) -> None:
    if found.type != about.dtype.name:
        raise IntegrityError(f"{where}: column {name!r} holds {found.type}, expected {about.dtype}")
    tail = () if about.width is None else (about.width,)
    if len(found.shape) < 1 or found.shape[1:] != tail:
        raise IntegrityError(
            f"{where}: column {name!r} has the shape {found.shape}, expected {('L' if about.listed else 'R', *tail)}"
        )
    if about.most is not None and found.shape[0] > about.most:
        raise IntegrityError(
            f"{where}: column {name!r} declares {found.shape[0]} entries, at most {about.most} fit the manifest; not "
            "decoded. Copy it again from a source that you trust"
        )


def _check_offsets(found: _Declared, name: str, where: str) -> None:
    if found.type != "int64" or len(found.shape) != 1 or found.shape[0] < 1:
        raise IntegrityError(
            f"{where}: the offsets of column {name!r} are {found.type} of shape {found.shape}, expected int64 of "
            "shape (rows + 1)"
        )


def _check_strangers(archive: Archive, arrays: list[_Declared]) -> None:
    """Other arrays may be there, but nothing else inside of those that are read."""
    known = set().union(*(a.keys for a in arrays))
    folders = tuple(k.removesuffix("zarr.json") for k in known if k.endswith("zarr.json"))
    for name in archive:
        if name not in known and f"{name}/".startswith(folders):
            raise ValueError(f"entry {name!r} is no part of its array")


def _column(
    values: _Declared, offsets: _Declared | None, name: str, about: Expected, where: str
) -> Column:
    try:
        found = values.decode(about.dtype)
        ends = None if offsets is None else offsets.decode(INT64)
    except ValueError as e:
        raise IntegrityError(
            f"{where}: column {name!r} cannot be decoded, its bytes were altered ({e})"
        ) from e
    if ends is not None and (
        ends[0] != 0 or ends[-1] != len(found) or bool((ends[1:] < ends[:-1]).any())
    ):
        raise IntegrityError(
            f"{where}: the offsets of column {name!r} do not ascend from 0 to its {len(found)} entries"
        )
    return Column(values=found, offsets=ends)


def read_streams(data: bytes, *, where: str) -> dict[str, Stream]:
    """The streams, by name.

    Raises:
        IntegrityError: not such a zip file, a bad checksum, or an index that does not fit the bytes.
    """
    with _refusing(where):
        archive, group = _open(data)
        array = _Declared(archive, STREAMS, "crc32c")
        if array.type != "uint8" or len(array.shape) != 1:
            raise ValueError(f"its streams are {array.type} of shape {array.shape}")
        _check_strangers(archive, [array])
        index = _attribute(group, INDEX, list[tuple[str, int, int]])
        content = array.decode(UINT8).data
        return _cut(index, content)


def _cut(index: list[tuple[str, int, int]], content: memoryview) -> dict[str, Stream]:
    found: dict[str, Stream] = {}
    at = 0
    for name, entries, size in index:
        if name in found or entries < 0 or not 0 <= size <= len(content) - at:
            raise ValueError(f"stream {name[:80]!r} is there twice, or outside the file")
        found[name] = Stream(entries=entries, data=bytes(content[at : at + size]))
        at += size
    if at != len(content):
        raise ValueError(f"{len(content) - at} bytes beyond its streams")
    return found


def _attribute(group: _Group, name: str, kind: type[Any]) -> Any:
    if name not in group.attributes:
        raise ValueError(f"has no attribute {name!r}")
    try:
        return msgspec.json.decode(group.attributes[name], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ValueError(f"attribute {name!r}: {e}") from e


def read_facts(data: bytes, *, where: str) -> dict[str, str]:
    """The group's attributes that begin with `softlabels.` and hold text."""
    with _refusing(where):
        _, group = _open(data)
        return {
            name: _attribute(group, name, str)
            for name in group.attributes
            if name.startswith("softlabels.") and name != INDEX
        }
