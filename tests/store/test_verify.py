"""Verification: a whole store has no problems; any flipped bit, any missing and any foreign file is one."""

from __future__ import annotations

import hashlib
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

from softlabels.core.records import read_record
from softlabels.errors import FormatError, StoreError
from softlabels.format.encoding import decode_shard, encode_shard
from softlabels.format.manifest import Commit, load_manifest
from softlabels.format.shard import Reading
from softlabels.store.verify import verify_store
from tests.fakes import Steps, build_tiny
from tests.store.made_up import files_of, reseal

modes = pytest.mark.parametrize("deep", [True, False], ids=["deep", "quick"])


@modes
@pytest.mark.parametrize("estimator", ["topk", "sampled"])
def test_a_whole_store_has_no_problems(tmp_path, corpus, deep, estimator):
    build_tiny(tmp_path / "s", corpus, estimator=estimator, limit_rows=5, shard_rows=2)
    steps = Steps()
    report = verify_store(tmp_path / "s", deep=deep, reporter=steps)
    manifest = load_manifest(tmp_path / "s")
    assert report.problems == []
    assert (report.rows, report.positions) == (5, manifest.identity.corpus.positions)
    assert report.files == len(manifest.shards) + len(manifest.files) + 1
    assert report.bytes == manifest.data_bytes + sum(f.bytes for f in manifest.files.values())
    assert steps.seen == [(1, 3), (2, 3), (3, 3)]


@modes
def test_every_flipped_bit_is_found_and_its_file_named(built, tmp_path, deep):
    """300 bits over all files of a store: data, records, tokenizer, card."""
    store = shutil.copytree(built, tmp_path / "store")
    whole = files_of(store)
    assert {n.split("/")[0] for n in whole} == {
        "README.md",
        "commits",
        "data",
        "manifest.json",
        "plan.json",
        "tokenizer",
    }
    rng = random.Random(f"flips {deep}")
    names = sorted(whole)
    for trial in range(300):
        name = names[trial % len(names)]  # small files as often as large ones
        place, bit = rng.randrange(len(whole[name])), rng.randrange(8)
        with (store / name).open("r+b", buffering=0) as f:
            f.seek(place)
            f.write(bytes([whole[name][place] ^ 1 << bit]))
            try:
                problems = verify_store(store, deep=deep).problems
            except StoreError as e:
                assert name == "manifest.json"
                problems = [str(e)]
            f.seek(place)
            f.write(bytes([whole[name][place]]))
        assert problems, (name, place, bit)
        assert all(str(store / name) in p for p in problems), problems
    assert verify_store(store, deep=deep).problems == []


@modes
@pytest.mark.parametrize("change", ["missing", "torn", "longer", "empty"])
def test_every_file_missing_or_of_another_length_is_found(built, tmp_path, deep, change):
    store = shutil.copytree(built, tmp_path / "store")
    for name, data in files_of(store).items():
        path = store / name
        if change == "missing":
            path.unlink()
        else:
            path.write_bytes({"torn": data[:-1], "longer": data + b"\n", "empty": b""}[change])
        if name == "manifest.json":
            with pytest.raises(StoreError):
                verify_store(store, deep=deep)
        else:
            (problem,) = verify_store(store, deep=deep).problems
            assert problem.startswith(f"{path}: ")
        path.write_bytes(data)
    assert verify_store(store, deep=deep).problems == []


@modes
def test_several_problems_are_all_reported(store, deep):
    names = [s.name for s in load_manifest(store).shards]
    (store / names[0]).unlink()
    (store / names[2]).write_bytes(b"")
    (store / "README.md").unlink()
    (store / "extra").write_bytes(b"")
    (store / "plan.json").unlink()
    problems = verify_store(store, deep=deep).problems
    assert len(problems) == 5
    for name in (names[0], names[2], "README.md", "extra", "plan.json"):
        assert any(p.startswith(f"{store / name}: ") for p in problems)


@modes
@pytest.mark.parametrize(
    "name", ["note.txt", "data/train-00009-of-00003.parquet", "commits/00003.json", "a/b/c", ".x"]
)
def test_a_foreign_file_is_reported(store, deep, name):
    (store / name).parent.mkdir(parents=True, exist_ok=True)
    (store / name).write_bytes(b"x")
    assert verify_store(store, deep=deep).problems == [
        f"{store / name}: no record of the store names it; look at it, and move it to where it belongs"
    ]


@modes
def test_a_leftover_temporary_file_is_reported(store, deep):
    left = store / "data" / ".tmp-host-1-0a1b2c3d-train-00000-of-00003.parquet"
    left.write_bytes(b"half")
    (problem,) = verify_store(store, deep=deep).problems
    assert problem.startswith(f"{left}: left by a builder that died")


@modes
def test_records_of_another_build_are_reported(built, store, tmp_path, corpus, deep):
    other = tmp_path / "other"
    build_tiny(other, corpus, limit_rows=8, shard_rows=3, k=4)
    shutil.copy(other / "commits/00001.json", store / "commits/00001.json")
    (problem,) = verify_store(store, deep=deep).problems
    assert problem == f"{store}/commits/00001.json: is of another build than the manifest"
    shutil.copy(built / "commits/00001.json", store / "commits/00001.json")
    shutil.copy(other / "plan.json", store / "plan.json")
    problems = verify_store(store, deep=deep).problems
    assert problems == [
        f"{store}/commits/0000{i}.json: is of another build than the manifest" for i in range(3)
    ]


def test_a_wrong_corpus_fingerprint_is_found_by_decoding(store):
    reseal(store / "manifest.json", identity__corpus__fingerprint="0" * 64)
    assert verify_store(store, deep=False).problems == []
    (problem,) = verify_store(store).problems
    assert "the rows are not those of the corpus fingerprint" in problem


def test_an_id_kept_twice_is_found_by_decoding(built, store):
    """The one invariant that reading leaves out, because it sorts."""
    manifest = load_manifest(store)
    record = manifest.shards[1]
    path = store / record.name
    shard = decode_shard(
        path.read_bytes(), Reading(identity=manifest.identity, start_row=3, where="w")
    )
    ids = np.array(shard.targets.ids)
    ids[7, 2] = ids[7, 0]
    statistics = read_record(store / "commits/00001.json", Commit).statistics
    broken = replace(shard, targets=replace(shard.targets, ids=ids))
    data = encode_shard(broken, manifest.identity, statistics)
    path.write_bytes(data)
    sha = hashlib.sha256(data).hexdigest()
    reseal(store / "manifest.json", shards__1__sha256=sha, shards__1__bytes=len(data))
    reseal(store / "commits/00001.json", sha256=sha, bytes=len(data))
    assert verify_store(store, deep=False).problems == []
    (problem,) = verify_store(store).problems
    assert problem == f"{path}: position 7 has an id kept twice (found {ids[7, 0]})"


def test_what_is_not_a_store_is_refused(tmp_path):
    with pytest.raises(FormatError, match="not a store"):
        verify_store(tmp_path)
