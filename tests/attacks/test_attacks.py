"""Hostile stores. Each must be refused in our own words, within a second, in 200 MB, and harm nothing.

An attack is a function that turns a copy of a good store into what an enemy would hand out; all digests
that he can compute are right. Reading, verifying and repairing are then tried in a process of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fakes import build_tiny, write_corpus
from tests.store.made_up import reseal, write_sealed

ROOT = Path(__file__).parents[2]
SECONDS = 1.0
MEGABYTES = 200

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux tells it"
    ),
]

TRY = """
import json, resource, sys, time
from pathlib import Path
import softlabels
from softlabels.errors import SoftLabelsError
from softlabels.making.repair import repair_store
from softlabels.store.verify import verify_store

def status(name):
    text = Path("/proc/self/status").read_text()
    return next(int(x.split()[1]) for x in text.splitlines() if x.startswith(name + ":")) / 1024

def read(store):
    opened = softlabels.open_store(store)
    for i in range(len(opened.manifest.shards)):
        opened.shard(i)
    for name in opened.manifest.files:
        opened.file(name)
    return "read"

def verify(store):
    problems = verify_store(store).problems
    return "refused" if problems else "verified"

def repair(store):
    repair_store(store)
    return "repaired"

good, bad = Path(sys.argv[1]), Path(sys.argv[2])
for work in (read, verify, repair):
    work(good)  # loads and warms up whatever there is
limit = (status("VmSize") + 8192) * 2**20  # so that an attack that works harms the test only
resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
results = {}
for work in (read, verify, repair):
    Path("/proc/self/clear_refs").write_text("5")  # peak memory counts from here
    before, begin = status("VmRSS"), time.process_time()
    try:
        said = work(bad)
    except SoftLabelsError as e:
        said = "refused"
        assert "Traceback" not in str(e)
    results[work.__name__] = said, time.process_time() - begin, status("VmHWM") - before
print(json.dumps(results))
"""

ATTACKS: list[Callable[[Path], None]] = []


def attack(make: Callable[[Path], None]) -> Callable[[Path], None]:
    ATTACKS.append(make)
    return make


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    corpus = write_corpus(folder / "corpus", documents=2, repeat=1)
    build_tiny(folder / "store", corpus, limit_rows=6, shard_rows=3)
    return folder / "store"


@pytest.mark.parametrize("make", ATTACKS, ids=lambda a: a.__name__)
def test_a_hostile_store_is_refused(good, tmp_path, make):
    check_refused(good, tmp_path, make)


def check_refused(good: Path, tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Make a hostile copy of a good store and try it."""
    bad = Path(shutil.copytree(good, tmp_path / "bad"))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"not for you")
    make(bad)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(good), str(bad)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    assert results["read"][0] == results["verify"][0] == "refused", results
    for work, (_, seconds, megabytes) in results.items():
        assert seconds < SECONDS, (work, results)
        assert megabytes < MEGABYTES, (work, results)
    assert (outside / "secret").read_bytes() == b"not for you"


def test_the_store_they_are_made_of_is_good(good, tmp_path):
    """Otherwise everything would be refused."""
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(good), str(shutil.copytree(good, tmp_path / "copy"))],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    said = {work: result[0] for work, result in json.loads(done.stdout).items()}
    assert said == {"read": "read", "verify": "verified", "repair": "repaired"}


# -- names and links ------------------------------------------------------------------------------


@attack
def shard_name_climbs_out(store: Path) -> None:
    """Reads a file beside the store by `..` in a shard's name."""
    for record in ("manifest.json", "plan.json"):
        reseal(store / record, shards__0__name="data/../../outside/secret")


@attack
def shard_name_is_absolute(store: Path) -> None:
    """Reads any file of the machine by an absolute name."""
    for record in ("manifest.json", "plan.json"):
        reseal(store / record, shards__0__name=str(store.parent / "outside" / "secret"))


@attack
def file_name_climbs_out(store: Path) -> None:
    """Reads a file beside the store by the name of a tokenizer file."""
    raw = json.loads((store / "manifest.json").read_bytes())
    raw["files"]["../outside/secret"] = raw["files"].pop("tokenizer/tokenizer.json")
    write_sealed(store / "manifest.json", raw)


@attack
def shard_is_a_link_to_a_file_outside(store: Path) -> None:
    """Passes a private file off as a shard: its bytes would have to be known beforehand."""
    shard = shard_file(store, 0)
    shard.unlink()
    shard.symlink_to(store.parent / "outside" / "secret")


