"""Container zarr: it gives back what Parquet gives back; a file that lies, or was altered, is refused."""

from __future__ import annotations

import io
import json
import random
import zipfile
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numcodecs.zstd import Zstd

from softlabels.codecs.streams import Stream
from softlabels.errors import IntegrityError, TargetError
from softlabels.format.archive import Archive, write_archive
from softlabels.format.columns import Column, Expected
from softlabels.format.containers import zarr as container
from softlabels.format.encoding import decode_shard, encode_shard, read_statistics
from softlabels.format.manifest import Statistics
from softlabels.format.shard import Reading
from softlabels.making.repair import repair_store
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.fakes import build_tiny
from tests.store.made_up import STATISTICS, files_of, held_by, identity_of, row_of, targets_of
from tests.store.test_parquet import START, Shard, assert_same, shard_of
from trainers import SoftTargetStream

BOTH = [
    ("open", "float16"),
    ("open", "float32"),
    ("packed", "float32"),
    ("packed-arrays", "float32"),
    ("packed-arrays", "nat16"),
]
both = pytest.mark.parametrize(("profile", "values"), BOTH)


def in_zarr(identity):
    encoding = msgspec.structs.replace(identity.encoding, container="zarr")
    return msgspec.structs.replace(identity, encoding=encoding)


def round_trip(shard, identity):
    """Through Zarr, and the same through Parquet: equal to the last bit."""
    data = encode_shard(shard, in_zarr(identity), STATISTICS)
    n = shard.targets.n
    exact = {"rows": len(shard.rows), "positions": n, "start_row": START, "where": "s"}
    again = decode_shard(data, Reading(identity=in_zarr(identity), **exact))
    encoding = identity.encoding
    plain = msgspec.structs.replace(encoding, profile=encoding.asked_profile)
    parquet = msgspec.structs.replace(identity, encoding=plain)
    other = decode_shard(
        encode_shard(shard, parquet, STATISTICS), Reading(identity=parquet, **exact)
    )
    assert_equal(again, other)
    assert_equal(
        decode_shard(data, Reading(identity=in_zarr(identity), start_row=START, where="s")), other
    )
    if identity.encoding.profile == "open":
        assert_same(shard, again, identity)
    return data


def assert_equal(a, b):
    assert a.start_row == b.start_row
    assert len(a.rows) == len(b.rows)
    for x, y in zip(a.rows, b.rows, strict=True):
        for name in ("input_ids", "segment_lengths", "documents", "label_mask"):
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name))
            assert getattr(x, name).dtype == getattr(y, name).dtype
    for name in ("ids", "gaps", "log_odds"):
        x, y = getattr(a.targets, name), getattr(b.targets, name)
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


@given(
    segments=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
    narrow=st.integers(1, 4),
    spread=st.integers(0, 5),
    learn=st.sampled_from([0.0, 0.3, 1.0]),
    how=st.sampled_from(BOTH),
    temperatures=st.sampled_from([(1.0,), (0.5, 1.0, 2.0, 7.25)]),
)
def test_the_same_shard_through_parquet_and_zarr(
    segments, seed, narrow, spread, learn, how, temperatures
):
    rng = np.random.default_rng(seed)
    identity = identity_of(profile=how[0], values=how[1], temperatures=temperatures)
    counts = lambda: int(rng.integers(narrow, narrow + spread + 1))  # noqa: E731
    round_trip(shard_of(rng, segments, identity, counts=counts, learn=learn), identity)


@both
@pytest.mark.parametrize(
    ("vocab_size", "ids_from"), [(2, 0), (262144, 262144 - 8), (2**31, 2**31 - 8)]
)
def test_round_trip_of_large_ids(profile, values, vocab_size, ids_from):
    rng = np.random.default_rng(0)
    identity = identity_of(profile=profile, values=values, vocab_size=vocab_size)
    counts = lambda: min(8, vocab_size)  # noqa: E731
    shard = shard_of(rng, [[9], [5, 6]], identity, counts=counts, learn=1, ids_from=ids_from)
    assert shard.targets.ids.min() >= ids_from
    assert shard.targets.ids.max() == vocab_size - 1
    round_trip(shard, identity)


@both
def test_rows_without_positions(profile, values):
    rng = np.random.default_rng(0)
    identity = identity_of(profile=profile, values=values)
    some = [row_of(rng, [4, 3], 300, learn) for learn in (0, 1, 0, 1, 0)]
    shard = Shard(start_row=START, rows=some, targets=targets_of(rng, [3] * 10, identity))
    data = round_trip(shard, identity)
    again = decode_shard(data, Reading(identity=in_zarr(identity), start_row=START, where="w"))
    assert [again.row(r).targets.n for r in range(5)] == [0, 5, 0, 5, 0]
    round_trip(shard_of(rng, [[3], [2]], identity, learn=0), identity)


