"""Hostile packed shards in Zarr: as `test_zarr.py`, but in this process, whose memory is limited meanwhile."""

from __future__ import annotations

import json
import resource
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from pcodec import ChunkConfig, PagingSpec, standalone

from softlabels.errors import SoftLabelsError
from softlabels.format.archive import write_archive
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.attacks.test_attacks import MEGABYTES, SECONDS, pytestmark, reseal_shard, shard_file
from tests.fakes import build_tiny, write_corpus
from tests.store.made_up import reseal

__all__ = ["pytestmark"]

ATTACKS: list[Callable[[Path], None]] = []
Files = dict[str, bytes]
ROOM = 2**33
"""Bytes of address space that an attack may still take: one that works harms this test only."""


def attack(make: Callable[[Path], None]) -> Callable[[Path], None]:
    ATTACKS.append(make)
    return make


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    corpus = write_corpus(folder / "corpus", documents=2, repeat=1)
    build_tiny(
        folder / "store", corpus, limit_rows=6, shard_rows=3, profile="packed", container="zarr"
    )
    assert read(folder / "store") == "read"  # and everything is loaded
    assert verify(folder / "store") == "verified"
    return folder / "store"


def read(store: Path) -> str:
    opened = open_store(store)
    for i in range(len(opened.manifest.shards)):
        opened.shard(i)
    return "read"


def verify(store: Path) -> str:
    return "refused" if verify_store(store).problems else "verified"


def status(name: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(x.split()[1]) for x in text.splitlines() if x.startswith(f"{name}:")) * 1024


@pytest.mark.parametrize("make", ATTACKS, ids=lambda a: a.__name__)
def test_a_hostile_store_is_refused(good, tmp_path, make):
    bad = Path(shutil.copytree(good, tmp_path / "bad"))
    make(bad)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + ROOM, before[1]))
    try:
        for work in (read, verify):
            Path("/proc/self/clear_refs").write_text("5")  # peak memory counts from here
            held, begin = status("VmRSS"), time.process_time()
            try:
                said = work(bad)
            except SoftLabelsError:
                said = "refused"
            assert said == "refused", work
            assert time.process_time() - begin < SECONDS, work
            assert status("VmHWM") - held < MEGABYTES * 2**20, work
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# -- shapes ---------------------------------------------------------------------------------------


@attack
def shape_beyond_all(store: Path) -> None:
    """Allocates 2^62 numbers, or overflows their number."""
    _declare(store, "ids", shape=[2**62], chunk_grid=_grid(2**62))


@attack
def every_shape_beyond_all(store: Path) -> None:
    """Agrees with itself."""
    files = _files(store)
    for name in _names(files):
        if not name.startswith("input_digest"):
            files = _declared(files, name, shape=[2**40], chunk_grid=_grid(2**40))
    _put(store, files)


@attack
def digests_of_an_exabyte(store: Path) -> None:
    """Has three rows of 2^60 bytes."""
    _declare(store, "input_digest", shape=[3, 2**60], chunk_grid=_grid(3, 2**60))


@attack
def digests_of_no_bytes_for_2_to_the_62_rows(store: Path) -> None:
    """Has rows without end, and no chunk to read."""
    files = _declared(_files(store), "input_digest", shape=[2**62, 0], chunk_grid=_grid(2**62, 1))
    del files["input_digest/c/0/0"]
    _put(store, files)


@attack
def a_trillion_chunks(store: Path) -> None:
    """Is a loop over chunks, all of them missing."""
    _declare(store, "ids", shape=[2**40], chunk_grid=_grid(1))


@attack
def a_missing_chunk(store: Path) -> None:
    """Reads as zeros."""
    files = _files(store)
    del files["ids/c/0"]
    _put(store, files)


# -- pco ------------------------------------------------------------------------------------------


@attack
def a_tiny_chunk_of_16_million_zeros(store: Path) -> None:
    """Is some bytes of pco, and 64 MB."""
    _bomb(store, "ids")


@attack
def bombs_in_every_array(store: Path) -> None:
    """Agree with one another."""
    files = _files(store)
    _bomb(
        store,
        *(n for n in _names(files) if json.loads(files[f"{n}/zarr.json"])["data_type"] == "uint32"),
    )


@attack
def bombs_that_the_manifest_vouches_for(store: Path) -> None:
    """Rows of 2^31 tokens each, with counts that fit."""
    rows = np.full(3, 2**31 - 1, np.uint32)
    _bomb(store, tokens=rows)
    for record in ("manifest.json", "plan.json"):
        reseal(store / record, shards__0__positions=2**40, identity__corpus__seq_len=2**40)


