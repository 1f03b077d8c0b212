"""Streams in Zarr as arrays of their names, for the profile `packed-arrays`.

Whole numbers are coded by pco in its standalone format, which is what numcodecs' PCodec reads, so zarr-python alone
gives them by name: `zarr.open_group(shard, mode="r")["ids"][:]`. They are coded before they come here: the profile
knows which numbers are distributed alike, and codes each such part by itself, which PCodec's own settings cannot say.
Every chunk has its CRC-32C, in the zip file a second one, and metadata is only compared, as `arrays.py` says.

An array costs some 500 bytes, of metadata and in the zip file's directory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from softlabels.codecs.streams import Stream
from softlabels.format.archive import Archive
from softlabels.format.arrays import (
    DeclaredArray,
    array_metadata,
    check_strangers,
    group_metadata,
    open_archive,
    refusing,
    with_checksum,
)
from softlabels.format.columns import Facts
from softlabels.format.containers.zarr import zipped


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
    return zipped(entries)


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
