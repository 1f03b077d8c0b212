"""A shard as the bytes of its file, and back: profile and container put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from softlabels.codecs import CODECS
from softlabels.codecs.codebook import Codebook
from softlabels.codecs.streams import Stream
from softlabels.core.records import LARGEST
from softlabels.core.registry import Registry, name_of
from softlabels.core.targets import SoftTargets, main_temperature
from softlabels.errors import IntegrityError
from softlabels.format import packed, plain
from softlabels.format.columns import Container, Expected
from softlabels.format.containers import zarr
from softlabels.format.identity import OPEN_PARTS, OPEN_TARGETS, PACKED_ARRAYS, Identity
from softlabels.format.manifest import Statistics
from softlabels.format.shard import Reading, Shard
from softlabels.format.summaries import same_summary

STATISTICS = "softlabels.statistics"
DICTIONARY = "softlabels.dictionary"
PROFILES = ("open", "packed")
"""What a build can make."""
READABLE = (*PROFILES, OPEN_PARTS, OPEN_TARGETS, PACKED_ARRAYS)
CONTAINERS: Registry[Container] = Registry(
    "softlabels.containers",
    {
        "parquet": "softlabels.format.containers.parquet",
        "zarr": "softlabels.format.containers.zarr",
    },
    flag="--container",
)
"""Modules, or objects, with the functions of `Container`."""

FindDictionary = Callable[[str], Codebook]
"""Gives the dictionary of a sha256."""


def container_of(identity: Identity) -> Container:
    """What reads and writes the files of a store."""
    return CONTAINERS.load(identity.encoding.container)


def packages_of(container: str, values: str) -> list[str] | None:
    """The packages that a container and a codec come from; None: both are our own."""
    names = {CONTAINERS.package(container), CODECS.package(name_of(values)[0])}
    return sorted(n for n in names if n is not None) or None


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
    if identity.encoding.plain:
        return container.write_columns(plain.columns_of(shard, identity), facts)
    if dictionary is not None:
        assert dictionary.sha256 is not None, (
            "a dictionary is used only as it was read from its file"
        )
        facts[DICTIONARY] = dictionary.sha256
    streams = packed.streams_of(shard, identity, dictionary)
    if identity.encoding.profile == PACKED_ARRAYS:
        return zarr.write_arrays(streams, facts, packed.attributes_of(identity))
    return container.write_streams(streams, facts)


def decode_shard(
    data: bytes, reading: Reading, *, dictionary: FindDictionary | None = None
) -> Shard:
    """Decode a file's bytes, refusing whatever contradicts the identity or itself.

    Args:
        dictionary: finds the dictionary that the shard asks for, if any.

    Raises:
        IntegrityError: bad checksum, missing column, lengths that do not add up, a row whose inputs are
            not those of its digest. Names the place and the row.
        TargetError: an id out of range, NaN, an empty kept set.
    """
    identity, where = reading.identity, reading.where
    if identity.encoding.plain:
        columns = container_of(identity).read_columns(
            data, plain.expected_columns(reading), records=reading.rows, where=where
        )
        shard = plain.shard_of(columns, reading)
    else:
        wanted = dictionary_of(data, identity, where=where)
        if wanted is not None and dictionary is None:
            raise IntegrityError(
                f"{where}: needs the dictionary {wanted[:12]}…, which is not there"
            )
        book = dictionary(wanted) if dictionary is not None and wanted is not None else None
        shard = packed.shard_of(read_streams(data, identity, where=where), book, reading)
    if reading.documents == 0 or not identity.encoding.has_inputs:
        return shard
    largest = max((int(row.documents.max()) for row in shard.rows), default=0)
    if largest > LARGEST:  # and would wrap
        raise IntegrityError(f"{where}: names document {largest}; there are at most {LARGEST}")
    return replace(shard, rows=[row.renumbered(reading.documents) for row in shard.rows])


def read_streams(data: bytes, identity: Identity, *, where: str) -> Mapping[str, Stream]:
    """The streams of a packed shard, by name; `IntegrityError` if it is not such a file."""
    if identity.encoding.profile == PACKED_ARRAYS:
        return zarr.read_arrays(data, where=where)
    return container_of(identity).read_streams(data, where=where)


def column_bytes(path: Path, identity: Identity) -> dict[str, int]:
    """Compressed bytes of each column of a shard that was decoded, and so is sound.

    Of `packed` the streams `ids.0`, `ids.1` and so on count as one column.
    """
    if identity.encoding.plain:
        return container_of(identity).column_bytes(path)
    found: Counter[str] = Counter()
    for name, stream in read_streams(path.read_bytes(), identity, where=str(path)).items():
        found[name.partition(".")[0]] += len(stream.data)
    return dict(found)


def dictionary_of(data: bytes, identity: Identity, *, where: str) -> str | None:
    """sha256 of the dictionary that a shard was coded with; the profile `open` has none."""
    if identity.encoding.plain:
        return None
    return container_of(identity).read_facts(data, where=where).get(DICTIONARY)


def input_digests(data: bytes, identity: Identity, *, rows: int, where: str) -> bytes:
    """The rows' input digests, 16 bytes each; nothing else is decoded. `IntegrityError` if there are not as many."""
    container = container_of(identity)
    if identity.encoding.plain:
        wanted = {
            "input_digest": Expected(dtype=np.dtype(np.uint8), listed=False, width=16, most=rows)
        }
        found = container.read_columns(data, wanted, records=rows, where=where)
        digests = found["input_digest"].values.tobytes()
    else:
        stream = read_streams(data, identity, where=where).get("input_digest")
        digests = b"" if stream is None else stream.data
    if len(digests) != 16 * rows:
        raise IntegrityError(
            f"{where}: holds {len(digests)} bytes of input digests, expected 16 for each of {rows} rows; copy it again "
            "from its source"
        )
    return digests


