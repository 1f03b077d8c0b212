"""Packed shards in Zarr: zarr alone reads the numbers by name; a file that lies, or was altered, is refused."""

from __future__ import annotations

import json

import google_crc32c
import numcodecs
import numpy as np
import pytest
from pcodec import ChunkConfig, standalone

from softlabels.codecs.numbers import StoredNumbers
from softlabels.codecs.streams import Stream, pack, plain, plain_numbers, unpack
from softlabels.errors import ConfigError, FormatError, IntegrityError, TargetError
from softlabels.format import packed
from softlabels.format.archive import write_archive
from softlabels.format.containers import zarr as zarr_container
from softlabels.format.encoding import decode_shard, encode_shard
from softlabels.format.shard import Reading
from softlabels.store.reader import open_store
from tests.fakes import build_tiny
from tests.store.made_up import STATISTICS, identity_of, reseal
from tests.store.test_parquet import START, shard_of
from tests.store.test_zarr import assert_equal, grid, group_of, metadata, unzipped

WHERE = "dir/s.zarr.zip"
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
PCODEC = {"name": "numcodecs.pcodec", "configuration": {"level": 8}}
CRC = {"name": "crc32c"}
STREAMS = {
    "ids": pack(np.array([7, 0, 2**32 - 1, 7], np.uint32)),
    "documents": pack(np.array([-1, 2**62], np.int64)),
    "none": pack(np.zeros(0, np.uint32)),
    "input_digest": plain(np.arange(32, dtype=np.uint8).reshape(2, 16)),
    "hidden": plain(np.array([0.5, -2], np.float16)),
}
VALUES = {"ids": np.uint32, "documents": np.int64, "none": np.uint32}

pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")


def arrays_of(**how):
    return identity_of(profile="packed-arrays", container="zarr", **how)


def written():
    return zarr_container.write_arrays(
        STREAMS, {"softlabels.statistics": "{}"}, {"ids": {"a": [1]}}
    )


def all_of(data):
    """Every array, as numbers."""
    found = zarr_container.read_arrays(data, where=WHERE)
    return {
        name: unpack(found[name], np.empty(found[name].entries, VALUES[name]), where=name).tolist()
        if name in VALUES
        else (found[name].data, found[name].dtype, found[name].width)
        for name in STREAMS
    }


def refusal_of(files):
    data = write_archive(files) if isinstance(files, dict) else files
    with pytest.raises(IntegrityError) as e:
        all_of(data)
    return str(e.value)


# -- for other readers ----------------------------------------------------------------------------


def test_zarr_alone_reads_every_stream_by_its_name(tmp_path):
    group = group_of(written(), tmp_path)
    assert {name for name, _ in group.arrays()} == set(STREAMS)
    assert group["ids"][:].tolist() == [7, 0, 2**32 - 1, 7]
    assert group["documents"][:].tolist() == [-1, 2**62]
    assert group["none"].shape == (0,)
    assert group["input_digest"][1].tobytes() == bytes(range(16, 32))
    assert group["hidden"][:].tolist() == [0.5, -2]
    assert group["ids"].attrs["a"] == [1]
    assert group.attrs["softlabels.statistics"] == "{}"


@pytest.mark.parametrize("spread", [0, 3])
@pytest.mark.parametrize("values", ["nat16", "float16", "float32"])
def test_log_probabilities_from_arrays_alone(tmp_path, values, spread):
    """As docs/format.md says: places, order by token, gaps; then the codec that the arrays name."""
    rng = np.random.default_rng(0)
    identity = arrays_of(values=values)
    counts = lambda: int(rng.integers(2, 3 + spread))  # noqa: E731
    shard = shard_of(rng, [[9], [5, 6], [60]], identity, counts=counts, learn=0.8)
    data = encode_shard(shard, identity, STATISTICS)
    group = group_of(data, tmp_path)
    again = decode_shard(data, Reading(identity=identity, start_row=START, where="w"))

    tokens = np.concatenate([row.context for row in shard.rows])
    by_token = np.argsort(tokens, kind="stable")
    kept = group["kept"][:][by_token]
    places = np.arange(kept.max())[:, None] < kept
    steps = np.zeros(places.shape, np.uint32)
    steps[places] = group["values"][:]
    numbers = np.cumsum(steps, axis=0, dtype=np.uint32)
    codec = numcodecs.get_codec(group["values"].attrs["softlabels.codec"])
    scores = np.where(places, codec.decode(numbers), -np.inf)
    found = scores - np.logaddexp.reduce(scores, axis=0)
    odds = numcodecs.get_codec(group["log_odds_T1"].attrs["softlabels.codec"])
    found -= np.logaddexp(0, odds.decode(group["log_odds_T1"][:]))[by_token]
    np.testing.assert_allclose(found.T, again.targets.logp[by_token], rtol=1e-5, atol=1e-5)
    assert group["ids"].shape == (again.targets.kept.sum(),)