def test_a_sample_at_another_temperature():
    rng = np.random.default_rng(0)
    identity = identity_of(temperatures=(2.0,), estimator="sampled", values="float32")
    shard = shard_of(rng, [[6], [3]], identity, learn=1)
    odds = np.full_like(shard.targets.log_odds, -np.inf)
    data = round_trip(
        replace(shard, targets=replace(shard.targets, log_odds=odds)), in_zarr(identity)
    )
    assert "log_odds_T2/zarr.json" in unzipped(data)


@both
def test_equal_shards_give_equal_bytes_whatever_the_user_has_set(profile, values):
    identity = in_zarr(identity_of(profile=profile, values=values))
    one, two = (shard_of(np.random.default_rng(7), [[5], [4]], identity) for _ in range(2))
    data = encode_shard(one, identity, STATISTICS)
    assert encode_shard(two, identity, STATISTICS) == data
    mine = {"json_indent": 4, "array.write_empty_chunks": False, "array.order": "F"}
    with zarr.config.set(mine):
        assert encode_shard(two, identity, STATISTICS) == data
        assert zarr.config.get("json_indent") == 4


@both
def test_statistics_travel_as_an_attribute(profile, values):
    identity = in_zarr(identity_of(profile=profile, values=values))
    shard = shard_of(np.random.default_rng(0), [[3]], identity)
    statistics = Statistics(kept_ids=7, kept_mass=[1.25, 0.1], teacher_nll=None)
    data = encode_shard(shard, identity, statistics)
    assert read_statistics(data, identity, where="w") == statistics
    files = unzipped(data)
    files["zarr.json"] = b'{"zarr_format":3,"node_type":"group","attributes":{"a":[1]}}'
    with pytest.raises(IntegrityError, match="w: carries no statistics"):
        read_statistics(write_archive(files), identity, where="w")


# -- plain arrays for other readers ---------------------------------------------------------------


def group_of(data, tmp_path):
    path = tmp_path / "shard.zarr.zip"
    path.write_bytes(data)
    return zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")


def test_zarr_reads_the_columns(tmp_path):
    identity = identity_of(temperatures=(0.5, 1.0), container="zarr")
    shard = shard_of(np.random.default_rng(0), [[3], [2, 2], [1]], identity, learn=1)
    group = group_of(encode_shard(shard, identity, STATISTICS), tmp_path)
    lists = {
        "input_ids": "int32",
        "segment_lengths": "int32",
        "documents": "int64",
        "label_mask": "bool",
        "kept": "int32",
        "ids": "int32",
        "logp": "float16",
        "log_odds_T0_5": "float16",
        "log_odds_T1": "float16",
    }
    found = {name: str(array.dtype) for name, array in group.arrays()}
    assert found == lists | {"row": "int64", "input_digest": "uint8"}
    assert {name for name, _ in group["offsets"].arrays()} == set(lists)
    for r, row in enumerate(shard.rows):
        begin, end = group["offsets/input_ids"][r : r + 2]
        assert group["input_ids"][begin:end].tolist() == row.input_ids.tolist()
        assert group["label_mask"][begin:end].tolist() == row.label_mask.tolist()
        assert group["input_digest"][r].tobytes() == row.digest()
    assert group["row"][:].tolist() == [10, 11, 12]
    assert group["ids"][:].tolist() == shard.targets.ids[shard.targets.kept].tolist()
    assert group["offsets/kept"][:].tolist() == shard.offsets.tolist()
    assert json.loads(group.attrs["softlabels.statistics"])["kept_ids"] == 0
    for path in ("ids", "offsets/ids"):
        compressors = [c.to_dict() for c in group[path].compressors]
        assert compressors == [{"name": "zstd", "configuration": {"level": 3, "checksum": True}}]


def test_zarr_reads_the_streams(tmp_path):
    streams = {"a": Stream(entries=2, data=b"xyz"), "b": Stream(entries=0, data=b"")}
    group = group_of(container.write_streams(streams, {}), tmp_path)
    assert group.attrs["softlabels.streams"] == [["a", 2, 3], ["b", 0, 0]]
    assert group["streams"][:].tobytes() == b"xyz"


