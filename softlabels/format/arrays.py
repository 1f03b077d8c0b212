"""What the arrays of a Zarr file declare, read and compared before anything is decoded.

A reader of this format has nothing to look up: the codecs, the one chunk and its size follow from what an
array must be. So what a file says of itself is only compared; no library is told by it what to load, how
much to allocate, or that a missing chunk is zeros.
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

from softlabels.codecs.streams import LEVEL
from softlabels.errors import IntegrityError
from softlabels.format.archive import Archive

GROUP_LIMIT = 2**20
ARRAY_LIMIT = 2**12
"""Bytes of the `zarr.json` of a group, and of an array: more is refused unread."""
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

Codec = Literal["zstd", "crc32c", "stream"]
"""What an array must be: numbers under zstd; plain numbers; or a stream: whole numbers under pco, others plain."""
PCODEC = "numcodecs.pcodec"
CODED = ("uint32", "int64")
"""Types of numbers that pco codes here."""
PCO_SETTINGS = {
    "level",
    "mode_spec",
    "delta_spec",
    "paging_spec",
    "delta_encoding_order",
    "equal_pages_up_to",
}
"""How a writer coded, which no reader needs."""


def chunk_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The chunk that is all of an array. A chunk cannot be empty: an empty array has none."""
    return tuple(max(n, 1) for n in shape)