def read_statistics(data: bytes, identity: Identity, *, where: str) -> Statistics:
    """The statistics that a shard carries, for a builder that finds it without its commit record."""
    facts = container_of(identity).read_facts(data, where=where)
    try:
        return msgspec.json.decode(facts.get(STATISTICS, ""), type=Statistics)
    except msgspec.DecodeError as e:
        raise IntegrityError(
            f"{where}: carries no statistics ({e}); not a shard of this format"
        ) from e


def check_round_trip(
    content: Shard, data: bytes, identity: Identity, find: FindDictionary, *, where: str
) -> None:
    """Decode what is about to be published, and refuse it if it differs by more than the codec promises."""
    reading = Reading(identity=identity, where=where, start_row=content.start_row)
    back = decode_shard(data, reading, dictionary=find)
    a, b = content.targets, back.targets
    bound = identity.encoding
    t = main_temperature(a.temperatures)
    (ids, logp), (ids_back, logp_back) = _by_id(a, t), _by_id(b, t)
    same = np.array_equal(ids, ids_back)
    if same:
        with np.errstate(invalid="ignore"):
            error = np.abs(logp - logp_back)
        reach = np.where(np.isfinite(logp), np.abs(logp), 0).max(initial=0.0) + 64.0
        slack = 2 * bound.relative_error * reach + bound.absolute_error + 1e-4
        same = bool((error[np.isfinite(logp)] <= slack).all())
    same = same and same_summary(a.summary, b.summary)
    if not same:
        raise IntegrityError(
            f"{where}: decodes to something else than was encoded; please report this"
        )


def _by_id(
    targets: SoftTargets, temperature: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Ids in ascending order, what is not kept last as 2^31, and their log-probabilities."""
    ids = np.where(targets.kept, targets.ids, np.int64(2**31))
    order = np.argsort(ids, axis=1)[:, : int(targets.kept.sum(axis=1).max(initial=0))]
    logp = targets.log_probs(temperature)
    return np.take_along_axis(ids, order, 1), np.take_along_axis(logp, order, 1)