def test_a_file_that_another_writer_made(tmp_path):
    """By the library alone, with its own settings: as a user would who copies a shard."""
    identity = identity_of(container="zarr")
    shard = shard_of(np.random.default_rng(0), [[3], [2, 2]], identity, learn=0.5)
    whole = encode_shard(shard, identity, STATISTICS)
    source = group_of(whole, tmp_path)
    path = tmp_path / "copy.zarr.zip"
    with zarr.storage.ZipStore(path, mode="w") as store:
        copy = zarr.create_group(store, attributes=dict(source.attrs))
        copy.create_group("offsets")
        names = [n for n, _ in source.arrays()] + [
            f"offsets/{n}" for n, _ in source["offsets"].arrays()
        ]
        for name in names:
            values = source[name][:]
            copy.create_array(
                name,
                data=values,
                chunks=tuple(max(n, 1) for n in values.shape),
                compressors=[zarr.codecs.ZstdCodec(level=9, checksum=True)],
                fill_value=7 if values.dtype != bool else True,
                attributes={"unit": "none"},
                config={"write_empty_chunks": True},
            )
    again = decode_shard(path.read_bytes(), Reading(identity=identity, start_row=START, where="w"))
    assert_equal(again, decode_shard(whole, Reading(identity=identity, start_row=START, where="w")))


# -- files that were altered ----------------------------------------------------------------------


COLUMNS = {
    "row": Column(values=np.arange(3)),
    "digest": Column(values=np.arange(48, dtype=np.uint8).reshape(3, 16)),
    "ids": Column(
        values=np.array([300, 2, 2**31 - 1], np.int32), offsets=np.array([0, 1, 1, 3], np.int64)
    ),
    "mask": Column(values=np.array([True, False]), offsets=np.array([0, 0, 2, 2], np.int64)),
}
EXPECTED = {
    "row": Expected(dtype=np.dtype(np.int64), listed=False, most=3),
    "digest": Expected(dtype=np.dtype(np.uint8), listed=False, width=16, most=3),
    "ids": Expected(dtype=np.dtype(np.int32), most=4),
    "mask": Expected(dtype=np.dtype(bool)),
}
STREAMS = {"a": Stream(entries=2, data=b"xyz"), "b": Stream(entries=1, data=b"0" * 50)}
FACTS = {"softlabels.statistics": "{}", "softlabels.dictionary": "0" * 64}


def read(data):
    return container.read_columns(data, EXPECTED, records=3, where="dir/s.zarr.zip")


def read_streams(data):
    return container.read_streams(data, where="dir/s.zarr.zip")


def as_read(data, of_columns):
    facts = container.read_facts(data, where="dir/s.zarr.zip")
    if not of_columns:
        return facts, read_streams(data)
    return facts, {
        name: (c.values.tobytes(), c.offsets is not None and c.offsets.tobytes())
        for name, c in read(data).items()
    }


@pytest.fixture(scope="module")
def small() -> bytes:
    return container.write_columns(COLUMNS, FACTS)


def unzipped(data) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


def refusal_of(files, read=read) -> str:
    data = write_archive(files) if isinstance(files, dict) else files
    with pytest.raises(IntegrityError) as e:
        read(data)
    assert str(e.value).startswith("dir/s.zarr.zip: ")
    return str(e.value)


def test_the_small_file_reads_as_it_was_written(small):
    found = read(small)
    for name, column in COLUMNS.items():
        np.testing.assert_array_equal(found[name].values, column.values)
        assert found[name].values.dtype == column.values.dtype
        if column.offsets is None:
            assert found[name].offsets is None
        else:
            np.testing.assert_array_equal(found[name].offsets, column.offsets)
    assert container.read_facts(small, where="w") == FACTS
    data = container.write_streams(STREAMS, FACTS)
    assert read_streams(data) == STREAMS
    assert container.read_facts(data, where="w") == FACTS


@pytest.mark.parametrize("of_columns", [True, False])
def test_every_flipped_bit_is_found_or_changes_nothing_that_is_read(small, of_columns):
    whole = small if of_columns else container.write_streams(STREAMS, FACTS)
    expected = as_read(whole, of_columns)
    data = bytearray(whole)
    harmless = []
    for place in range(len(data)):
        for bit in range(8):
            data[place] ^= 1 << bit
            try:
                assert as_read(bytes(data), of_columns) == expected
                harmless.append(place)
            except IntegrityError:
                pass
            data[place] ^= 1 << bit
    # of each entry: versions, dates, attributes, in its own header and in the directory
    assert len(set(harmless)) <= 24 * len(unzipped(whole))


@pytest.mark.parametrize("of_columns", [True, False])
def test_every_torn_file_is_refused(small, of_columns):
    whole = small if of_columns else container.write_streams(STREAMS, FACTS)
    for size in range(len(whole)):
        for torn in (whole[:size], whole[size + 1 :]):
            with pytest.raises(IntegrityError, match="not a readable Zarr file"):
                as_read(torn, of_columns)


