"""Hostile stores of the profile packed: refused within a second, in 200 MB, like those of `test_attacks`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softlabels.codecs import codebook
from softlabels.codecs.streams import Stream, join, pack, split, unpack
from softlabels.codecs.training import order_of
from softlabels.format.containers.parquet import read_facts, read_streams, write_streams
from softlabels.format.dictionaries import DICTIONARY
from tests.attacks.test_attacks import MEGABYTES, ROOT, SECONDS, TRY
from tests.fakes import build_tiny, write_corpus
from tests.store.made_up import reseal, write_sealed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux tells it"
    ),
]

ATTACKS: dict[str, Callable[[Path], None]] = {}


def attack(make: Callable[[Path], None]) -> Callable[[Path], None]:
    ATTACKS[make.__name__] = make
    return make


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    corpus = write_corpus(folder / "corpus", documents=2, repeat=1)
    build_tiny(folder / "store", corpus, limit_rows=6, shard_rows=3, profile="packed")
    return folder / "store"


def tried(good, bad):
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(good), str(bad)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_store_they_are_made_of_is_good(good, tmp_path):
    """Otherwise everything would be refused: as it is, coded again, and with a dictionary."""
    for change in (lambda _: {}, None):
        copy = Path(shutil.copytree(good, tmp_path / f"copy{change is None}"))
        if change is None:
            own = streams_of(copy)
            book = {n: own[n] for n in ("order_classes", "order")}
            none = pack(np.zeros(0, np.uint32))
            put_dictionary(copy, join(codebook.MAGIC, {}, book | dict.fromkeys(TABLES, none)))
        else:
            put_streams(copy, change)
        said = {work: result[0] for work, result in tried(good, copy).items()}
        assert said == {"read": "read", "verify": "verified", "repair": "repaired"}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_store_is_refused(good, tmp_path, name):
    bad = Path(shutil.copytree(good, tmp_path / "bad"))
    ATTACKS[name](bad)
    results = tried(good, bad)
    assert results["read"][0] == results["verify"][0] == "refused", results
    for work, (_, seconds, megabytes) in results.items():
        assert seconds < SECONDS, (work, results)
        assert megabytes < MEGABYTES, (work, results)


# -- how they are made ----------------------------------------------------------------------------

TABLES = ("tokens", "sizes", "entries")


def shard(store: Path) -> Path:
    return sorted((store / "data").iterdir())[0]


def streams_of(store: Path) -> dict[str, Stream]:
    return read_streams(shard(store).read_bytes(), where="")


def vouch(store: Path) -> None:
    """Manifest and commit record vouch for the first shard as it now is."""
    data = shard(store).read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    reseal(store / "manifest.json", shards__0__sha256=sha256, shards__0__bytes=len(data))
    reseal(store / "commits/00000.json", sha256=sha256, bytes=len(data))


def put_streams(
    store: Path, change: Callable[[dict[str, Stream]], Mapping[str, Stream]], **facts: str
) -> None:
    """Put other streams into the first shard."""
    data = shard(store).read_bytes()
    own = read_streams(data, where="")
    was = read_facts(data, where="")
    shard(store).write_bytes(write_streams({**own, **change(own)}, was | facts))
    vouch(store)


def put_dictionary(store: Path, data: bytes) -> None:
    """Give the store a dictionary, which the first shard asks for; all digests are right."""
    path = store / DICTIONARY
    path.parent.mkdir()
    path.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    record = {"sha256": sha256, "bytes": len(data)}
    plan, manifest = (json.loads((store / n).read_bytes()) for n in ("plan.json", "manifest.json"))
    for raw in (plan, manifest):
        raw["files"][DICTIONARY] = record
    write_sealed(store / "plan.json", plan)
    write_sealed(store / "manifest.json", manifest)
    digest = json.loads((store / "plan.json").read_bytes())["digest"]
    for commit in sorted((store / "commits").iterdir()):
        reseal(commit, plan_digest=digest)
    put_streams(store, lambda _: {}, **{"softlabels.dictionary": sha256})


def numbers(stream: Stream) -> np.ndarray:
    return unpack(stream, np.empty(stream.entries, np.uint32), where="")


def zeros(entries: int, value: int = 0) -> Stream:
    """A few hundred bytes that decode to many numbers."""
    return pack(np.full(entries, value, np.uint32))


def in_vocabulary(store: Path, **more: int) -> None:
    """Records that allow as much as a manifest can."""
    for record in ("manifest.json", "plan.json"):
        reseal(store / record, **{f"identity__{k}": v for k, v in more.items()})
    digest = json.loads((store / "plan.json").read_bytes())["digest"]
    for commit in sorted((store / "commits").iterdir()):
        reseal(commit, plan_digest=digest)


def altered(name: str, place: int, value: int) -> Callable[[dict[str, Stream]], dict[str, Stream]]:
    def change(own: dict[str, Stream]) -> dict[str, Stream]:
        values = numbers(own[name])
        values[place] = value
        return {name: pack(values)}

    return change


# -- streams --------------------------------------------------------------------------------------


def _declares(name: str, entries: int) -> None:
    def make(store: Path) -> None:
        put_streams(store, lambda own: {name: Stream(entries=entries, data=own[name].data)})

    ATTACKS[f"{name}_declares_{entries:.0e}"] = make


def _is_full_of_zeros(name: str) -> None:
    def make(store: Path) -> None:
        in_vocabulary(store, teacher__vocab_size=2**31)
        put_streams(store, lambda _: {name: zeros(2**26)})

    ATTACKS[f"{name}_is_full_of_zeros"] = make


for _name in (
    "input_digest", "tokens", "input_ids", "segments", "segment_lengths", "documents", "mask_turns",
    "order", "order_classes", "kept", "log_odds_T1", "values.0", "ids.3",
):  # fmt: skip
    _declares(_name, 2**40)
for _name in ("order", "mask_turns", "kept", "input_ids", "values.0"):
    _is_full_of_zeros(_name)


@attack
def rows_of_a_billion_tokens(store: Path) -> None:
    """Claims tokens without end, and a manifest that allows them."""
    in_vocabulary(store, corpus__seq_len=2**40)
    put_streams(store, lambda own: {"tokens": zeros(own["tokens"].entries, 2**32 - 1)})


@attack
def order_of_16_million_ids_twice(store: Path) -> None:
    """Is a few hundred bytes of steps of nothing."""
    in_vocabulary(store, teacher__vocab_size=2**31)
    put_streams(
        store,
        lambda _: {"order": zeros(2**24), "order_classes": pack(np.array([2**24], np.uint32))},
    )


@attack
def order_with_an_id_twice(store: Path) -> None:
    """Has two codes for one id."""

    def change(own: dict[str, Stream]) -> dict[str, Stream]:
        classes = numbers(own["order_classes"])
        steps = numbers(own["order"])
        first_of_last = int(classes.sum() - classes[-1])
        steps[first_of_last] = steps[0]
        return {"order": pack(steps)}

    put_streams(store, change)


@attack
def order_beyond_the_vocabulary(store: Path) -> None:
    """Looks up what is not there."""
    put_streams(store, altered("order", -1, 2**32 - 1))


@attack
def ids_that_wrap_around(store: Path) -> None:
    """Adds up to 2^32 and a little, which 32 bits take for an id."""
    put_streams(store, altered("ids.0", 3, 2**32 - 1))


@attack
def ids_of_later_places_that_wrap_around(store: Path) -> None:
    """The same, in a place where codes may be summed."""
    put_streams(store, altered("ids.4", 3, 2**32 - 1))


@attack
def input_ids_that_look_negative(store: Path) -> None:
    """Is minus one to those who read 32 bits with a sign."""
    put_streams(store, altered("input_ids", 3, 2**32 - 1))


@attack
def values_that_wrap_around(store: Path) -> None:
    """Makes a later place likelier than the first."""

    def change(own: dict[str, Stream]) -> dict[str, Stream]:
        first = np.full(own["values.0"].entries, 9, np.uint32)
        return {"values.0": pack(first)} | altered("values.1", 0, 2**32 - 5)(own)

    put_streams(store, change)


@attack
def odds_of_everything(store: Path) -> None:
    """Leaves nothing to the kept ids."""
    put_streams(store, altered("log_odds_T1", 0, 2**32 - 1))


@attack
def kept_beyond_k(store: Path) -> None:
    """Has four billion ids at one position."""
    put_streams(store, altered("kept", 0, 2**32 - 1))


@attack
def kept_that_the_manifest_allows(store: Path) -> None:
    """Asks for a rectangle of 2^20 ids at each position."""
    in_vocabulary(store, targets__k=2**20)
    put_streams(store, altered("kept", 0, 2**20))


@attack
def mask_that_turns_beyond_the_end(store: Path) -> None:
    """Turns at a token that is not there."""
    put_streams(store, lambda _: {"mask_turns": pack(np.array([2**32 - 1] * 3, np.uint32))})


@attack
def mask_that_turns_back(store: Path) -> None:
    """Adds up to 2^32, which 32 bits take for nothing."""
    put_streams(store, lambda _: {"mask_turns": pack(np.array([9, 2**32 - 8], np.uint32))})


@attack
def streams_of_noise(store: Path) -> None:
    """Makes pco stumble over its own headers."""
    rng = np.random.default_rng(0)

    def change(own: dict[str, Stream]) -> dict[str, Stream]:
        return {
            n: replace(s, data=s.data[:12] + rng.bytes(2**14))
            for n, s in own.items()
            if n != "input_digest"
        }

    put_streams(store, change)


# -- files ----------------------------------------------------------------------------------------


def table_of(streams: Mapping[str, Stream]) -> pa.Table:
    return pa.table(
        {
            "stream": list(streams),
            "entries": pa.array([s.entries for s in streams.values()], pa.int64()),
            "data": pa.array([s.data for s in streams.values()], pa.binary()),
        }
    )


@attack
def data_column_compressed_to_a_bomb(store: Path) -> None:
    """Is a few KB of zstd, and 256 MB of zeros."""
    own = streams_of(store)
    own["values.0"] = Stream(entries=own["values.0"].entries, data=bytes(2**28))
    pq.write_table(table_of(own), shard(store), compression="zstd", use_dictionary=False)
    assert shard(store).stat().st_size < 2**20
    vouch(store)


def _repeats(column: str, **how: object) -> Callable[[Path], None]:
    def make(store: Path) -> None:
        big = "x" * 2**20
        n = 500
        names = [big] * n if column == "stream" else [str(i) for i in range(n)]
        data = [big.encode()] * n if column == "data" else [b""] * n
        table = pa.table(
            {
                "stream": names,
                "entries": pa.array(range(n), pa.int64()),
                "data": pa.array(data, pa.binary()),
            }
        )
        pq.write_table(
            table, shard(store), compression="none", write_statistics=False,
            data_page_size=2**30, dictionary_pagesize_limit=2**22, **how,
        )  # fmt: skip
        assert shard(store).stat().st_size < 2**21
        vouch(store)

    return make


for _column in ("stream", "data"):
    ATTACKS[f"{_column}_by_a_dictionary_of_one"] = _repeats(_column, use_dictionary=True)
    ATTACKS[f"{_column}_by_differences_of_nothing"] = _repeats(
        _column, use_dictionary=False, column_encoding={_column: "DELTA_BYTE_ARRAY"}
    )


def _entries_are(kind: pa.DataType) -> None:
    def make(store: Path) -> None:
        """Has half a megabyte in a dictionary, and refers to it a thousand times."""
        n, wide = 1000, 2**19
        names = [str(i) for i in range(n)]
        entries = pa.array([bytes(wide)] * n, kind)
        table = pa.table({"stream": names, "entries": entries, "data": [b""] * n})
        pq.write_table(
            table, shard(store), compression="none", write_statistics=False, store_schema=False,
            use_dictionary=["entries"], data_page_size=2**30, dictionary_pagesize_limit=2**22,
        )  # fmt: skip
        assert shard(store).stat().st_size < 2**20
        vouch(store)

    ATTACKS[f"entries_are_{kind}"] = make


_entries_are(pa.binary())
_entries_are(pa.binary(2**19))


@attack
def footer_of_noise(store: Path) -> None:
    """Is a Parquet file by its ends only."""
    noise = np.random.default_rng(0).bytes(2**16)
    shard(store).write_bytes(b"PAR1" + noise + (2**16 - 8).to_bytes(4, "little") + b"PAR1")
    vouch(store)


@attack
def footer_of_many_row_groups(store: Path) -> None:
    """Spends the reader's time on a footer of a thousand row groups."""
    table = pq.read_table(shard(store))
    with pq.ParquetWriter(shard(store), table.schema) as writer:
        for _ in range(500):
            writer.write_table(table.slice(0, 0))
            writer.write_table(table.slice(0, 1))
    vouch(store)