@attack
def data_is_a_link_out_and_the_plan_names_a_victim(store: Path) -> None:
    """Has repair remove a file outside the store as a damaged shard."""
    shutil.rmtree(store / "data")
    (store / "data").symlink_to(store.parent / "outside")
    reseal(store / "manifest.json", shards__0__name="data/secret")
    reseal(store / "plan.json", shards__0__name="data/secret")


@attack
def shard_is_a_link_to_itself(store: Path) -> None:
    """Follows links for ever."""
    shard = shard_file(store, 0)
    shard.unlink()
    shard.symlink_to(shard)


@attack
def manifest_is_a_pipe(store: Path) -> None:
    """Waits for ever for a writer."""
    (store / "manifest.json").unlink()
    os.mkfifo(store / "manifest.json")


@attack
def manifest_is_an_endless_device(store: Path) -> None:
    """Has size 0 and never ends."""
    (store / "manifest.json").unlink()
    (store / "manifest.json").symlink_to("/dev/zero")


@attack
def tokenizer_is_an_endless_device(store: Path) -> None:
    """Is recorded with 0 bytes, as the device says, and never ends."""
    file = store / "tokenizer" / "tokenizer.json"
    file.unlink()
    file.symlink_to("/dev/zero")
    raw = json.loads((store / "manifest.json").read_bytes())
    raw["files"]["tokenizer/tokenizer.json"] = {
        "sha256": hashlib.sha256(b"").hexdigest(),
        "bytes": 0,
    }
    write_sealed(store / "manifest.json", raw)


# -- records --------------------------------------------------------------------------------------


@attack
def manifest_of_300_megabytes(store: Path) -> None:
    """Is read into memory before anyone looks at it."""
    with (store / "manifest.json").open("wb") as f:
        f.truncate(300 * 2**20)


@attack
def manifest_with_a_million_shards(store: Path) -> None:
    """Names a million shards, all digests right."""
    path = store / "manifest.json"
    entry = b'    {\n      "bytes": 1,\n      "name": "data/%07d",\n      "positions": 1\n    }'
    path.write_bytes(b'{\n  "shards": [\n' + b",\n".join(entry % i for i in range(10**6)) + b"]\n}")


@attack
def manifest_of_empty_lists(store: Path) -> None:
    """Spends three bytes on each object of seventy."""
    (store / "manifest.json").write_bytes(_record(b"[" + b"[]," * (5 * 10**6) + b"0]"))


@attack
def manifest_of_numbers(store: Path) -> None:
    """Spends two bytes on each entry of a list."""
    (store / "manifest.json").write_bytes(_record(b"[" + b"7," * (7 * 10**6) + b"0]"))


@attack
def manifest_of_deep_lines(store: Path) -> None:
    """Nests a million entries 900 deep: indented, each would take two kilobytes."""
    deep = b"[" * 900 + b"0," * 10**6 + b"0" + b"]" * 900
    (store / "manifest.json").write_bytes(_record(deep))


@attack
def manifest_nested_a_million_deep(store: Path) -> None:
    """Overflows the stack of a recursive parser."""
    (store / "manifest.json").write_bytes(_record(b"[" * 10**6 + b"]" * 10**6))


@attack
def manifest_with_a_key_twice(store: Path) -> None:
    """Shows one reader the first value, another the last."""
    data = (store / "manifest.json").read_bytes()
    (store / "manifest.json").write_bytes(data.replace(b"{\n", b'{\n  "cost": {},\n', 1))


@attack
def manifest_with_nan(store: Path) -> None:
    """Poisons a sum with a number that is none."""
    _replace_seconds(store, b"NaN")


@attack
def manifest_with_a_float_beyond_all(store: Path) -> None:
    """Becomes infinite when read."""
    _replace_seconds(store, b"1e999")


@attack
def manifest_with_a_number_of_a_million_digits(store: Path) -> None:
    """Takes quadratic time to read."""
    _replace_seconds(store, b"9" * 10**6)


@attack
def negative_positions(store: Path) -> None:
    """Moves an index before the beginning of an array."""
    reseal(store / "manifest.json", shards__0__positions=-1)


@attack
def negative_size(store: Path) -> None:
    """Reads until the end of the file, whatever that is."""
    reseal(store / "manifest.json", shards__0__bytes=-1)