@both
def test_altered_and_torn_shards_never_escape_as_another_error(profile, values):
    """Without any sha256 to compare with: an orphan is decoded before anything vouches for it."""
    rng = random.Random(0)
    identity = in_zarr(identity_of(profile=profile, values=values))
    shard = shard_of(np.random.default_rng(0), [[5], [6, 3]], identity, learn=1)
    whole = encode_shard(shard, identity, STATISTICS)
    expected = decode_shard(whole, Reading(identity=identity, start_row=START, where="w"))
    found = 0
    for trial in range(400):
        data = bytearray(whole)
        for _ in range(1 + trial % 3):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if trial % 5 == 0:
            del data[rng.randrange(len(data)) :]
        try:
            again = decode_shard(
                bytes(data), Reading(identity=identity, start_row=START, where="w")
            )
            read_statistics(bytes(data), identity, where="w")
            assert_equal(again, expected)
        except (IntegrityError, TargetError):
            found += 1
    assert found > 250


# -- zip files of another kind --------------------------------------------------------------------


def zipped(files, change=lambda info: None, **how):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            change(info)
            file.writestr(info, data, **how)
    return sink.getvalue()


class OneWay(io.RawIOBase):
    """A pipe: what is written to it cannot be corrected, so sizes follow the data."""

    def __init__(self):
        self.data = b""

    def writable(self):
        return True

    def write(self, data):
        self.data += bytes(data)
        return len(data)


def test_compressed_entries(small):
    files = unzipped(small)
    assert "compressed or encrypted" in refusal_of(zipped(files, compress_type=8))
    assert read(zipped(files)).keys() == COLUMNS.keys()


def test_entries_whose_sizes_follow_them(small):
    sink = OneWay()
    with zipfile.ZipFile(sink, "w") as file:
        for name, data in unzipped(small).items():
            file.writestr(name, data)
    assert "compressed or encrypted" in refusal_of(sink.data)


def test_zip64(small):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        for name, data in unzipped(small).items():
            with file.open(name, "w", force_zip64=True) as f:
                f.write(data)
    assert "contradicts the directory" in refusal_of(sink.getvalue())


def test_bytes_that_belong_to_no_entry(small):
    for data in (small + b"\0", b"\0" + small, b"#!/bin/sh\n" + small):
        assert "not a readable Zarr file" in refusal_of(data)
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        file.comment = b"hello"
    assert "comment" in refusal_of(sink.getvalue())


def test_bytes_between_the_entries_and_their_directory(small):
    begin = int.from_bytes(small[-6:-2], "little")
    end = small[-22:-6] + (begin + 3).to_bytes(4, "little") + small[-2:]
    data = small[:begin] + b"\0\0\0" + small[begin:-22] + end
    assert unzipped(data) == unzipped(small)  # others do not mind
    assert "bytes that belong to no entry" in refusal_of(data)


def test_a_comment_that_is_not_there(small):
    assert "comment" in refusal_of(small[:-2] + b"\1\0")


def test_stored_entries_that_say_that_they_are_compressed(small):
    data = bytearray(small)
    for mark, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        at = data.index(mark) + place
        assert data[at : at + 2] == b"\0\0"
        data[at] = 8
    assert "compressed or encrypted" in refusal_of(bytes(data))


@pytest.mark.parametrize("data", [b"", b"PK\5\6", b"PK\5\6" + bytes(18), b"PAR1" * 20, b"{}" * 50])
def test_not_a_zip_file(data):
    assert "not a readable Zarr file" in refusal_of(data)
    assert "not a readable Zarr file" in refusal_of(data, read_streams)
    with pytest.raises(IntegrityError, match="not a readable Zarr file"):
        container.read_facts(data, where="w")


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/../x", "a/./x", "a//x", "a/", "a\\x", "C:x", ".x", "a\0", "ö", "a b"],
)
def test_names_that_lead_elsewhere(small, name):
    data = zipped(unzipped(small) | {"Z" * len(name.encode()): b"1"})
    assert read(data)
    assert "an entry is named" in refusal_of(data.replace(b"Z" * len(name.encode()), name.encode()))
    assert "an entry is named" in refusal_of(unzipped(small) | {"Z" * 256: b"1"})


def test_an_entry_twice(small):
    data = zipped(unzipped(small) | {"rov/c/0": b"1"}).replace(b"rov/c/0", b"row/c/0")
    assert "entry 'row/c/0' is there twice" in refusal_of(data)