@attack
def header_of_2_to_the_40_numbers(store: Path) -> None:
    """Hints, at its head, at a terabyte."""
    data = bytearray(_coded(np.arange(10, dtype=np.uint32)))
    assert data[:4] == b"pco!"
    data[5:12] = b"\xff" * 7  # the hint of how many numbers there are, and what follows
    _put(store, _with_chunk(_files(store), "ids", bytes(data)))


@attack
def every_byte_of_the_head_at_its_largest(store: Path) -> None:
    """One of them counts something."""
    data = bytearray(_coded(np.arange(10, dtype=np.uint32)))
    data[6:] = b"\xff" * (len(data) - 6)
    _put(store, _with_chunk(_files(store), "values", bytes(data)))


# -- codecs ---------------------------------------------------------------------------------------


@attack
def codec_of_somebody_else(store: Path) -> None:
    """Has a library import what the file names, and unpickle."""
    codec = {"name": "numcodecs.pickle", "configuration": {"id": "pickle", "protocol": 5}}
    _declare(store, "ids", codecs=[codec, {"name": "crc32c"}])


@attack
def codecs_within_codecs(store: Path) -> None:
    """Nests shards within shards."""
    codec: dict[str, Any] = {"name": "numcodecs.pcodec"}
    for _ in range(20):
        codec = {"name": "sharding_indexed", "configuration": {"codecs": [codec]}}
    _declare(store, "ids", codecs=[codec, {"name": "crc32c"}])


@attack
def compressed_once_more(store: Path) -> None:
    """Adds zstd behind pco."""
    codecs = [{"name": "numcodecs.pcodec"}, {"name": "zstd"}, {"name": "crc32c"}]
    _declare(store, "ids", codecs=codecs)


@attack
def a_zip_file_within(store: Path) -> None:
    """Is a whole shard in the place of a chunk."""
    files = _files(store)
    _put(store, _with_chunk(files, "ids", write_archive(files)))


@attack
def an_array_that_zarr_reads_otherwise(store: Path) -> None:
    """Calls signed what is not: zarr shows other numbers than a trainer learns from."""
    files = _files(store)
    wide = _coded(np.zeros(_length(files, "kept"), np.int64))
    _put(store, _with_chunk(_declared(files, "kept", data_type="int64"), "kept", wide))


@attack
def sixteen_thousand_arrays(store: Path) -> None:
    """Spends the reader's time on metadata, and leaves one out."""
    files = _files(store)
    about = files.pop("ids/zarr.json")
    del files["ids/c/0"]
    _put(store, files | {f"a{i}/zarr.json": about for i in range(16_000)})


# -- how they are made ----------------------------------------------------------------------------


def _files(store: Path) -> Files:
    with zipfile.ZipFile(shard_file(store, 0)) as file:
        return {name: file.read(name) for name in file.namelist()}


def _names(files: Files) -> list[str]:
    return [n.removesuffix("/zarr.json") for n in files if n.endswith("/zarr.json")]


def _length(files: Files, name: str) -> int:
    return int(json.loads(files[f"{name}/zarr.json"])["shape"][0])


def _put(store: Path, files: Files) -> None:
    data = write_archive(files)
    assert data != shard_file(store, 0).read_bytes()
    assert len(data) < 2**23
    shard_file(store, 0).write_bytes(data)
    reseal_shard(store)


def _grid(*shape: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(shape)}}


def _declared(files: Files, name: str, **changes: Any) -> Files:
    about = json.loads(files[f"{name}/zarr.json"]) | changes
    return files | {f"{name}/zarr.json": json.dumps(about).encode()}


def _declare(store: Path, name: str, **changes: Any) -> None:
    _put(store, _declared(_files(store), name, **changes))


def _with_chunk(files: Files, name: str, content: bytes) -> Files:
    checksum = google_crc32c.value(content).to_bytes(4, "little")
    return files | {f"{name}/c/0": content + checksum}


def _coded(values: np.ndarray) -> bytes:
    paging = PagingSpec.exact_page_sizes([len(values)])
    return bytes(standalone.simple_compress(values, ChunkConfig(paging_spec=paging)))


def _bomb(store: Path, *names: str, **arrays: np.ndarray) -> None:
    """Put arrays in place of others, of 16 million zeros where nothing else is said."""
    files = _files(store)
    zeros = np.zeros(2**24, np.uint32) if names else None
    coded = _coded(zeros) if zeros is not None else b""
    for name in names:
        files = _declared(files, name, shape=[2**24], chunk_grid=_grid(2**24))
        files = _with_chunk(files, name, coded)
    for name, values in arrays.items():
        shape = list(values.shape)
        files = _declared(files, name, shape=shape, chunk_grid=_grid(*shape))
        files = _with_chunk(files, name, _coded(values))
    _put(store, files)