@attack
def footer_of_100_megabytes(store: Path) -> None:
    """Says of itself what nobody asked for."""
    own = streams_of(store)
    facts = {f"softlabels.{i}": "x" * 2**20 for i in range(100)}
    shard(store).write_bytes(write_streams(own, facts))
    vouch(store)


@attack
def shard_of_a_terabyte(store: Path) -> None:
    """Is a sparse file, of exactly the size that the manifest says."""
    with shard(store).open("r+b") as f:
        f.truncate(2**40)
    reseal(store / "manifest.json", shards__0__bytes=2**40)
    reseal(store / "commits/00000.json", bytes=2**40)


# -- dictionaries ---------------------------------------------------------------------------------


def dictionary(**streams: Stream) -> bytes:
    book = order_of(np.arange(300, dtype=np.int32), np.ones(300, np.int64))
    _, own = split(codebook.MAGIC, book.to_bytes(), where="")
    return join(codebook.MAGIC, {}, own | streams)


@attack
def dictionary_of_33_megabytes(store: Path) -> None:
    """Is larger than one may be."""
    put_dictionary(store, dictionary() + bytes(33 * 2**20))


@attack
def dictionary_of_a_terabyte(store: Path) -> None:
    """Is a sparse file."""
    put_dictionary(store, dictionary())
    with (store / DICTIONARY).open("r+b") as f:
        f.truncate(2**40)
    for record in ("plan.json", "manifest.json"):
        raw = json.loads((store / record).read_bytes())
        raw["files"][DICTIONARY]["bytes"] = 2**40
        write_sealed(store / record, raw)
    in_vocabulary(store)