def test_entries_that_share_their_bytes():
    data = bytearray(zipped({"a": b"1", "b": b"1"}))
    at = data.rindex(b"PK\1\2")
    data[at + 42 : at + 46] = bytes(4)
    with pytest.raises(ValueError, match="entry 'b' is not where it must be"):
        Archive(bytes(data))


def test_more_entries_than_any_shard_has():
    with pytest.raises(ValueError, match="20000 entries, more than 16384"):
        Archive(write_archive({f"a{i}": b"" for i in range(20_000)}))


# -- arrays that lie ------------------------------------------------------------------------------


def metadata(files, name, **changes):
    """The files with some keys of a `zarr.json` changed."""
    about = json.loads(files[f"{name}/zarr.json"])
    assert about.keys() >= changes.keys() - {"news", "dimension_names"}
    return files | {f"{name}/zarr.json": json.dumps(about | changes).encode()}


def grid(*shape):
    return {"name": "regular", "configuration": {"chunk_shape": list(shape)}}


def chunk(files, name, values, **how):
    """The files with another chunk of a one-dimensional array, and its shape."""
    changed = metadata(files, name, shape=[len(values)], chunk_grid=grid(max(len(values), 1)))
    data = Zstd(**({"level": 3, "checksum": True} | how)).encode(np.ascontiguousarray(values))
    return changed | {f"{name}/c/0": data}


LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
ZSTD = {"name": "zstd", "configuration": {"level": 3, "checksum": True}}


def test_how_files_are_changed_here(small):
    files = unzipped(small)
    changed = read(write_archive(chunk(files, "ids", np.array([1, 2, 4], np.int32))))
    assert changed["ids"].values.tolist() == [1, 2, 4]
    metadata(files, "ids", codecs=[LITTLE, ZSTD], chunk_grid=grid(3))
    assert read(write_archive(files))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shape": [4]}, "is not one chunk"),
        ({"shape": [4], "chunk_grid": grid(4)}, "declares 12 bytes; its shape asks for 16"),
        ({"shape": [2**60], "chunk_grid": grid(2**60)}, "declares 12 bytes"),
        ({"shape": [5 * 10**30], "chunk_grid": grid(5 * 10**30)}, "not a readable"),
        ({"shape": [-3], "chunk_grid": grid(-3)}, "shape [-3]"),
        ({"shape": []}, "shape []"),
        ({"shape": [1, 1, 3]}, "shape [1, 1, 3]"),
        ({"shape": [3, 1], "chunk_grid": grid(3, 1)}, "has no entry 'ids/c/0/0'"),
        ({"shape": [3.0]}, "not a readable"),
        ({"shape": None}, "not a readable"),
        ({"chunk_grid": grid(1)}, "is not one chunk"),
        ({"chunk_grid": grid(6)}, "is not one chunk"),
        ({"chunk_grid": grid(0)}, "is not one chunk"),
        ({"chunk_grid": grid(3) | {"name": "rectangular"}}, "is not one chunk"),
        ({"data_type": "float32"}, "holds float32, expected int32"),
        ({"data_type": "uint32"}, "holds uint32, expected int32"),
        ({"data_type": "string"}, "of 'string'"),
        ({"data_type": {"name": "numpy.datetime64", "configuration": {}}}, "not a readable"),
        ({"codecs": []}, "codecs []"),
        ({"codecs": [LITTLE]}, "expected bytes (little-endian) and zstd with its checksum"),
        ({"codecs": [ZSTD]}, "codecs ['zstd']"),
        ({"codecs": [{"name": "bytes"}, ZSTD]}, "expected bytes"),
        ({"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}, ZSTD]}, "expected b"),
        ({"codecs": [LITTLE, {"name": "zstd", "configuration": {"level": 3}}]}, "its checksum"),
        ({"codecs": [LITTLE, {"name": "zstd", "configuration": {"checksum": 1}}]}, "its checksum"),
        ({"codecs": [LITTLE, {"name": "blosc"}]}, "codecs ['bytes', 'blosc']"),
        ({"codecs": [LITTLE, {"name": "crc32c"}]}, "codecs ['bytes', 'crc32c']"),
        (
            {"codecs": [LITTLE, {"name": "numcodecs.pickle"}]},
            "codecs ['bytes', 'numcodecs.pickle']",
        ),
        ({"codecs": [LITTLE, ZSTD, ZSTD]}, "codecs ['bytes', 'zstd', 'zstd']"),
        (
            {"codecs": [{"name": "transpose"}, LITTLE, ZSTD]},
            "codecs ['transpose', 'bytes', 'zstd']",
        ),
        ({"chunk_key_encoding": {"name": "v2"}}, "names its chunks in another way"),
        (
            {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}}},
            "names its chunks in another way",
        ),
        ({"storage_transformers": [{"name": "x"}]}, "not a readable"),
        ({"zarr_format": 2}, "not a readable"),
        ({"node_type": "group"}, "not a readable"),
        ({"news": {"must_understand": True}}, "unknown field `news`"),
    ],
)
def test_metadata_that_lies(small, changes, says):
    assert says in refusal_of(metadata(unzipped(small), "ids", **changes))


