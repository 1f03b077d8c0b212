"""Container `zarr`: a Zarr v3 group in one zip file, so that a shard stays one file with one digest.

Each column is an array of one chunk, coded `bytes`, `zstd` with its checksum on; of a list column the
entries lie one after the other, and a second array, `NAME_lengths`, says how many belong to each row.
Streams are one array, `streams`, of bytes with a CRC; an attribute says where each begins. Facts are
attributes. Nothing is compressed by the zip file itself.

A file is read as if an enemy had made it: its directory, and every array's metadata, must be just what is
written here; then the zarr library is given these, and never what the file says.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabels.codecs.streams import Stream
from softlabels.errors import IntegrityError, TargetError
from softlabels.store.columns import DECODED_LIMIT, Column, Expected, Facts

__all__ = ["read_columns", "read_facts", "read_streams", "suffix", "write_columns", "write_streams"]

suffix = "zarr.zip"
ZSTD_LEVEL = 3
GROUP = "zarr.json"
LENGTHS = "_lengths"
STREAMS, STREAM_INDEX = "streams", "softlabels.streams"
ENTRIES_LIMIT, JSON_LIMIT = 1024, 2**20
"""Files in the zip file, and bytes of each piece of metadata."""
END_OF_ZIP = 22
"""Bytes of the record that ends a zip file without a comment."""
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
CRC_BYTES = 4


# -- writing --------------------------------------------------------------------------------------


def write_columns(columns: Mapping[str, Column], facts: Facts) -> bytes:
    """An array for each column, and one for the lengths of each list column."""
    arrays = {}
    for name, column in columns.items():
        arrays[name] = column.values
        if column.offsets is not None:
            arrays[name + LENGTHS] = np.diff(column.offsets).astype(np.int32)
    if (size := sum(a.nbytes for a in arrays.values())) > DECODED_LIMIT:
        raise TargetError(
            f"a shard takes {size} bytes, more than the {DECODED_LIMIT} that a reader accepts; lower --shard-rows"
        )
    return _write(arrays, dict(facts), crc=False)


def write_streams(streams: Mapping[str, Stream], facts: Facts) -> bytes:
    """One array of bytes, and where each stream is."""
    index = [[name, s.entries, len(s.data)] for name, s in streams.items()]
    data = np.frombuffer(b"".join(s.data for s in streams.values()), np.uint8)
    return _write({STREAMS: data}, dict(facts) | {STREAM_INDEX: index}, crc=True)


def _write(
    arrays: Mapping[str, npt.NDArray[Any]], attributes: dict[str, Any], *, crc: bool
) -> bytes:
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec
    from zarr.storage import MemoryStore

    codec = Crc32cCodec() if crc else ZstdCodec(level=ZSTD_LEVEL, checksum=True)
    files: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(files), attributes=attributes, zarr_format=3)
    for name, values in arrays.items():
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=_chunk(values.shape),
            filters=None,
            compressors=[codec],
            fill_value=0,
            config={"write_empty_chunks": True},
        )
        if values.size:
            array[...] = values
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as file:
        for name in sorted(files):
            # A fixed time: equal shards are equal files.
            file.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), files[name].to_bytes())
    return sink.getvalue()


def _chunk(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(max(n, 1) for n in shape)


def _metadata(shape: tuple[int, ...], dtype: np.dtype[Any], *, crc: bool) -> dict[str, Any]:
    """What the metadata of an array says."""
    first: dict[str, Any] = {"name": "bytes"}
    if dtype.itemsize > 1:
        first["configuration"] = {"endian": "little"}
    zstd = {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": True}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(_chunk(shape))}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": False if dtype == np.bool_ else 0,
        "codecs": [first, {"name": "crc32c"} if crc else zstd],
    }


# -- reading --------------------------------------------------------------------------------------


def read_columns(
    data: bytes, expected: Mapping[str, Expected], *, records: int | None, where: str
) -> dict[str, Column]:
    """Decode the expected columns; others are left alone.

    Raises:
        IntegrityError: not such a file, a bad checksum, a column missing or of another type, or one that
            declares more than it should hold.
    """
    files = _files(data, where)
    _attributes(files, where)
    wanted: dict[str, tuple[Expected, int | None]] = {}
    for name, about in expected.items():
        wanted[name] = (about, about.most if about.listed or records is None else records)
        if about.listed:
            each = Expected(dtype=np.dtype(np.int32), listed=False)
            wanted[name + LENGTHS] = (each, records)
    metadata = {}
    for name, (about, most) in wanted.items():
        shape = _shape(files, name, about, where, crc=False)
        exact = not about.listed and records is not None
        if most is not None and (shape[0] > most or (exact and shape[0] != most)):
            what = "rows" if exact else "entries"
            raise IntegrityError(
                f"{where}: column {name!r} declares {shape[0]} {what}, {'expected' if exact else 'at most'} {most} "
                "fit the manifest; not decoded. Copy it again from a source that you trust"
            )
        metadata[name] = (shape, about.dtype)
    size = sum(int(np.prod(s, dtype=object)) * d.itemsize for s, d in metadata.values())
    if size > DECODED_LIMIT:
        raise IntegrityError(
            f"{where}: would decode to {size} bytes, more than the {DECODED_LIMIT} that a shard may hold; not decoded"
        )
    arrays = _decode(files, metadata, where, crc=False)
    found = {}
    for name, about in expected.items():
        offsets = None
        if about.listed:
            lengths = arrays[name + LENGTHS]
            offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            if len(lengths) and (lengths.min() < 0 or offsets[-1] != len(arrays[name])):
                raise IntegrityError(
                    f"{where}: {name + LENGTHS} do not sum to the {len(arrays[name])} entries of {name!r}"
                )
        found[name] = Column(values=arrays[name], offsets=offsets)
    rows = {len(c.values) if c.offsets is None else len(c.offsets) - 1 for c in found.values()}
    if len(rows) > 1:
        raise IntegrityError(
            f"{where}: its columns have {sorted(rows)} rows, expected as many each"
        )
    return found


def read_streams(data: bytes, *, where: str) -> dict[str, Stream]:
    """The streams, by name.

    Raises:
        IntegrityError: not such a file, a bad checksum, or an index that does not fit.
    """
    files = _files(data, where)
    index = _attributes(files, where).get(STREAM_INDEX)
    about = Expected(dtype=np.dtype(np.uint8), listed=False)
    shape = _shape(files, STREAMS, about, where, crc=True)
    if shape[0] > len(data):
        raise IntegrityError(f"{where}: declares streams of {shape[0]} bytes, more than its own")
    joined = _decode(files, {STREAMS: (shape, about.dtype)}, where, crc=True)[STREAMS].tobytes()
    found: dict[str, Stream] = {}
    at = 0
    try:
        for name, entries, size in index or ():
            if not (isinstance(name, str) and type(entries) is int and type(size) is int):
                raise ValueError(f"an entry {name!r}")
            if name in found or entries < 0 or not 0 <= size <= len(joined) - at:
                raise ValueError(f"stream {name!r} twice, or outside the file")
            found[name] = Stream(entries=entries, data=joined[at : at + size])
            at += size
        if at != len(joined):
            raise ValueError(f"{len(joined) - at} bytes beyond the streams")
    except (ValueError, TypeError) as e:
        raise IntegrityError(f"{where}: its attribute {STREAM_INDEX!r} is malformed ({e})") from e
    return found


def read_facts(data: bytes, *, where: str) -> dict[str, str]:
    """The attributes that begin with `softlabels.` and are text."""
    attributes = _attributes(_files(data, where), where)
    return {
        k: v for k, v in attributes.items() if k.startswith("softlabels.") and isinstance(v, str)
    }


def _files(data: bytes, where: str) -> dict[str, bytes]:
    """The files of the zip file, by name; each lies in it as it is."""
    problem = f"{where}: not a zip file as this format has it"
    end = data[-END_OF_ZIP:]
    count, size = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    if len(end) < END_OF_ZIP or end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise IntegrityError(f"{problem} (its end is missing: torn, or another kind of file)")
    if count > ENTRIES_LIMIT or size > JSON_LIMIT:
        raise IntegrityError(f"{problem} ({count} files, a directory of {size} bytes)")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            infos = file.infolist()
            names = [i.filename for i in infos]
            stored = all(
                i.compress_type == zipfile.ZIP_STORED
                and i.compress_size == i.file_size
                and not i.flag_bits & 1
                for i in infos
            )
            if len(set(names)) != len(names) or not stored:
                raise IntegrityError(f"{problem} (a name twice, or something compressed)")
            if sum(i.file_size for i in infos) > len(data):
                raise IntegrityError(f"{problem} (its files overlap)")
            return {i.filename: file.read(i) for i in infos}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as e:
        if isinstance(e, IntegrityError):
            raise
        raise IntegrityError(f"{problem} ({e})") from e


def _json(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    text = files.get(name)
    if text is None:
        raise IntegrityError(f"{where}: has no {name!r}")
    try:
        if len(text) > JSON_LIMIT:
            raise ValueError(f"{len(text)} bytes")
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise IntegrityError(f"{where}: {name} is not readable JSON ({e})") from e
    if not isinstance(found, dict):
        raise IntegrityError(f"{where}: {name} is not a JSON object")
    return found


def _attributes(files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    group = _json(files, GROUP, where)
    attributes = group.get("attributes")
    if (group.get("zarr_format"), group.get("node_type")) != (3, "group") or not isinstance(
        attributes, dict
    ):
        raise IntegrityError(f"{where}: is not a Zarr v3 group")
    return attributes


def _shape(
    files: Mapping[str, bytes], name: str, expected: Expected, where: str, *, crc: bool
) -> tuple[int, ...]:
    """The shape of an array whose metadata is otherwise as it must be, and whose chunk is there."""
    found = _json(files, f"{name}/zarr.json", where)
    width = () if expected.width is None else (expected.width,)
    shape = found.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) != 1 + len(width)
        or not all(type(n) is int and 0 <= n < 2**31 for n in shape)
        or tuple(shape[1:]) != width
    ):
        raise IntegrityError(f"{where}: array {name!r} has the shape {str(shape)[:60]}")
    ours = _metadata(tuple(shape), expected.dtype, crc=crc)
    for key, value in ours.items():
        theirs = found.get(key)
        if key == "codecs":
            value, theirs = _without_level(value), _without_level(theirs)
        if key != "fill_value" and theirs != value:  # every chunk is there, so nothing is filled
            raise IntegrityError(
                f"{where}: array {name!r} has the {key} {str(theirs)[:120]}, expected {value}"
            )
    chunk = files.get(_chunk_name(name, tuple(shape)))
    size = int(np.prod(shape, dtype=object)) * expected.dtype.itemsize
    if size == 0:
        return tuple(shape)
    if chunk is None:
        raise IntegrityError(f"{where}: the chunk of array {name!r} is missing")
    declared = len(chunk) - CRC_BYTES if crc else _zstd_size(chunk)
    if declared != size:
        raise IntegrityError(
            f"{where}: the chunk of array {name!r} declares {declared} bytes, expected {size}; not decoded"
        )
    return tuple(shape)


def _without_level(codecs: Any) -> Any:
    """Codecs as they must be, whatever the level of zstd: any decodes alike."""
    last: Any = codecs[-1] if isinstance(codecs, list) and codecs else None
    settings = last.get("configuration") if isinstance(last, dict) else None
    if not isinstance(settings, dict) or not isinstance(settings.get("level"), int):
        return codecs
    return [*codecs[:-1], {**last, "configuration": {**settings, "level": None}}]


def _chunk_name(name: str, shape: tuple[int, ...]) -> str:
    return f"{name}/c" + "/0" * len(shape)


def _zstd_size(frame: bytes) -> int | None:
    """How many bytes a zstd frame says that it decodes to; None: it does not say, or is no frame."""
    if frame[:4] != ZSTD_MAGIC or len(frame) < 6:
        return None
    descriptor = frame[4]
    single = descriptor >> 5 & 1
    at = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    width = (single, 2, 4, 8)[descriptor >> 6]
    if width == 0:
        return None
    size = int.from_bytes(frame[at : at + width], "little")
    return size + 256 if width == 2 else size


def _decode(
    files: Mapping[str, bytes],
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    where: str,
    *,
    crc: bool,
) -> dict[str, npt.NDArray[Any]]:
    """Decode arrays with metadata of our own making."""
    import zarr
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    kind = default_buffer_prototype().buffer
    held = {GROUP: b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'}
    for name, (shape, dtype) in arrays.items():
        held[f"{name}/zarr.json"] = json.dumps(_metadata(shape, dtype, crc=crc)).encode()
        chunk = _chunk_name(name, shape)
        if chunk in files:
            held[chunk] = files[chunk]
    store = MemoryStore({name: kind.from_bytes(content) for name, content in held.items()})
    try:
        group = zarr.open_group(store, mode="r", zarr_format=3)
        return {
            name: np.asarray(group.require_array(name, shape=shape, dtype=dtype)[...])
            for name, (shape, dtype) in arrays.items()
        }
    except Exception as e:  # the library's codecs raise what they like
        raise IntegrityError(f"{where}: cannot be decoded, its bytes were altered ({e})") from e
