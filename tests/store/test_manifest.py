"""Records: one spelling, every altered byte found, every odd file refused in our own words."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabels.core.records import (
    FORMAT_VERSION,
    RECORD_LIMIT,
    canonical,
    check_file,
    read_record,
    seal,
)
from softlabels.errors import FormatError, IntegrityError, PlanError, SoftLabelsError
from softlabels.format.manifest import Commit, Manifest, Plan, content_digest, load_manifest
from softlabels.making.plan import load_plan
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.fakes import build_tiny
from tests.store.made_up import reseal, write_sealed
from tests.store.spelling import spelled

FIXTURES = Path(__file__).parents[1] / "fixtures"

RECORDS = {
    "manifest.json": Manifest,
    "plan.json": Plan,
    "commits/00000.json": Commit,
    "commits/00002.json": Commit,
}
records = pytest.mark.parametrize("name", list(RECORDS))


def load(store, name):
    if name == "manifest.json":
        return load_manifest(store)
    return load_plan(store) if name == "plan.json" else read_record(store / name, Commit)


# -- spelling -------------------------------------------------------------------------------------


def test_canonical_is_sorted_indented_and_ends_with_a_newline():
    assert (
        canonical({"b": [1, {"z": None, "a": "é"}], "a": 0.5})
        == (
            '{\n  "a": 0.5,\n  "b": [\n    1,\n    {\n      "a": "é",\n      "z": null\n    }\n  ]\n}\n'
        ).encode()
    )


def test_canonical_json_is_what_the_page_says():
    """Of the grammar in docs/format.md, section 2, a second implementation: `tests/store/spelling.py`."""
    edges = [0.0, -0.0, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 2.98e-8, 1 / 3]
    edges += [
        s * float(f"{d}e{e}")
        for s in (1, -1)
        for d in ("1", "1.5", "9.999")
        for e in range(-25, 25)
    ]
    for number in edges:
        assert spelled(number) == canonical(number).decode().strip(), number
    assert spelled(2.98e-8) == "2.98e-8"
    for code in range(0x3000):
        assert spelled(chr(code)) == canonical(chr(code)).decode().strip(), code


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_two_implementations_spell_alike(value):
    assert spelled(value) + "\n" == canonical(value).decode()


@pytest.mark.parametrize("store", sorted(FIXTURES.glob("*-v1.?")), ids=lambda p: p.name)
def test_digests_of_stores_of_all_versions_follow_from_the_page(store):
    for path in (store / "manifest.json", store / "plan.json", *store.glob("commits/*.json")):
        raw = json.loads(path.read_bytes())
        assert spelled(raw) + "\n" == path.read_text(encoding="utf-8")
        claimed = raw.pop("digest")
        assert hashlib.sha256(f"{spelled(raw)}\n".encode()).hexdigest() == claimed
        if path.name == "manifest.json":
            shards = raw["shards"]
            content = {
                "identity": raw["identity"],
                "shards": {"pages": [[p["shards"], content_of(store, p)] for p in shards["pages"]]}
                if isinstance(shards, dict)
                else [[s["name"], s["sha256"]] for s in shards],
            }
            digest = hashlib.sha256(f"{spelled(content)}\n".encode()).hexdigest()
            assert digest == raw["content_digest"]


def content_of(store: Path, page: dict) -> str:
    """As section 16 of the page says, by a Parquet reader alone."""
    table = pq.read_table(store / page["name"])
    lines = [
        f"{name} {sha256.hex()}\n"
        for name, sha256 in zip(table["name"].to_pylist(), table["sha256"].to_pylist(), strict=True)
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@records
def test_what_is_written_is_what_is_read(built, name):
    data = (built / name).read_bytes()
    record = read_record(built / name, RECORDS[name])
    assert canonical(record) == data
    assert seal(record) == record
    assert canonical(msgspec.json.decode(data, type=RECORDS[name])) == data
    assert json.loads(data)["version"] == FORMAT_VERSION == "1.6"


@records
def test_sealing_replaces_whatever_digest_was_there(built, name):
    record = read_record(built / name, RECORDS[name])
    assert seal(msgspec.structs.replace(record, digest="f" * 64)) == record


def test_content_digest_is_of_identity_and_shards_only(built, store):
    """Two builds of one job agree in it however long each took."""
    reseal(store / "manifest.json", cost__seconds=1e6, created_by="someone else")
    changed = load_manifest(store)
    assert changed.digest != load_manifest(built).digest
    assert changed.content_digest == load_manifest(built).content_digest
    assert open_store(store).digest == open_store(built).digest
    other = msgspec.structs.replace(changed.identity, licence="CC0-1.0")
    assert content_digest(other, changed.shards) != changed.content_digest
    assert content_digest(changed.identity, changed.shards[::-1]) != changed.content_digest


def test_sums(built):
    manifest = load_manifest(built)
    assert manifest.rows == 8 == sum(s.rows for s in manifest.shards)
    assert manifest.data_bytes == sum((built / s.name).stat().st_size for s in manifest.shards)


# -- altered bytes --------------------------------------------------------------------------------


@records
def test_every_single_flipped_bit_is_found(store, name):
    """Every byte of the file, one random bit of it: white space and digits alike."""
    path = store / name
    whole = path.read_bytes()
    rng = random.Random(name)
    with path.open("r+b", buffering=0) as f:
        for place, byte in enumerate(whole):
            f.seek(place)
            f.write(bytes([byte ^ 1 << rng.randrange(8)]))
            with pytest.raises((IntegrityError, FormatError)) as e:
                load(store, name)
            assert str(path) in str(e.value), place
            f.seek(place)
            f.write(bytes([byte]))
    load(store, name)


@records
def test_every_torn_end_is_found(store, name):
    path = store / name
    whole = path.read_bytes()
    for size in [len(whole) - 1, *range(len(whole) // 7 * 7, -1, -7)]:
        os.truncate(path, size)
        with pytest.raises((IntegrityError, FormatError)):
            load(store, name)


@records
@pytest.mark.parametrize("more", [b"\n", b" ", b"\0", b"{}"])
def test_added_bytes_are_found(store, name, more):
    path = store / name
    whole = path.read_bytes()
    for altered in (whole + more, more + whole):
        path.write_bytes(altered)
        with pytest.raises((IntegrityError, FormatError)):
            load(store, name)


@records
def test_the_same_json_in_another_spelling_is_found(store, name):
    path = store / name
    raw = json.loads(path.read_bytes())
    for text in (
        json.dumps(raw),
        json.dumps(raw, indent=2),
        json.dumps(raw, indent=4, sort_keys=True) + "\n",
        (json.dumps(raw, indent=2, sort_keys=True) + "\n").replace("\n", "\r\n"),
    ):
        path.write_bytes(text.encode())
        with pytest.raises(IntegrityError, match="the file was altered"):
            load(store, name)


def test_an_altered_record_says_what_to_do(store):
    path = store / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"fake:tiny"', b'"fake:tina"'))
    with pytest.raises(IntegrityError, match=r"copy it again .* or build the store again"):
        open_store(store)


# -- versions -------------------------------------------------------------------------------------


def test_a_newer_minor_version_with_unknown_keys_is_read(built, store):
    for name in RECORDS:
        reseal(store / name, version="1.7", note={"of": ["a", "later", "version"]})
    reseal(
        store / "manifest.json",
        identity__teacher__colour="blue",
        shards__0__bloom=[1, 2],
        statistics__entropy=[0.5],
    )
    reader = open_store(store)
    assert reader.manifest.version == "1.7"
    assert len(list(reader)) == len(open_store(built))
    plan = load_plan(store)
    assert plan is not None
    assert plan.version == "1.7"
    assert read_record(store / "commits/00000.json", Commit).version == "1.7"


@records
@pytest.mark.parametrize(
    ("version", "way_out"), [("2.0", "upgrade softlabels"), ("0.9", "convert the store")]
)
def test_another_major_version_is_refused_with_a_sentence(store, name, version, way_out):
    reseal(store / name, version=version, something="new")
    with pytest.raises(FormatError) as e:
        load(store, name)
    said = f"{store / name}: format version {version}, this softlabels reads 1.x; {way_out}"
    assert str(e.value) == said


@pytest.mark.parametrize(
    "version",
    ["1", "1.0.0", "one", "", "1.x", "-1.0", "1.-1", "1.0\n", " 1.0", 1.0, 1, None, ["1.0"]],
)
def test_a_version_that_is_none_is_refused(store, version):
    reseal(store / "manifest.json", version=version)
    with pytest.raises(FormatError, match=r"is not MAJOR\.MINOR"):
        load_manifest(store)


def test_a_missing_version_or_format_is_refused(store):
    path = store / "manifest.json"
    raw = json.loads(path.read_bytes())
    write_sealed(path, {k: v for k, v in raw.items() if k != "version"})
    with pytest.raises(FormatError, match="format version None"):
        load_manifest(store)
    for other in ({k: v for k, v in raw.items() if k != "format"}, raw | {"format": "zarr"}):
        write_sealed(path, other)
        with pytest.raises(FormatError, match="not a softlabels record"):
            load_manifest(store)


def test_a_record_of_another_kind_is_refused(store):
    (store / "manifest.json").write_bytes((store / "plan.json").read_bytes())
    with pytest.raises(FormatError, match="not a valid manifest"):
        load_manifest(store)


# -- hostile files --------------------------------------------------------------------------------


def nested(depth, opening=b"[", closing=b"]", middle=b""):
    return (
        b'{"format":"softlabels","version":"1.0","x":'
        + opening * depth
        + middle
        + closing * depth
        + b"}"
    )


HOSTILE = {
    "empty": b"",
    "not json": b"PAR1",
    "not text": bytes(range(128, 256)),
    "byte order mark": b"\xef\xbb\xbf{}",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "a string": b'"softlabels"',
    "duplicate keys": b'{"format":"softlabels","version":"1.0","version":"1.0"}',
    "100k open brackets": b"[" * 100_000,
    "100k open braces": b'{"a":' * 100_000,
    "100k nested lists": nested(100_000),
    "100k nested objects": nested(100_000, b'{"a":', b"}", b"1"),
    "100k digits": b'{"format":"softlabels","version":"1.0","x":' + b"9" * 100_000 + b"}",
    "beyond float": b'{"format":"softlabels","version":"1.0","x":1e999}',
    "NaN": b'{"format":"softlabels","version":"1.0","x":NaN}',
    "Infinity": b'{"format":"softlabels","version":"1.0","x":-Infinity}',
    "half a surrogate": b'{"format":"softlabels","version":"1.0","x":"\\ud800"}',
    "format is a list": b'{"format":["softlabels"],"version":"1.0"}',
    "digest is an object": b'{"digest":{},"format":"softlabels","version":"1.0"}',
}


@pytest.mark.parametrize("what", list(HOSTILE))
def test_hostile_files_are_refused_quickly_and_in_our_words(tmp_path, what):
    (tmp_path / "manifest.json").write_bytes(HOSTILE[what])
    begin = time.perf_counter()
    with pytest.raises((FormatError, IntegrityError), match=r"manifest\.json"):
        open_store(tmp_path)
    assert time.perf_counter() - begin < 5  # in truth a few milliseconds


@pytest.mark.parametrize(
    ("opening", "closing", "middle"), [(b"[", b"]", b""), (b'{"a":', b"}", b"1")]
)
def test_nesting_around_the_recursion_limit(tmp_path, opening, closing, middle):
    """Decoding may just succeed where encoding again does not."""
    for depth in [10, 100, *range(850, 1010)]:
        (tmp_path / "manifest.json").write_bytes(nested(depth, opening, closing, middle))
        with pytest.raises(IntegrityError):
            load_manifest(tmp_path)


def test_a_huge_file_is_refused_unread(tmp_path):
    with (tmp_path / "manifest.json").open("wb") as f:
        f.truncate(RECORD_LIMIT + 1)  # sparse: takes no space
    with pytest.raises(FormatError, match="refused unread"):
        load_manifest(tmp_path)


def test_duplicate_keys_in_an_otherwise_whole_manifest(store):
    path = store / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"{\n", b'{\n  "cost": 0,\n', 1))
    with pytest.raises(IntegrityError, match="altered"):
        load_manifest(store)


NAMES = [
    "../x",
    "/etc/passwd",
    "a/../b",
    "..",
    "",
    "a//b",
    "a/",
    "./a",
    "a\\b",
    "C:/x",
    "a\0b",
    "a/b\n",
    "é",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out_of_the_store_are_refused(store, name):
    before = (store / "manifest.json").read_bytes()
    reseal(store / "manifest.json", shards__1__name=name)
    with pytest.raises(FormatError, match=r"not a valid manifest.*shards\[1\]\.name"):
        open_store(store)
    (store / "manifest.json").write_bytes(before)
    reseal(store / "manifest.json", files={name: {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(FormatError, match=r"not a valid manifest.*files"):
        verify_store(store)
    reseal(store / "plan.json", shards__0__name=name)
    with pytest.raises(FormatError, match="not a valid plan"):
        load_plan(store)
    reseal(store / "commits/00000.json", name=name)
    with pytest.raises(FormatError, match="not a valid commit"):
        read_record(store / "commits/00000.json", Commit)


@pytest.mark.parametrize(
    "place",
    [
        "shards__0__rows",
        "shards__0__bytes",
        "shards__0__positions",
        "shards__0__start_row",
        "identity__corpus__rows",
        "identity__teacher__vocab_size",
        "identity__targets__k",
        "identity__label_shift",
        "statistics__kept_ids",
    ],
)
@pytest.mark.parametrize("value", [-1, 1.5, 2**53 + 1, 2**63, 10**30, "3", None, [], True])
def test_counts_that_are_none_are_refused(store, place, value):
    reseal(store / "manifest.json", **{place: value})
    with pytest.raises(FormatError, match="not a valid manifest"):
        open_store(store)


@pytest.mark.parametrize("value", [0, -1.0, "1", None])
def test_impossible_temperatures_are_refused(store, value):
    reseal(store / "manifest.json", identity__targets__temperatures=[value])
    with pytest.raises(FormatError, match="not a valid manifest"):
        open_store(store)


@pytest.mark.parametrize("value", ["", "0" * 63, "0" * 65, "0" * 64 + "\n", "G" * 64, "A" * 64, 0])
def test_digests_that_are_none_are_refused(store, value):
    reseal(store / "manifest.json", shards__0__sha256=value)
    with pytest.raises(FormatError, match="not a valid manifest"):
        open_store(store)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shards__1__start_row": 4}, "begins at row 4, expected 3"),
        ({"shards__0__rows": 4}, "begins at row 3, expected 4"),
        ({"shards__2__rows": 3}, "shards hold 9 rows, the corpus record says 8"),
        ({"identity__corpus__rows": 9}, "shards hold 8 rows, the corpus record says 9"),
        ({"shards": []}, "shards hold 0 rows"),
        ({"shards__1__name": "data/train-00000-of-00003.parquet"}, "a shard is named twice"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(store, changes, says):
    reseal(store / "manifest.json", **changes)
    with pytest.raises(FormatError, match=says):
        open_store(store)


def test_a_content_digest_of_something_else_is_refused(store):
    path = store / "manifest.json"
    manifest = load_manifest(store)
    path.write_bytes(canonical(seal(msgspec.structs.replace(manifest, content_digest="0" * 64))))
    with pytest.raises(IntegrityError, match="content_digest does not match"):
        open_store(store)


@pytest.mark.parametrize(
    "changes", [{"shards__1__index": 2}, {"shards__1__start_row": 4}, {"shards__0__rows": 2}]
)
def test_a_plan_out_of_order_is_refused(store, changes):
    reseal(store / "plan.json", **changes)
    with pytest.raises(FormatError, match=r"plan\.json: shard \d is out of order"):
        load_plan(store)


def test_a_plan_of_a_dictionary_of_more_shards_than_it_has_is_refused(store):
    shards = len(load_plan(store).shards)
    reseal(store / "plan.json", identity__encoding__dictionary_shards=shards)
    load_plan(store)
    reseal(store / "plan.json", identity__encoding__dictionary_shards=shards + 1)
    with pytest.raises(
        FormatError,
        match=rf"plan\.json: a dictionary of its first {shards + 1} shards.*copy it again",
    ):
        load_plan(store)


# -- not a store ----------------------------------------------------------------------------------


def test_a_plan_that_no_reader_would_read_is_not_written(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr("softlabels.making.plan.RECORD_LIMIT", 5000)
    with pytest.raises(
        PlanError, match=r"20 shards make a plan of .* raise --shard-rows \(now 1\)"
    ):
        build_tiny(tmp_path / "out", corpus, shard_rows=1, limit_rows=20)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_a_store(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FormatError, match=r"not a store.*is the path right") as e:
            open_store(path)
        assert str(e.value).startswith(f"{path}: ")


def test_a_file_is_not_a_store(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FormatError, match="not a store"):
        open_store(tmp_path / "file")


def test_an_unfinished_store_says_how_to_finish_it(store):
    (store / "manifest.json").unlink()
    with pytest.raises(
        FormatError, match=r"has not finished .* run the same `softlabels build` again"
    ):
        open_store(store)


def test_a_manifest_that_is_a_folder(tmp_path):
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(SoftLabelsError, match="cannot be read"):
        open_store(tmp_path)


# -- files beside the records ---------------------------------------------------------------------


def test_check_file(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert check_file(path, sha256=sha, size=3) == b"abc"
    with pytest.raises(IntegrityError, match=r"f: 3 bytes, the record says 4: torn"):
        check_file(path, sha256=sha, size=4)
    path.write_bytes(b"abd")
    with pytest.raises(IntegrityError, match=r"f: sha256 is \w+, the record says ba7816bf"):
        check_file(path, sha256=sha, size=3)
    path.unlink()
    with pytest.raises(IntegrityError, match="f: missing"):
        check_file(path, sha256=sha, size=3)
    path.mkdir()
    with pytest.raises(IntegrityError, match="f: "):
        check_file(path, sha256=sha, size=path.stat().st_size)
    with pytest.raises(IntegrityError, match="cannot be read"):
        check_file(tmp_path / "f" / ("x" * 300), sha256=sha, size=3)