@pytest.mark.parametrize(
    "json_text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 4000 + b"]" * 96,
        b'{"attributes":' * 280,
        b'{"shape":[' + b"9" * 4000 + b"]}",
        b" " * 4097,
    ],
)
def test_metadata_that_is_none(small, json_text):
    for name in ("ids/zarr.json", "offsets/ids/zarr.json", "offsets/zarr.json", "zarr.json"):
        refusal_of(unzipped(small) | {name: json_text})


def test_another_account_of_the_arrays(small):
    """Consolidated metadata: a reader that trusts it would see other arrays."""
    files = unzipped(small)
    about = json.loads(files["zarr.json"])
    about["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": {}}
    assert "consolidated_metadata" in refusal_of(files | {"zarr.json": json.dumps(about).encode()})


def test_dimension_names_are_of_no_concern(small):
    assert read(write_archive(metadata(unzipped(small), "ids", dimension_names=["entry"])))


@pytest.mark.parametrize("name", ["row", "digest", "ids", "mask"])
def test_a_missing_column(small, name):
    files = {k: v for k, v in unzipped(small).items() if not k.startswith(f"{name}/")}
    assert f"has no column {name!r}" in refusal_of(files)


@pytest.mark.parametrize("name", ["row/c/0", "digest/c/0/0", "ids/c/0", "offsets/mask/c/0"])
def test_a_missing_chunk_is_never_zeros(small, name):
    files = unzipped(small)
    del files[name]
    assert f"has no entry {name!r}" in refusal_of(files)


@pytest.mark.parametrize("name", ["offsets/ids/zarr.json", "offsets/zarr.json", "zarr.json"])
def test_missing_metadata(small, name):
    files = unzipped(small)
    del files[name]
    assert f"has no entry {name!r}" in refusal_of(files)


@pytest.mark.parametrize("name", ["ids/c/1", "ids/c/0/0", "ids/x", "ids", "offsets/ids/c/1"])
def test_a_stranger_inside_of_an_array(small, name):
    assert f"entry {name!r} is no part of its array" in refusal_of(unzipped(small) | {name: b"1"})


def test_more_arrays_are_of_no_concern(small):
    files = unzipped(small)
    more = {k.replace("ids/", "entropy/"): v for k, v in files.items() if k.startswith("ids/")}
    assert len(more) == 2
    assert read(write_archive(files | more | {"notes.txt": b"x"})).keys() == COLUMNS.keys()


@pytest.mark.parametrize(
    "ends",
    [[0, 1, 1, 4], [0, 1, 1, 2], [1, 1, 1, 3], [0, 2, 1, 3], [0, -1, 3, 3], [0, 2**62, 1, 3]],
)
def test_offsets_that_lie(small, ends):
    changed = chunk(unzipped(small), "offsets/ids", np.array(ends, np.int64))
    assert "the offsets of column 'ids' do not ascend from 0 to its 3" in refusal_of(changed)


def test_offsets_of_another_kind(small):
    files = unzipped(small)
    other = chunk(files, "offsets/ids", np.array([0, 1, 1, 3], np.int32))
    other = metadata(other, "offsets/ids", data_type="int32")
    assert "the offsets of column 'ids' are int32" in refusal_of(other)
    fewer = chunk(files, "offsets/ids", np.array([0, 1, 3], np.int64))
    assert "holds 2 or 3 rows, expected 3" in refusal_of(fewer)
    with pytest.raises(IntegrityError, match="holds 3 rows, expected 2"):
        container.read_columns(small, EXPECTED, records=2, where="w")
    with pytest.raises(IntegrityError, match="holds 2 or 3 rows, expected one number"):
        container.read_columns(write_archive(fewer), EXPECTED, records=None, where="w")
    none = chunk(files, "offsets/ids", np.array([], np.int64))
    del none["offsets/ids/c/0"]
    assert "the offsets of column 'ids' are int64 of shape (0,)" in refusal_of(none)


def test_more_entries_than_the_manifest_allows(small):
    changed = chunk(unzipped(small), "ids", np.arange(5, dtype=np.int32))
    assert "column 'ids' declares 5 entries, at most 4 fit the manifest" in refusal_of(changed)