def test_the_codec_is_registered_and_refuses_what_it_does_not_know():
    config = {"id": "softlabels.numbers", "kind": "entropy", "held": "root64"}
    codec = numcodecs.get_codec(dict(config))
    assert isinstance(codec, StoredNumbers)
    assert codec.get_config() == config
    assert codec.decode(np.array([1, 65], np.uint32)).tolist() == [0, 1]
    out = np.empty(1, np.float32)
    assert codec.decode(np.array([65], np.uint32), out) is out
    with pytest.raises(TargetError, match="only decodes"):
        codec.encode(out)
    for kind, held in (("entropy", "root65"), ("gaps", "nat16"), ("values", "nat17")):
        with pytest.raises(ConfigError, match=held):
            StoredNumbers(kind=kind, held=held)


def test_a_file_that_another_writer_made(tmp_path):
    """By zarr's own pipeline, as a user would who copies a shard."""
    import zarr
    from zarr.codecs.numcodecs import PCodec

    identity = arrays_of(values="nat16")
    shard = shard_of(np.random.default_rng(0), [[30], [2, 2]], identity, learn=0.5)
    whole = encode_shard(shard, identity, STATISTICS)
    source = group_of(whole, tmp_path)
    path = tmp_path / "copy.zarr.zip"
    with zarr.storage.ZipStore(path, mode="w") as store:
        copy = zarr.create_group(store, attributes=dict(source.attrs))
        for name, array in source.arrays():
            coded = array.dtype in (np.uint32, np.int64)
            copy.create_array(
                name,
                data=array[:],
                chunks=tuple(max(n, 1) for n in array.shape),
                filters=None,
                serializer=PCodec(level=3, equal_pages_up_to=9) if coded else "auto",
                compressors=[zarr.codecs.Crc32cCodec()],
                config={"write_empty_chunks": True},
            )
    again = decode_shard(path.read_bytes(), Reading(identity=identity, start_row=START, where="w"))
    assert_equal(again, decode_shard(whole, Reading(identity=identity, start_row=START, where="w")))


# -- what is written ------------------------------------------------------------------------------


def test_places_are_coded_apart():
    """In one array, and as small as in streams of their own: within the 500 bytes that an array costs."""
    rng = np.random.default_rng(0)
    shard = shard_of(rng, [[64]] * 40, identity_of(), counts=lambda: 8, learn=1)
    sizes = {
        profile: len(
            encode_shard(
                shard,
                identity_of(profile=profile, container="zarr", values="nat16"),
                STATISTICS,
            )
        )
        for profile in ("packed", "packed-arrays")
    }
    streams = packed.streams_of(shard, arrays_of(values="nat16"), None)
    assert sizes["packed-arrays"] - sizes["packed"] < 600 * len(streams)


def test_stores_are_built_so_and_old_ones_go_on_as_they_began(tmp_path, corpus):
    job = {"limit_rows": 6, "shard_rows": 3, "container": "zarr"}
    build_tiny(tmp_path / "s", corpus, profile="packed", **job)
    store = open_store(tmp_path / "s")
    assert store.manifest.identity.encoding.profile == "packed-arrays"
    assert store.manifest.version == "1.6"
    build_tiny(tmp_path / "s", corpus, profile="packed", **job)  # the same job
    build_tiny(tmp_path / "p", corpus, profile="packed", limit_rows=6, shard_rows=3)
    assert open_store(tmp_path / "p").manifest.identity.encoding.profile == "packed"


def test_arrays_are_of_zarr_alone(tmp_path, corpus):
    build_tiny(tmp_path / "s", corpus, limit_rows=2, profile="packed", container="zarr")
    reseal(tmp_path / "s" / "manifest.json", identity__encoding__container="parquet")
    with pytest.raises(FormatError, match="'packed-arrays' is of the container zarr, not parquet"):
        open_store(tmp_path / "s")


# -- files that lie -------------------------------------------------------------------------------


