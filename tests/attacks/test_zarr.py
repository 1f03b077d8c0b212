"""Hostile shards in Zarr: as `test_attacks.py`, for stores of that container."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs.zstd import Zstd

from softlabels.format.archive import write_archive
from tests.attacks.test_attacks import check_refused, pytestmark, reseal_shard, shard_file
from tests.fakes import build_tiny, write_corpus
from tests.store.made_up import reseal

__all__ = ["pytestmark"]

OLD = Path(__file__).parents[1] / "fixtures" / "sampled-nat64-packed-zarr-v1.1"
"""Of the profile `packed`, which new stores in Zarr are not: see `test_zarr_arrays.py`."""
ATTACKS: list[tuple[str, Callable[[Path], None]]] = []
Files = dict[str, bytes]


def attack(profile: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def remember(make: Callable[[Path], None]) -> Callable[[Path], None]:
        ATTACKS.append((profile, make))
        return make

    return remember


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("good")
    corpus = write_corpus(folder / "corpus", documents=2, repeat=1)
    build_tiny(folder / "open", corpus, limit_rows=6, shard_rows=3, container="zarr")
    return {"open": folder / "open", "packed": OLD}


@pytest.mark.parametrize(
    ("profile", "make"), ATTACKS, ids=lambda a: a if isinstance(a, str) else a.__name__
)
def test_a_hostile_store_is_refused(good, tmp_path, profile, make):
    check_refused(good[profile], tmp_path, make)


# -- zip files ------------------------------------------------------------------------------------


@attack("open")
def deflated_zeros(store: Path) -> None:
    """Is 250 KB of an entry that inflates to 256 MB."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        for name, data in _files(store).items():
            bomb = name == "ids/c/0"
            file.writestr(name, bytes(2**28) if bomb else data, zipfile.ZIP_DEFLATED if bomb else 0)
    _put(store, sink.getvalue())


@attack("open")
def entry_of_four_gigabytes(store: Path) -> None:
    """Declares more than the file has."""
    data = bytearray(_raw(store))
    for mark, place in ((b"PK\1\2", 20), (b"PK\3\4", 18)):
        at = data.index(mark) + place
        data[at : at + 8] = b"\xfe\xff\xff\xff" * 2
    _put(store, bytes(data))


@attack("open")
def entries_that_share_their_bytes(store: Path) -> None:
    """Names one chunk ten thousand times: each alone is within the file."""
    data = write_archive({f"a{i}": b"" if i else bytes(2**20) for i in range(10_000)})
    begin = int.from_bytes(data[-6:-2], "little")
    directory = bytearray(data[begin:])
    first, at = directory[:46], 0
    while directory[at : at + 4] == b"PK\1\2":
        size = 46 + int.from_bytes(directory[at + 28 : at + 30], "little")
        directory[at + 16 : at + 28] = first[16:28]
        directory[at + 42 : at + 46] = bytes(4)
        at += size
    _put(store, data[:begin] + bytes(directory))


@attack("open")
def directory_of_sixty_thousand_entries(store: Path) -> None:
    """Spends the reader's time on names."""
    _put(store, write_archive(_files(store) | {f"a{i}": b"" for i in range(60_000)}))


@attack("open")
def a_name_twice(store: Path) -> None:
    """Shows one reader the first entry, another the last."""
    files = _files(store)
    data = write_archive(files | {"idz/c/0": files["ids/c/0"]})
    _put(store, data.replace(b"idz/c/0", b"ids/c/0"))


@attack("open")
def names_that_climb_out(store: Path) -> None:
    """Is unpacked over a file beside the store."""
    data = write_archive(_files(store) | {"aa/aa/outside/secret": b"mine"})
    _put(store, data.replace(b"aa/aa/outside/secret", b"../../outside/secret"))


@attack("open")
def an_absolute_name(store: Path) -> None:
    """Is unpacked anywhere."""
    data = write_archive(_files(store) | {"aetc/cron": b"mine"})
    _put(store, data.replace(b"aetc/cron", b"/etc/cron"))


# -- arrays ---------------------------------------------------------------------------------------


@attack("open")
def frame_of_zeros(store: Path) -> None:
    """Is a few KB, and 32 million ids."""
    _bomb(store, {"ids": np.zeros(2**25, np.int32)})


