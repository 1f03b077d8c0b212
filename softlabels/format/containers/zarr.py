"""Container `zarr`: a group of arrays (Zarr v3) in one zip file, every chunk with its checksum.

A column becomes an array of its name; a list column is the values of all records one after the other, and
`offsets/NAME` says where each record's begin. They are written by the library zarr, and read without it
(see `arrays.py`).

Streams of the profile `packed` become one array of bytes, and the group's attributes say where each begins. New stores
are `packed-arrays` instead, in which each stream is an array of its name. Whole numbers are coded there by pco in its
standalone format, which is what numcodecs' PCodec reads, so zarr-python alone gives them by name:
`zarr.open_group(shard, mode="r")["ids"][:]`. They are coded before they come here: the profile knows which numbers are
distributed alike, and codes each such part by itself, which PCodec's own settings cannot say. An array costs some 500
bytes, of metadata and in the zip file's directory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from softlabels.codecs.streams import Stream
from softlabels.errors import IntegrityError, TargetError
from softlabels.format.archive import ENTRIES_LIMIT, SIZE_LIMIT, Archive, write_archive
from softlabels.format.arrays import (
    ARRAY_LIMIT,
    DeclaredArray,
    Group,
    array_metadata,
    attribute,
    check_strangers,
    chunk_of,
    group_metadata,
    open_archive,
    read_metadata,
    refusing,
    with_checksum,
)
from softlabels.format.columns import (
    DECODED_LIMIT,
    Column,
    Expected,
    Facts,
    check_declared,
)

suffix = "zarr.zip"
ZSTD_LEVEL = 3
OFFSETS = "offsets"
STREAMS = "streams"
INDEX = "softlabels.streams"
"""The attribute that lists the streams: of each its name, entries and bytes."""
INT64 = np.dtype(np.int64)
UINT8 = np.dtype(np.uint8)

# -- writing --------------------------------------------------------------------------------------


def write_columns(columns: Mapping[str, Column], facts: Facts) -> bytes:
    """One array for each column, and one of offsets for each list column."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, column in columns.items():
        arrays[name] = column.values
        if column.offsets is not None:
            arrays[f"{OFFSETS}/{name}"] = column.offsets
    if (size := sum(a.nbytes for a in arrays.values())) > DECODED_LIMIT:
        raise TargetError(
            f"a shard takes {size} bytes, more than the {DECODED_LIMIT} that a reader accepts; lower "
            "--shard-rows"
        )
    return _write(arrays, facts)


def write_streams(streams: Mapping[str, Stream], facts: Facts) -> bytes:
    """One array of all streams' bytes; nothing is compressed again."""
    index = [[name, s.entries, len(s.data)] for name, s in streams.items()]
    data = b"".join(s.data for s in streams.values())
    entries = {
        "zarr.json": group_metadata({**facts, INDEX: index}),
        f"{STREAMS}/zarr.json": array_metadata((len(data),), UINT8, {}),
    }
    return _zipped(entries | ({f"{STREAMS}/c/0": with_checksum(data)} if data else {}))


def _write(arrays: Mapping[str, npt.NDArray[Any]], facts: Facts) -> bytes:
    import zarr  # 0.3 s, which readers need not wait for
    from zarr.codecs import ZstdCodec
    from zarr.storage import MemoryStore

    files: dict[str, Any] = {}
    # Set here, so that no setting of the user's changes the bytes. A chunk of zeros is a chunk.
    with zarr.config.set({"json_indent": None, "array.write_empty_chunks": True}):
        group = zarr.create_group(store=MemoryStore(files), zarr_format=3, attributes=dict(facts))
        if any("/" in name for name in arrays):
            group.create_group(OFFSETS)
        for name, values in arrays.items():
            array = group.create_array(
                name,
                shape=values.shape,
                dtype=values.dtype,
                chunks=chunk_of(values.shape),
                filters=None,
                compressors=[ZstdCodec(level=ZSTD_LEVEL, checksum=True)],
                fill_value=values.dtype.type(0),
            )
            array[...] = values
    return _zipped({name: file.to_bytes() for name, file in files.items()})


def _zipped(entries: Mapping[str, bytes]) -> bytes:
    """The zip file of some entries, in order of their names; `TargetError` if a reader would refuse it."""
    size = sum(map(len, entries.values()))
    if len(entries) > ENTRIES_LIMIT or size > SIZE_LIMIT:
        raise TargetError(
            f"a shard of {len(entries)} entries and {size} bytes is too large for one zip file; lower --shard-rows, or "
            "name fewer temperatures"
        )
    return write_archive({name: entries[name] for name in sorted(entries)})


def column_bytes(path: Path) -> dict[str, int]:
    """Compressed bytes of each column of one file; all offsets are one."""
    found: Counter[str] = Counter()
    with ZipFile(path) as archive:
        for entry in archive.infolist():
            name, slash, _ = entry.filename.partition("/")
            if slash:
                found[name] += entry.compress_size
    return dict(found)


# -- reading --------------------------------------------------------------------------------------