@attack
def rows_without_end(store: Path) -> None:
    """Has a loop or an array of 2^53 rows."""
    raw = json.loads((store / "manifest.json").read_bytes())
    raw["shards"][1]["rows"] = 2**53 - 3
    raw["identity"]["corpus"]["rows"] = 2**53
    write_sealed(store / "manifest.json", raw)


@attack
def no_temperatures(store: Path) -> None:
    """Leaves no log-odds column to take a length from."""
    reseal(store / "manifest.json", identity__targets__temperatures=[], statistics__kept_mass=[])


@attack
def as_many_temperatures_as_fit(store: Path) -> None:
    """Names 200,000 columns that the file does not have."""
    grid = [1 + i / 2**20 for i in range(200_000)]
    reseal(
        store / "manifest.json",
        identity__targets__temperatures=grid,
        statistics__kept_mass=[0.5] * len(grid),
    )


# -- shards ---------------------------------------------------------------------------------------


@attack
def shard_of_a_terabyte(store: Path) -> None:
    """Is a sparse file, of exactly the size that the manifest says."""
    with shard_file(store, 0).open("r+b") as f:
        f.truncate(2**40)
    reseal(store / "manifest.json", shards__0__bytes=2**40)
    reseal(store / "commits/00000.json", bytes=2**40)


@attack
def list_of_zeros(store: Path) -> None:
    """Is a few KB of a dictionary's runs, and 32 million ids."""
    _bomb(store, ["ids"], 2**25)


@attack
def mask_of_zeros(store: Path) -> None:
    """Claims a row of 64 million tokens."""
    _bomb(store, ["label_mask"], 2**26)


@attack
def zeros_that_the_manifest_vouches_for(store: Path) -> None:
    """Declares 3 GB with counts that fit: only a limit for all shards helps."""
    columns = ["input_ids", "segment_lengths", "documents", "kept", "ids"]
    _bomb(store, columns, 2**21, header=2**27 - 1, footer=2**27 - 1)
    for record in ("manifest.json", "plan.json"):
        reseal(
            store / record,
            shards__0__positions=2**40,
            identity__targets__k=2**20,
            identity__corpus__seq_len=2**40,
        )


@attack
def footer_that_hides_what_the_pages_hold(store: Path) -> None:
    """Declares ten ids in the footer and 32 million in the page."""
    _bomb(store, ["ids"], 2**25, footer=10)


def _wide(n: int, kind: pa.DataType) -> pa.Array:
    """One long value of zeros, n times."""
    if not pa.types.is_binary(kind):
        return pa.array([bytes(kind.byte_width)] * n, kind)
    return pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), [bytes(WIDE)])


def _widen(store: Path, name: str, kind: pa.DataType) -> None:
    table = pq.read_table(shard_file(store, 0))
    column = table[name].combine_chunks()
    if pa.types.is_list(column.type):
        wide = _wide(len(column.flatten()), kind)
        column = pa.ListArray.from_arrays(column.offsets, wide)
    else:
        column = _wide(len(column), kind)
    place = table.schema.get_field_index(name)
    _write_narrow(store, table.set_column(place, name, column))


def _is_wide(name: str, kind: pa.DataType) -> None:
    def make(store: Path) -> None:
        """Refers throughout to the one value of its dictionary, which is 64 MB, and a few KB in the file."""
        _widen(store, name, kind)

    make.__name__ = f"{name}_is_{kind}"
    ATTACKS.append(make)


WIDE = 2**26
for _name in ("row", "ids", "label_mask", "logp", "kept", "input_digest"):
    _is_wide(_name, pa.binary())
_is_wide("ids", pa.binary(2**19))
_is_wide("input_digest", pa.binary(2**25))


@attack
def column_that_is_wide_and_says_it_is_narrow(store: Path) -> None:
    """Says INT32 in its row group, and bytes in the schema, by which it is decoded."""
    _widen(store, "ids", pa.binary())
    data = shard_file(store, 0).read_bytes()
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    chunk = data.index(b"\x15\x0c\x19", begin)  # type 6, then the list of encodings
    shard_file(store, 0).write_bytes(data[:chunk] + b"\x15\x02\x19" + data[chunk + 3 :])
    reseal_shard(store)