@attack("open")
def mask_of_zeros(store: Path) -> None:
    """Claims a row of 64 million tokens."""
    _bomb(store, {"label_mask": np.zeros(2**26, bool)})


@attack("open")
def offsets_without_end(store: Path) -> None:
    """Has 32 million rows, in one column."""
    _bomb(store, {"offsets/ids": np.zeros(2**25, np.int64)})


@attack("open")
def zeros_that_the_manifest_vouches_for(store: Path) -> None:
    """Declares 1.3 GB with counts that fit: only a limit for all shards helps."""
    zeros = np.zeros(2**26, np.int32)
    _bomb(
        store,
        dict.fromkeys(["input_ids", "segment_lengths", "kept", "ids"], zeros)
        | {"documents": np.zeros(2**25, np.int64)},
    )
    for record in ("manifest.json", "plan.json"):
        reseal(
            store / record,
            shards__0__positions=2**40,
            identity__targets__k=2**20,
            identity__corpus__seq_len=2**40,
        )


@attack("open")
def frame_that_hides_what_it_holds(store: Path) -> None:
    """Declares what the array's shape asks for, and holds 256 MB."""
    files = _files(store)
    size = int(np.prod(json.loads(files["ids/zarr.json"])["shape"])) * 4
    frame = _frame(np.zeros(2**26, np.int32))
    assert frame[4] >> 6 == 2  # four bytes of size
    assert not frame[4] & 32  # after a window of one byte
    _put(
        store,
        write_archive(files | {"ids/c/0": frame[:6] + size.to_bytes(4, "little") + frame[10:]}),
    )


@attack("open")
def frame_that_declares_nothing(store: Path) -> None:
    """Is decoded until it ends, 256 MB later."""
    files = _files(store)
    frame = _frame(np.zeros(2**26, np.int32))
    head = bytes([frame[4] & 0x3F])
    _put(store, write_archive(files | {"ids/c/0": frame[:4] + head + frame[5:6] + frame[10:]}))


@attack("open")
def a_missing_chunk(store: Path) -> None:
    """Reads as zeros, or as any other number that the metadata names."""
    files = _files(store)
    del files["logp/c/0"]
    _put(store, write_archive(files))


@attack("open")
def shape_beyond_all(store: Path) -> None:
    """Allocates 2^62 values, or overflows their number."""
    _metadata(store, "ids", shape=[2**62], chunk_grid=_grid(2**62))


@attack("open")
def shape_without_end_and_without_bytes(store: Path) -> None:
    """Has 2^62 rows of no bytes."""
    _metadata(store, "input_digest", shape=[2**62, 0], chunk_grid=_grid(2**62, 1))


@attack("open")
def negative_shape(store: Path) -> None:
    """Moves an index before the beginning of an array."""
    _metadata(store, "ids", shape=[-5], chunk_grid=_grid(1))


@attack("open")
def grid_of_a_trillion_chunks(store: Path) -> None:
    """Is a loop over chunks, all of them missing."""
    _metadata(store, "ids", shape=[2**40], chunk_grid=_grid(1))


@attack("open")
def codec_of_somebody_else(store: Path) -> None:
    """Has the library import what the file names, and unpickle."""
    codec = {"name": "numcodecs.pickle", "configuration": {"id": "pickle", "protocol": 5}}
    _metadata(
        store, "ids", codecs=[{"name": "bytes", "configuration": {"endian": "little"}}, codec]
    )


@attack("open")
def codecs_within_codecs(store: Path) -> None:
    """Nests shards within shards."""
    codec: dict[str, Any] = {"name": "bytes"}
    for _ in range(20):
        codec = {"name": "sharding_indexed", "configuration": {"codecs": [codec]}}
    _metadata(store, "ids", codecs=[codec])


@attack("open")
def metadata_nested_half_a_million_deep(store: Path) -> None:
    """Overflows the stack of a recursive parser."""
    deep = b"[" * (2**19 - 100) + b"]" * (2**19 - 100)
    head = b'{"zarr_format":3,"node_type":"group","attributes":{"a":'
    _put(store, write_archive(_files(store) | {"zarr.json": head + deep + b"}}"}))