@attack
def dictionary_is_a_pipe(store: Path) -> None:
    """Waits for ever for a writer."""
    put_dictionary(store, dictionary())
    (store / DICTIONARY).unlink()
    os.mkfifo(store / DICTIONARY)


@attack
def dictionary_is_an_endless_device(store: Path) -> None:
    """Has size 0 and never ends."""
    put_dictionary(store, dictionary())
    (store / DICTIONARY).unlink()
    (store / DICTIONARY).symlink_to("/dev/zero")


@attack
def dictionary_of_16_million_times_nothing(store: Path) -> None:
    """Has tables of one id, over and over."""
    n = 2**10
    tables = {
        "tokens": zeros(n, 1),
        "sizes": zeros(n, 2**14),
        "entries": zeros(2**24),
    }
    in_vocabulary(store, teacher__vocab_size=2**31)
    put_dictionary(store, dictionary(**tables))


@attack
def dictionary_whose_order_is_zeros(store: Path) -> None:
    """Orders one id 16 million times."""
    in_vocabulary(store, teacher__vocab_size=2**31)
    order = {"order": zeros(2**24), "order_classes": pack(np.array([2**24], np.uint32))}
    put_dictionary(store, dictionary(**order))


@attack
def dictionary_of_16_million_ids_in_300_bytes(store: Path) -> None:
    """Has every id once, and a table of one for each: nothing in it is wrong but its size."""
    in_vocabulary(store, teacher__vocab_size=2**31)
    tables = {
        "order": zeros(2**24, 1),
        "order_classes": pack(np.array([2**24], np.uint32)),
        "tokens": zeros(2**24, 1),
        "sizes": zeros(2**24, 1),
        "entries": zeros(2**24),
    }
    put_dictionary(store, dictionary(**tables))


@attack
def dictionary_that_declares_2_to_the_40(store: Path) -> None:
    """Has an index that lies."""
    put_dictionary(store, dictionary(entries=Stream(entries=2**40, data=zeros(9).data)))


@attack
def dictionary_with_an_endless_index(store: Path) -> None:
    """Nests without end in its one line of JSON."""
    put_dictionary(store, codebook.MAGIC + b"\n" + b"[" * 10**6 + b"\n")


@attack
def dictionary_of_two_million_empty_streams(store: Path) -> None:
    """Makes objects of a megabyte of index."""
    index = ",".join(f'["{i}",0,0]' for i in range(60_000))
    put_dictionary(store, codebook.MAGIC + b'\n{"streams":[' + index.encode() + b"]}\n")


@attack
def dictionary_that_is_not_there(store: Path) -> None:
    """Asks for a file that no record names."""
    put_streams(store, lambda _: {}, **{"softlabels.dictionary": "../../outside/secret"})