def read_columns(
    data: bytes, expected: Mapping[str, Expected], *, records: int | None, where: str
) -> dict[str, Column]:
    """Decode the expected columns; other arrays are left alone.

    Raises:
        IntegrityError: not such a zip file, an array missing or of another type, shape or codec, a chunk
            missing or altered, or more than there should be.
    """
    with refusing(where):
        archive, _ = open_archive(data)
        read_metadata(archive, OFFSETS, Group, ARRAY_LIMIT)
    values: dict[str, DeclaredArray] = {}
    offsets: dict[str, DeclaredArray] = {}
    rows: dict[str, int] = {}
    for name, about in expected.items():
        if f"{name}/zarr.json" not in archive:
            raise IntegrityError(f"{where}: has no column {name!r}, expected one")
        with refusing(where):
            values[name] = DeclaredArray(archive, name, "zstd")
            if about.listed:
                offsets[name] = DeclaredArray(archive, f"{OFFSETS}/{name}", "zstd")
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
    entries = {name: (a.shape[0], expected[name].most) for name, a in values.items()}
    check_declared(entries, sum(a.bytes for a in arrays), where)
    with refusing(where):
        check_strangers(archive, arrays)
    return {
        name: _column(values[name], offsets.get(name), name, about, where)
        for name, about in expected.items()
    }


def _check_column(found: DeclaredArray, name: str, about: Expected, where: str) -> None:
    if found.type != about.dtype.name:
        raise IntegrityError(f"{where}: column {name!r} holds {found.type}, expected {about.dtype}")
    tail = () if about.width is None else (about.width,)
    if len(found.shape) < 1 or found.shape[1:] != tail:
        raise IntegrityError(
            f"{where}: column {name!r} has the shape {found.shape}, expected {('L' if about.listed else 'R', *tail)}"
        )


def _check_offsets(found: DeclaredArray, name: str, where: str) -> None:
    if found.type != "int64" or len(found.shape) != 1 or found.shape[0] < 1:
        raise IntegrityError(
            f"{where}: the offsets of column {name!r} are {found.type} of shape {found.shape}, expected int64 of "
            "shape (rows + 1)"
        )


def _column(
    values: DeclaredArray, offsets: DeclaredArray | None, name: str, about: Expected, where: str
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
    """The streams, by name; `IntegrityError` for a bad checksum, or an index that does not fit the bytes."""
    with refusing(where):
        archive, group = open_archive(data)
        array = DeclaredArray(archive, STREAMS, "crc32c")
        if array.type != "uint8" or len(array.shape) != 1:
            raise ValueError(f"its streams are {array.type} of shape {array.shape}")
        check_strangers(archive, [array])
        index = attribute(group, INDEX, list[tuple[str, int, int]])
        return _cut(index, array.decode(UINT8).data)


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


def read_facts(data: bytes, *, where: str) -> dict[str, str]:
    """The group's attributes that begin with `softlabels.` and hold text."""
    with refusing(where):
        _, group = open_archive(data)
        return {
            name: attribute(group, name, str)
            for name, value in group.attributes.items()
            if name.startswith("softlabels.") and bytes(value).startswith(b'"')
        }


# -- arrays by name -------------------------------------------------------------------------------


def write_arrays(
    streams: Mapping[str, Stream], facts: Facts, attributes: Mapping[str, Mapping[str, Any]]
) -> bytes:
    """The file of some streams, which know their dtype; `facts` are the root's attributes, the others the arrays'."""
    entries = {"zarr.json": group_metadata(facts)}
    for name, stream in streams.items():
        shape = (stream.entries, *([] if stream.width in (None, 1) else [stream.width]))
        about = attributes.get(name, {})
        entries[f"{name}/zarr.json"] = array_metadata(shape, np.dtype(stream.dtype), about)
        if stream.data:
            entries[f"{name}/c" + "/0" * len(shape)] = with_checksum(stream.data)
    return _zipped(entries)


def read_arrays(data: bytes, *, where: str) -> Mapping[str, Stream]:
    """The streams, by name; an array is looked at when it is asked for.

    Raises:
        IntegrityError: not such a zip file; of an array, whatever `arrays.py` refuses.
    """
    with refusing(where):
        archive, _ = open_archive(data)
    return _Arrays(archive, where)


class _Arrays(Mapping[str, Stream]):
    def __init__(self, archive: Archive, where: str) -> None:
        self._archive, self._where = archive, where
        self._names = [
            name.removesuffix("/zarr.json")
            for name in archive
            if name.endswith("/zarr.json") and name.count("/") == 1
        ]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Stream:
        if f"{name}/zarr.json" not in self._archive:
            raise KeyError(name)
        with refusing(self._where):
            array = DeclaredArray(self._archive, name, "stream")
            check_strangers(self._archive, [array])
            if not array.shape or (array.coded and len(array.shape) != 1):
                raise ValueError(f"array {name!r} has the shape {array.shape}")
            return Stream(
                entries=array.shape[0],
                data=bytes(array.content()),
                dtype=array.type,
                width=None if array.coded else math.prod(array.shape[1:]),
            )