@attack("open")
def metadata_of_60_megabytes(store: Path) -> None:
    """Is parsed before anyone looks at its size."""
    head = b'{"zarr_format":3,"node_type":"group","attributes":{"a":['
    lists = head + b"[]," * (2 * 10**7) + b"0]}}"
    _put(store, write_archive(_files(store) | {"zarr.json": lists}))


@attack("open")
def facts_of_many_kinds(store: Path) -> None:
    """Has 40,000 attributes of ours."""
    facts = ",".join(f'"softlabels.{i}":""' for i in range(40_000))
    text = '{"zarr_format":3,"node_type":"group","attributes":{' + facts + "}}"
    _put(store, write_archive(_files(store) | {"zarr.json": text.encode(), "ids/c/0": b""}))


# -- streams --------------------------------------------------------------------------------------


@attack("packed")
def index_of_empty_streams(store: Path) -> None:
    """Lists 70,000 streams of nothing."""
    _index(store, lambda index: [*index, *([str(i), 0, 0] for i in range(70_000)), ["x", 0, 1]])


@attack("packed")
def index_with_a_number_of_many_digits(store: Path) -> None:
    """Takes quadratic time to read."""
    data = _files(store)["zarr.json"].replace(b'["kept", ', b'["kept", ' + b"9" * 10**6)
    assert len(data) > 10**6
    _put(store, write_archive(_files(store) | {"zarr.json": data}))


@attack("packed")
def stream_of_a_terabyte(store: Path) -> None:
    """Reaches beyond the file."""
    _index(store, lambda index: [[name, n, 2**40 if name == "kept" else b] for name, n, b in index])


@attack("packed")
def stream_of_2_to_the_62_entries(store: Path) -> None:
    """Allocates what an index declares."""
    _index(store, lambda index: [[name, 2**62, b] for name, _, b in index])


@attack("packed")
def streams_that_are_compressed_after_all(store: Path) -> None:
    """Are 256 MB of zeros behind another codec."""
    files = _files(store)
    about = json.loads(files["streams/zarr.json"])
    about["codecs"][1] = {"name": "zstd", "configuration": {"level": 3, "checksum": True}}
    about |= {"shape": [2**28], "chunk_grid": _grid(2**28)}
    files |= {"streams/zarr.json": json.dumps(about).encode()}
    _put(store, write_archive(files | {"streams/c/0": _frame(np.zeros(2**28, np.uint8))}))


# -- how they are made ----------------------------------------------------------------------------


def _raw(store: Path) -> bytes:
    return shard_file(store, 0).read_bytes()


def _files(store: Path) -> Files:
    with zipfile.ZipFile(shard_file(store, 0)) as file:
        return {name: file.read(name) for name in file.namelist()}


def _put(store: Path, data: bytes) -> None:
    assert data != _raw(store)
    shard_file(store, 0).write_bytes(data)
    reseal_shard(store)


def _grid(*shape: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(shape)}}


def _metadata(store: Path, name: str, **changes: Any) -> None:
    files = _files(store)
    about = json.loads(files[f"{name}/zarr.json"]) | changes
    _put(store, write_archive(files | {f"{name}/zarr.json": json.dumps(about).encode()}))


def _frame(values: np.ndarray) -> bytes:
    return bytes(Zstd(level=3, checksum=True).encode(values))


def _bomb(store: Path, arrays: dict[str, np.ndarray]) -> None:
    """Put arrays in place of others: metadata, chunk and its declared size agree."""
    files = _files(store)
    for name, values in arrays.items():
        about = json.loads(files[f"{name}/zarr.json"])
        about |= {"shape": list(values.shape), "chunk_grid": _grid(*values.shape)}
        files[f"{name}/zarr.json"] = json.dumps(about).encode()
        files[f"{name}/c/0"] = _frame(values)
    assert sum(map(len, files.values())) < 2**20
    _put(store, write_archive(files))


def _index(store: Path, change: Callable[[list[Any]], list[Any]]) -> None:
    files = _files(store)
    about = json.loads(files["zarr.json"])
    index = about["attributes"]["softlabels.streams"]
    about["attributes"]["softlabels.streams"] = change(index)
    text = json.dumps(about, separators=(",", ":")).encode()
    _put(store, write_archive(files | {"zarr.json": text}))