def test_a_digest_of_another_width(small):
    files = metadata(unzipped(small), "digest", shape=[6, 8], chunk_grid=grid(6, 8))
    assert "column 'digest' has the shape (6, 8), expected ('R', 16)" in refusal_of(files)


def test_frames_without_a_checksum_or_a_size(small):
    files, values = unzipped(small), np.array([1, 2, 4], np.int32)
    assert "declares no size, or has no checksum" in refusal_of(
        chunk(files, "ids", values, checksum=False)
    )
    frame = chunk(files, "ids", values)["ids/c/0"]
    assert frame[4:6] == bytes([0x24, 12])  # one segment, checksum; 12 bytes
    unknown = frame[:4] + bytes([0x04, 0x00]) + frame[6:]
    assert "declares no size, or has no checksum" in refusal_of(files | {"ids/c/0": unknown})
    with_dictionary = frame[:4] + bytes([0x25, 1]) + frame[5:]
    assert "declares no size, or has no checksum" in refusal_of(
        files | {"ids/c/0": with_dictionary}
    )
    for bad in (b"", b"\x28\xb5\x2f\xfd", bytes(20)):
        assert "declares no size, or has no checksum" in refusal_of(files | {"ids/c/0": bad})
    assert "declares 13 bytes" in refusal_of(
        files | {"ids/c/0": frame[:5] + bytes([13]) + frame[6:]}
    )


@pytest.mark.parametrize("size", [1, 255, 256, 257, 65791, 65792, 70000])
def test_frames_of_all_sizes(size):
    """The number is spelled in one, two or four bytes."""
    values = np.arange(size, dtype=np.uint8)
    data = container.write_columns({"x": Column(values=values)}, {})
    files = unzipped(data) | {"offsets/zarr.json": b'{"zarr_format":3,"node_type":"group"}'}
    expected = {"x": Expected(dtype=np.dtype(np.uint8), listed=False)}
    found = container.read_columns(write_archive(files), expected, records=size, where="w")
    np.testing.assert_array_equal(found["x"].values, values)


def test_a_frame_that_holds_something_else_than_it_declares(small):
    """CRC-32 of the zip file and declared size are right: only decoding finds it."""
    files = unzipped(small)
    longer = chunk(files, "ids", np.arange(4, dtype=np.int32))["ids/c/0"]
    lies = longer[:5] + bytes([12]) + longer[6:]
    assert "column 'ids' cannot be decoded" in refusal_of(files | {"ids/c/0": lies})
    frame = bytearray(files["ids/c/0"])
    frame[-6] ^= 1
    assert "column 'ids' cannot be decoded" in refusal_of(files | {"ids/c/0": bytes(frame)})
    two = files["ids/c/0"] * 2
    assert "column 'ids' cannot be decoded" in refusal_of(files | {"ids/c/0": two})


def test_truth_values_that_are_none(small):
    changed = chunk(unzipped(small), "mask", np.array([2, 0], np.uint8))
    assert "neither 0 nor 1" in refusal_of(changed)


def test_numbers_of_another_width_than_the_manifest_says():
    shard = shard_of(np.random.default_rng(0), [[5]], identity_of(), learn=1)
    data = encode_shard(shard, identity_of(values="float16", container="zarr"), STATISTICS)
    with pytest.raises(IntegrityError, match="holds float16, expected float32"):
        decode_shard(
            data,
            Reading(
                identity=identity_of(values="float32", container="zarr"), start_row=START, where="w"
            ),
        )


def test_a_shard_that_no_reader_would_read_is_neither_written_nor_read(small, monkeypatch):
    monkeypatch.setattr("softlabels.format.containers.zarr.DECODED_LIMIT", 100)
    monkeypatch.setattr("softlabels.format.columns.DECODED_LIMIT", 100)
    with pytest.raises(TargetError, match=r"a shard takes \d+ bytes, .* lower --shard-rows"):
        container.write_columns(COLUMNS, FACTS)
    assert "would decode to 150 bytes, more than the 100" in refusal_of(small)
    monkeypatch.setattr("softlabels.format.containers.zarr.SIZE_LIMIT", 100)
    with pytest.raises(TargetError, match="is too large for one zip file; lower --shard-rows"):
        container.write_streams(STREAMS, FACTS)


# -- streams that lie -----------------------------------------------------------------------------