@attack
def schema_nested_a_hundred_thousand_deep(store: Path) -> None:
    """Overflows the stack of who recurses."""
    group = b"\x48\x01r\x15\x02\x00"
    schema = b"\x29\xfc\xa1\x8d\x06" + group * 100_000 + b"\x15\x04\x38\x01a\x00"
    footer = schema + b"\x16\x00\x19\x0c\x00"
    shard_file(store, 0).write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    reseal_shard(store)


@attack
def footer_of_many_row_groups(store: Path) -> None:
    """Spends the reader's time on a footer of a thousand row groups."""
    shard = shard_file(store, 0)
    table = pq.read_table(shard)
    with pq.ParquetWriter(shard, table.schema) as writer:
        for _ in range(500):
            writer.write_table(table.slice(0, 0))
            writer.write_table(table.slice(0, 1))
    reseal_shard(store)


@attack
def footer_of_noise(store: Path) -> None:
    """Is a Parquet file by its ends only."""
    noise = np.random.default_rng(0).bytes(2**16)
    shard_file(store, 0).write_bytes(b"PAR1" + noise + (2**16 - 8).to_bytes(4, "little") + b"PAR1")
    reseal_shard(store)


# -- how they are made ----------------------------------------------------------------------------


def shard_file(store: Path, index: int) -> Path:
    return sorted((store / "data").iterdir())[index]


def _record(value: bytes) -> bytes:
    return b'{"digest":"","format":"softlabels","version":"1.0","x":' + value + b"}"


def _replace_seconds(store: Path, number: bytes) -> None:
    """Spell a number as JSON libraries would not; the digest is made right."""
    reseal(store / "manifest.json", cost__seconds=12345.5)
    data = (store / "manifest.json").read_bytes().replace(b"12345.5", number)
    lines = data.splitlines(keepends=True)
    digest = hashlib.sha256(b"".join(x for x in lines if not x.startswith(b'  "digest":')))
    old = next(x for x in lines if x.startswith(b'  "digest":'))
    new = b'  "digest": "' + digest.hexdigest().encode() + b'",\n'
    (store / "manifest.json").write_bytes(data.replace(old, new))


def reseal_shard(store: Path) -> None:
    """Manifest and commit record vouch for the first shard as it now is."""
    data = shard_file(store, 0).read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    reseal(store / "manifest.json", shards__0__sha256=sha256, shards__0__bytes=len(data))
    reseal(store / "commits/00000.json", sha256=sha256, bytes=len(data))


def _write_narrow(store: Path, table: pa.Table) -> None:
    """Write a table whose values are few and long into the first shard, each once."""
    pq.write_table(
        table, shard_file(store, 0), compression="zstd", write_statistics=False, store_schema=False,
        data_page_size=2**30, dictionary_pagesize_limit=2**28,
    )  # fmt: skip
    assert shard_file(store, 0).stat().st_size < 2**20
    reseal_shard(store)


def _bomb(
    store: Path,
    names: list[str],
    entries: int,
    *,
    header: int | None = None,
    footer: int | None = None,
) -> None:
    """Put zeros in place of columns of the first shard, in as few bytes as Parquet can.

    `header` and `footer` are then written over the number of entries in the pages' headers and the footer.
    """
    shard = shard_file(store, 0)
    table = pq.read_table(shard)
    rows = len(table)
    for name in names:
        place = table.schema.get_field_index(name)
        kind = table.schema.types[place].value_type
        zeros = pa.py_buffer(bytes(entries * kind.bit_width // 8))
        values = pa.Array.from_buffers(kind, entries, [None, zeros])
        offsets = pa.array([0, *range(entries - rows + 1, entries + 1)], pa.int32())
        table = table.set_column(place, name, pa.ListArray.from_arrays(offsets, values))
    pq.write_table(table, shard, compression="zstd", data_page_size=2**30)
    assert shard.stat().st_size < 2**20
    data = shard.read_bytes()
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    was = _varint(entries)
    assert was in data[:begin]
    assert was in data[begin:]
    pages = data[:begin] if header is None else data[:begin].replace(was, _varint(header))
    rest = data[begin:] if footer is None else data[begin:].replace(was, _varint(footer))
    shard.write_bytes(pages + rest)
    assert shard.stat().st_size == len(data)
    reseal_shard(store)


def _varint(n: int) -> bytes:
    """Thrift's spelling of a number, in four bytes whether it needs them or not."""
    assert n < 2**27
    return bytes([2 * n & 127 | 128, n >> 6 & 127 | 128, n >> 13 & 127 | 128, n >> 20])
