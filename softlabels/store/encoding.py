"""A shard as the bytes of its file, and back: profile and container put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import cast

import msgspec

from softlabels.codecs.codebook import Codebook
from softlabels.errors import IntegrityError
from softlabels.store import packed, plain
from softlabels.store.columns import Container
from softlabels.store.manifest import Identity, Statistics
from softlabels.store.shard import Shard

__all__ = [
    "CONTAINERS",
    "PROFILES",
    "FindDictionary",
    "container_of",
    "decode_shard",
    "dictionary_of",
    "encode_shard",
    "read_statistics",
]

STATISTICS = "softlabels.statistics"
DICTIONARY = "softlabels.dictionary"
PROFILES = ("open", "packed")
CONTAINERS: Mapping[str, str] = {
    "parquet": "softlabels.store.parquet",
    "zarr": "softlabels.store.zarr",
}
"""Name and module."""

FindDictionary = Callable[[str], Codebook]
"""Gives the dictionary of a sha256."""


def container_of(identity: Identity) -> Container:
    """The module that reads and writes the files of a store."""
    return cast(Container, import_module(CONTAINERS[identity.encoding.container]))


def encode_shard(
    shard: Shard,
    identity: Identity,
    statistics: Statistics,
    *,
    dictionary: Codebook | None = None,
) -> bytes:
    """The bytes of a shard's file. Equal shards give equal bytes with one version of the libraries.

    Args:
        dictionary: of the profile `packed`, what ids are coded with, if not with an order of the shard's own.
    """
    container = container_of(identity)
    facts = {STATISTICS: msgspec.json.encode(statistics).decode()}
    if identity.encoding.profile == "open":
        return container.write_columns(plain.columns_of(shard, identity), facts)
    if dictionary is not None:
        assert dictionary.sha256 is not None, (
            "a dictionary is used only as it was read from its file"
        )
        facts[DICTIONARY] = dictionary.sha256
    return container.write_streams(packed.streams_of(shard, identity, dictionary), facts)


def decode_shard(
    data: bytes,
    identity: Identity,
    *,
    start_row: int,
    where: str,
    rows: int | None = None,
    positions: int | None = None,
    dictionary: FindDictionary | None = None,
) -> Shard:
    """Decode a file's bytes, refusing whatever contradicts the identity or itself.

    Args:
        rows: how many the manifest or the plan says there are; None: not known.
        positions: the same of positions. With both a file that declares more is refused before it is decoded.
        dictionary: finds the dictionary that the shard asks for, if any.

    Raises:
        IntegrityError: bad checksum, missing column, lengths that do not add up, a row whose inputs are
            not those of its digest. Names `where` and the row.
        TargetError: an id out of range, NaN, an empty kept set.
    """
    container = container_of(identity)
    if identity.encoding.profile == "open":
        expected = plain.expected_columns(identity, rows, positions)
        columns = container.read_columns(data, expected, records=rows, where=where)
        return plain.shard_of(columns, identity, start_row=start_row, where=where)
    wanted = dictionary_of(data, identity, where=where)
    if wanted is not None and dictionary is None:
        raise IntegrityError(f"{where}: needs the dictionary {wanted[:12]}…, which is not there")
    return packed.shard_of(
        container.read_streams(data, where=where),
        identity,
        dictionary(wanted) if dictionary is not None and wanted is not None else None,
        start_row=start_row,
        rows=rows,
        positions=positions,
        where=where,
    )


def dictionary_of(data: bytes, identity: Identity, *, where: str) -> str | None:
    """sha256 of the dictionary that a shard was coded with."""
    return container_of(identity).read_facts(data, where=where).get(DICTIONARY)


def read_statistics(data: bytes, identity: Identity, *, where: str) -> Statistics:
    """The statistics that a shard carries, for a builder that finds it without its commit record."""
    facts = container_of(identity).read_facts(data, where=where)
    try:
        return msgspec.json.decode(facts.get(STATISTICS, ""), type=Statistics)
    except msgspec.DecodeError as e:
        raise IntegrityError(
            f"{where}: carries no statistics ({e}); not a shard of this format"
        ) from e