class _Named(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    name: str
    configuration: dict[str, bool | int | str | list[int] | None] = {}


class Group(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The `zarr.json` of a group."""

    zarr_format: Literal[3]
    node_type: Literal["group"]
    attributes: dict[str, msgspec.Raw] = {}
    consolidated_metadata: None = None
    """A second account of the arrays, which could be another one."""


class _Array(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
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


class DeclaredArray:
    """An array as its metadata and its chunk's head declare it; `ValueError` if it is not what `codec` asks for."""

    def __init__(self, archive: Archive, name: str, codec: Codec) -> None:
        about = read_metadata(archive, name, _Array, ARRAY_LIMIT)
        self.shape = tuple(about.shape)
        self.type = about.data_type
        self._codec = codec
        self.coded = codec == "stream" and self.type in CODED
        """Whether the chunk is pco, of which nothing says how much it decodes to."""
        width = WIDTHS.get(self.type)
        if width is None or min(self.shape, default=-1) < 0 or len(self.shape) > 2:
            raise ValueError(f"array {name!r} of {self.type!r}, shape {about.shape}")
        self.bytes = math.prod(self.shape) * width
        if about.chunk_grid != _Named("regular", {"chunk_shape": list(chunk_of(self.shape))}):
            raise ValueError(f"array {name!r} of shape {about.shape} is not one chunk")
        if about.chunk_key_encoding not in CHUNK_KEYS:
            raise ValueError(f"array {name!r} names its chunks in another way")
        self._check_codecs(about.codecs, name, single=width == 1)
        self.key = f"{name}/c" + "/0" * len(self.shape)
        self.keys = {f"{name}/zarr.json", *([self.key] if self.bytes else [])}
        self.data = archive.read(self.key) if self.bytes else memoryview(b"")
        self._check_size(name)

    def _check_codecs(self, codecs: list[_Named], name: str, *, single: bool) -> None:
        fits = len(codecs) == 2
        if self.coded:
            fits = (
                fits and codecs[0].name == PCODEC and set(codecs[0].configuration) <= PCO_SETTINGS
            )
        else:
            fits = fits and codecs[0] in BYTES[single]
        if self._codec == "zstd":
            fits = fits and codecs[1].name == "zstd"
            fits = fits and codecs[1].configuration.get("checksum") is True
            fits = fits and set(codecs[1].configuration) <= {"level", "checksum"}
        else:
            fits = fits and codecs[1] == CRC32C
        if not fits:
            first = PCODEC if self.coded else "bytes (little-endian)"
            last = "zstd with its checksum" if self._codec == "zstd" else "crc32c"
            found = [c.name[:40] for c in codecs[:8]]
            raise ValueError(f"array {name!r} has the codecs {found}, expected {first} and {last}")

    def _check_size(self, name: str) -> None:
        if not self.bytes or (self.coded and len(self.data) > 4):
            return
        found = _frame_size(self.data) if self._codec == "zstd" else len(self.data) - 4
        if found != self.bytes:
            said = "no size, or has no checksum" if found is None else f"{found} bytes"
            raise ValueError(
                f"the chunk of array {name!r} declares {said}; its shape asks for {self.bytes} bytes"
            )

    def decode(self, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """The values, read only; `ValueError` if the bytes are not those of the checksum."""
        if not self.bytes:
            return np.zeros(self.shape, dtype)
        raw: Any = self.content()
        if self._codec == "zstd":
            try:
                raw = pa.Codec("zstd").decompress(raw, decompressed_size=self.bytes)
            except (pa.ArrowException, OSError) as e:
                raise ValueError(str(e)) from e
        if dtype == np.bool_ and np.frombuffer(raw, np.uint8).max() > 1:
            raise ValueError("a truth value is neither 0 nor 1")
        little = np.frombuffer(raw, dtype.newbyteorder("<")).reshape(self.shape)
        return little.astype(dtype, copy=False)

    def content(self) -> memoryview:
        """The chunk's bytes, without their CRC-32C; `ValueError` if they are not those of the checksum."""
        if self._codec == "zstd" or not self.bytes:
            return self.data
        raw = self.data[:-4]
        if google_crc32c.value(np.frombuffer(raw, np.uint8)) != int.from_bytes(
            self.data[-4:], "little"
        ):
            raise ValueError("a checksum does not fit its bytes")
        return raw


def array_metadata(
    shape: tuple[int, ...], dtype: np.dtype[Any], attributes: Mapping[str, Any]
) -> bytes:
    """The `zarr.json` of the array of a stream."""
    first = BYTES[dtype.itemsize == 1][0]
    if dtype.name in CODED:
        first = _Named(PCODEC, {"level": LEVEL, "mode_spec": "classic"})
    return msgspec.json.encode(
        _Array(
            zarr_format=3,
            node_type="array",
            shape=list(shape),
            data_type=dtype.name,
            chunk_grid=_Named("regular", {"chunk_shape": list(chunk_of(shape))}),
            chunk_key_encoding=CHUNK_KEYS[1],
            codecs=[first, CRC32C],
            fill_value=0,
            attributes={n: msgspec.Raw(msgspec.json.encode(v)) for n, v in attributes.items()},
        )
    )


def group_metadata(attributes: Mapping[str, Any]) -> bytes:
    """The `zarr.json` of the root."""
    return msgspec.json.encode(
        {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    )


def with_checksum(data: bytes) -> bytes:
    """A chunk of these bytes: they and their CRC-32C."""
    checksum: int = google_crc32c.value(data)
    return data + checksum.to_bytes(4, "little")


def read_metadata(archive: Archive, name: str, kind: type[Any], limit: int) -> Any:
    """A `zarr.json`, of the group or array `name`; the root's is ''.

    Raises:
        ValueError: there is none, it is too long, or says what this format does not know.
    """
    path = f"{name}/zarr.json" if name else "zarr.json"
    return _decoded(archive.read(path, limit=limit), kind, path)


def _decoded(data: Any, kind: type[Any], what: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ValueError(f"{what}: {e}") from e


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
def refusing(where: str) -> Iterator[None]:
    """Turn `ValueError` into `IntegrityError` with the place."""
    try:
        yield
    except ValueError as e:
        raise IntegrityError(
            f"{where}: not a readable Zarr file ({e}); copy it again from its source"
        ) from e


def open_archive(data: bytes) -> tuple[Archive, Group]:
    """The entries of a file, and its root group; `ValueError` if it is no group in a zip file."""
    archive = Archive(data)
    return archive, read_metadata(archive, "", Group, GROUP_LIMIT)


def attribute(group: Group, name: str, kind: type[Any]) -> Any:
    """An attribute of a group; `ValueError` if there is none, or it is of another type."""
    if name not in group.attributes:
        raise ValueError(f"has no attribute {name!r}")
    return _decoded(group.attributes[name], kind, f"attribute {name!r}")


def check_strangers(archive: Archive, arrays: list[DeclaredArray]) -> None:
    """Other arrays may be there, but nothing else inside of those that are read."""
    known = set().union(*(a.keys for a in arrays))
    folders = tuple(k.removesuffix("zarr.json") for k in known if k.endswith("zarr.json"))
    for name in archive:
        if name not in known and f"{name}/".startswith(folders):
            raise ValueError(f"entry {name!r} is no part of its array")