def streams_with(index=None, content=None):
    files = unzipped(container.write_streams(STREAMS, FACTS))
    if index is not None:
        about = json.loads(files["zarr.json"])
        about["attributes"]["softlabels.streams"] = index
        files["zarr.json"] = json.dumps(about).encode()
    if content is not None:
        files["streams/c/0"] = content
    return files


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ([], "53 bytes beyond its streams"),
        ([["a", 2, 3], ["b", 1, 49]], "1 bytes beyond its streams"),
        ([["a", 2, 3], ["b", 1, 51]], "stream 'b' is there twice, or outside"),
        ([["a", 2, 3], ["a", 1, 50]], "stream 'a' is there twice"),
        ([["a", 2, -3], ["b", 1, 56]], "stream 'a' is there twice, or outside"),
        ([["a", -2, 3], ["b", 1, 50]], "stream 'a' is there twice, or outside"),
        ([["a", 2, 3.5], ["b", 1, 50]], "attribute 'softlabels.streams'"),
        ([["a", 2], ["b", 1, 50]], "attribute 'softlabels.streams'"),
        ({"a": [2, 3]}, "attribute 'softlabels.streams'"),
        ("xyz", "attribute 'softlabels.streams'"),
    ],
)
def test_an_index_that_does_not_fit(index, says):
    assert says in refusal_of(streams_with(index), read_streams)


def test_streams_that_do_not_fit_their_checksum():
    assert read_streams(write_archive(streams_with()))
    right = streams_with()["streams/c/0"]
    for bad in (right[:-1] + bytes([right[-1] ^ 1]), bytes([right[0] ^ 1]) + right[1:]):
        assert "a checksum does not fit" in refusal_of(streams_with(content=bad), read_streams)
    for bad in (right[:-1], right + b"\0", b"", b"xyz"):
        assert "its shape asks for 53" in refusal_of(streams_with(content=bad), read_streams)


def test_streams_of_another_kind(small):
    assert "has no entry 'streams/zarr.json'" in refusal_of(small, read_streams)
    files = streams_with()
    zstd = metadata(files, "streams", codecs=[{"name": "bytes"}, ZSTD])
    assert "expected bytes (little-endian) and crc32c" in refusal_of(zstd, read_streams)
    signed = metadata(files, "streams", data_type="int8")
    assert "its streams are int8" in refusal_of(signed, read_streams)
    assert "is no part" in refusal_of(files | {"streams/c/1": b"x"}, read_streams)
    files["zarr.json"] = b'{"zarr_format":3,"node_type":"group","attributes":{}}'
    assert "has no attribute 'softlabels.streams'" in refusal_of(files, read_streams)


def test_no_streams_at_all():
    assert read_streams(container.write_streams({}, {})) == {}


# -- whole stores ---------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["open", "packed"])
def test_a_store_is_built_verified_repaired_and_trained_from(tmp_path, corpus, profile):
    job = {"limit_rows": 8, "shard_rows": 3, "profile": profile}
    build_tiny(tmp_path / "parquet", corpus, **job)
    build_tiny(tmp_path / "store", corpus, container="zarr", **job)
    opened, other = open_store(tmp_path / "store"), open_store(tmp_path / "parquet")
    names = [s.name for s in opened.manifest.shards]
    assert names == [f"data/train-{i:05d}-of-00003.zarr.zip" for i in range(3)]
    for i in range(3):
        assert_equal(opened.shard(i), other.shard(i))
    assert verify_store(opened.path).problems == []
    assert opened.manifest.statistics == other.manifest.statistics
    card = opened.file("README.md").decode()
    assert "configs:" not in card
    assert card.startswith("---\ntags:\n- softlabels\n")
    assert ("configs:" in other.file("README.md").decode()) == (profile == "open")

    ours = SoftTargetStream(opened, batch_size=2, seed=1).batch_at(0)
    theirs = SoftTargetStream(other, batch_size=2, seed=1).batch_at(0)
    assert ours.positions == theirs.positions > 0

    before = files_of(opened.path)
    shard = opened.path / names[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert any(names[1] in p for p in verify_store(opened.path).problems)
    assert [a.file for a in repair_store(opened.path).actions]
    build_tiny(opened.path, corpus, container="zarr", **job)
    after = held_by(opened.path)
    assert after.keys() == before.keys()
    assert [n for n in names if after[n] != before[n]] == []
    assert verify_store(opened.path).problems == []


@pytest.mark.parametrize("profile", ["open", "packed"])
def test_a_shard_without_its_record_is_adopted(tmp_path, corpus, profile):
    job = {"limit_rows": 8, "shard_rows": 3, "profile": profile, "container": "zarr"}
    store = tmp_path / "store"
    build_tiny(store, corpus, **job)
    before = files_of(store)
    for name in ("manifest.json", "README.md", "commits/00001.json"):
        (store / name).unlink()
    repair_store(store)
    build_tiny(store, corpus, **job)
    after = files_of(store)
    for name in before:
        if name.startswith("data/"):
            assert after[name] == before[name]
    assert verify_store(store).problems == []