def test_the_small_file_reads_as_it_was_written():
    found = all_of(written())
    assert found["ids"] == [7, 0, 2**32 - 1, 7]
    assert found["documents"] == [-1, 2**62]
    assert found["none"] == []
    assert found["input_digest"] == (bytes(range(32)), "uint8", 16)
    assert found["hidden"] == (np.array([0.5, -2], "<f2").tobytes(), "float16", 1)


def test_every_flipped_bit_is_found_or_changes_nothing_that_is_read():
    whole = written()
    expected, harmless = all_of(whole), set()
    data = bytearray(whole)
    for place in range(len(data)):
        data[place] ^= 1 << place % 8
        try:
            assert all_of(bytes(data)) == expected
            harmless.add(place)
        except IntegrityError:
            pass
        data[place] ^= 1 << place % 8
    assert len(harmless) <= 24 * len(unzipped(whole))


def test_every_torn_file_is_refused():
    whole = written()
    for size in range(0, len(whole), 7):
        assert "not a readable Zarr file" in refusal_of(whole[:size])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shape": [3], "chunk_grid": grid(3)}, "more than 3, expected 3"),
        ({"shape": [5], "chunk_grid": grid(5)}, "decodes to 4 numbers"),
        ({"shape": [4, 1], "chunk_grid": grid(4, 1)}, "has no entry 'ids/c/0/0'"),
        ({"shape": [4]} | {"chunk_grid": grid(2)}, "is not one chunk"),
        ({"shape": [-4], "chunk_grid": grid(-4)}, "shape [-4]"),
        ({"data_type": "uint8"}, "expected bytes (little-endian) and crc32c"),
        ({"data_type": "int64"}, "holds int64, expected uint32"),
        ({"data_type": "float16", "codecs": [LITTLE, CRC]}, "its shape asks for 8 bytes"),
        ({"codecs": []}, "expected numcodecs.pcodec and crc32c"),
        ({"codecs": [PCODEC]}, "expected numcodecs.pcodec and crc32c"),
        ({"codecs": [LITTLE, CRC]}, "codecs ['bytes', 'crc32c']"),
        ({"codecs": [PCODEC, CRC, CRC]}, "codecs ['numcodecs.pcodec', 'crc32c', 'crc32c']"),
        ({"codecs": [{"name": "numcodecs.pickle"}, CRC]}, "codecs ['numcodecs.pickle', 'crc32c']"),
        ({"codecs": [{"name": "sharding_indexed"}, CRC]}, "codecs ['sharding_indexed', 'crc32c']"),
        (
            {"codecs": [PCODEC | {"configuration": {"then": "os.system"}}, CRC]},
            "expected numcodecs.pcodec",
        ),
        ({"codecs": [PCODEC | {"configuration": {"level": {"a": 1}}}, CRC]}, "not a readable"),
    ],
)
def test_metadata_that_lies(changes, says):
    assert says in refusal_of(metadata(unzipped(written()), "ids", **changes))


def test_numbers_of_another_kind_where_plain_ones_are_expected():
    """pco whose bytes are as many as the plain numbers would be."""
    stream = Stream(entries=2, data=bytes(4), dtype="uint32")
    with pytest.raises(IntegrityError, match="holds uint32, expected float16"):
        plain_numbers(stream, np.dtype(np.float16), 2, where="w")


def with_chunk(name, content):
    data = content + google_crc32c.value(content).to_bytes(4, "little")
    return unzipped(written()) | {f"{name}/c/0": data}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"pco!",
        b"\0" * 50,
        write_archive({"zarr.json": b"{}"}),
        json.dumps({"a": 1}).encode(),
        standalone.simple_compress(np.zeros(2**22, np.uint32), ChunkConfig()),
        standalone.simple_compress(np.arange(4, dtype=np.float32), ChunkConfig()),
    ],
    ids=["nothing", "a head", "zeros", "a zip file", "json", "four million zeros", "floats"],
)
def test_chunks_that_are_something_else(content):
    assert "dir/s.zarr.zip" in refusal_of(with_chunk("ids", content)) or content
    with pytest.raises(IntegrityError):
        all_of(write_archive(with_chunk("ids", content)))


def test_entries_inside_of_an_array():
    files = unzipped(written()) | {"ids/c/1": b"x"}
    assert "'ids/c/1' is no part of its array" in refusal_of(files)
    assert all_of(write_archive(unzipped(written()) | {"other/c/1": b"x"}))
