"""Repair: whatever is broken, repair and the same build give the store back, and nothing intact is deleted."""

from __future__ import annotations

import json
import os
import random
import shutil

import msgspec
import pytest

from softlabels.core.records import read_record
from softlabels.errors import FormatError, IntegrityError, StoreError
from softlabels.format.manifest import Commit, load_manifest
from softlabels.making.amend import amend
from softlabels.making.repair import repair_store
from softlabels.store.verify import verify_store
from tests.fakes import Steps, TinyTeacher, build_tiny
from tests.store.made_up import files_of, held_by, reseal, write_sealed

JOB = {"limit_rows": 8, "shard_rows": 3, "temperature": (1.0, 2.0)}
"""Of the fixture `built`."""
SHARDS = [f"data/train-{i:05d}-of-00003.parquet" for i in range(3)]


class Counting(TinyTeacher):
    """Counts the rows that it is shown."""

    rows = 0

    def logits(self, rows):
        self.rows += len(rows)
        yield from super().logits(rows)


def done(store, **options) -> list[tuple[str, str]]:
    repair = repair_store(store, **options)
    return [(a.action, a.file) for a in repair.actions]


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def check_restored(built, store, corpus, *, rows: int) -> None:
    """The same build teaches `rows` rows and the store is as it was, but for what the work cost."""
    teacher = Counting()
    build_tiny(store, corpus, teacher=teacher, **JOB)
    assert teacher.rows == rows
    was, now = files_of(built), held_by(store)
    assert was.keys() == now.keys()
    for name in was:
        if name.startswith(("data/", "tokenizer/", "plan.json")):
            assert was[name] == now[name], name
    assert load_manifest(store).content_digest == load_manifest(built).content_digest
    assert load_manifest(store).statistics == load_manifest(built).statistics
    assert verify_store(store).problems == []


def test_a_whole_store_is_left_alone(built, store):
    steps = Steps()
    repair = repair_store(store, reporter=steps)
    assert repair.whole
    assert (repair.actions, repair.rebuild, repair.problems) == ([], [], [])
    assert steps.seen == [(1, 3), (2, 3), (3, 3)]
    assert held_by(store) == files_of(built)


@pytest.mark.parametrize("change", ["missing", "altered", "torn", "empty"])
def test_a_damaged_shard_is_withdrawn_and_the_next_build_makes_exactly_it(
    built, store, corpus, change
):
    path = store / SHARDS[1]
    if change == "missing":
        path.unlink()
    elif change == "altered":
        flip(path)
    else:
        path.write_bytes(path.read_bytes()[:-1] if change == "torn" else b"")
    repair = repair_store(store)
    assert not repair.whole
    assert repair.rebuild == [SHARDS[1]]
    assert repair.problems == []
    gone = {"commits/00001.json", "manifest.json", "README.md", SHARDS[1]}
    assert {a.file for a in repair.actions} == gone - (
        {SHARDS[1]} if change == "missing" else set()
    )
    assert {a.action for a in repair.actions} == {"withdraw"}
    kept = {n: d for n, d in files_of(built).items() if n not in gone}
    assert held_by(store) == kept
    check_restored(built, store, corpus, rows=3)


def test_a_shard_and_its_record_both_missing(built, store, corpus):
    (store / SHARDS[2]).unlink()
    (store / "commits/00002.json").unlink()
    assert repair_store(store).rebuild == [SHARDS[2]]
    check_restored(built, store, corpus, rows=2)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("change", ["missing", "altered", "other plan"])
def test_a_shard_without_a_good_record_is_adopted(built, store, corpus, tmp_path, change, finished):
    record = store / "commits/00001.json"
    if change == "missing":
        record.unlink()
    elif change == "altered":
        flip(record)
    else:
        build_tiny(tmp_path / "other", corpus, k=4, limit_rows=8, shard_rows=3)
        shutil.copy(tmp_path / "other/commits/00001.json", record)
    if not finished:
        (store / "manifest.json").unlink()
        (store / "README.md").unlink()
    actions = done(store)
    assert ("adopt", SHARDS[1]) in actions
    assert (("publish", "manifest.json") in actions) is not finished
    assert verify_store(store).problems == []
    was = read_record(built / "commits/00001.json", Commit)
    now = read_record(record, Commit)
    assert (was.sha256, was.statistics) == (now.sha256, now.statistics)
    if finished:
        assert (store / "manifest.json").read_bytes() == (built / "manifest.json").read_bytes()
    check_restored(built, store, corpus, rows=0)


def test_without_its_record_an_altered_shard_is_measured_by_the_manifest(built, store, corpus):
    (store / "commits/00000.json").unlink()
    path = store / SHARDS[0]
    data = path.read_bytes()
    assert data.count(b'"kept_ids":') == 1  # the footer has no checksum of its own
    path.write_bytes(data.replace(b'"kept_mass":[', b'"kept_masS":['))
    assert repair_store(store).rebuild == [SHARDS[0]]
    check_restored(built, store, corpus, rows=3)


@pytest.mark.parametrize("change", ["missing", "altered"])
@pytest.mark.parametrize(
    "names", [["manifest.json"], ["README.md"], ["README.md", "manifest.json"]]
)
def test_card_and_manifest_are_made_again_from_plan_and_records(built, store, change, names):
    for name in names:
        if change == "missing":
            (store / name).unlink()
        else:
            flip(store / name)
    repair = repair_store(store)
    assert repair.whole
    assert {a.file for a in repair.actions} == set(names)
    assert held_by(store) == files_of(built)
    assert verify_store(store).problems == []


def test_what_goes_with_a_manifest_is_named(store):
    amend(store, lambda m: msgspec.structs.replace(m, stated_licence="MIT"))
    (store / load_manifest(store).shards[0].name).unlink()
    reasons = {a.file: a.reason for a in repair_store(store).actions}
    assert "; the licence recorded after the build, which was in it," in reasons["manifest.json"]


def test_a_card_that_this_version_cannot_make_takes_the_manifest_with_it(built, store):
    raw = json.loads((store / "manifest.json").read_bytes())
    raw["files"]["README.md"] = {"sha256": "0" * 64, "bytes": 9}
    write_sealed(store / "manifest.json", raw)
    assert done(store) == [("withdraw", "manifest.json"), ("publish", "manifest.json")]
    assert held_by(store) == files_of(built)


def test_what_dead_builders_left_is_removed(built, store):
    left = store / "data" / ".tmp-elsewhere-1-0a1b2c3d-train-00000-of-00003.parquet"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    young = store / "data" / ".tmp-elsewhere-2-0a1b2c3d-train-00000-of-00003.parquet"
    young.write_bytes(b"half")
    assert done(store) == [("remove", f"data/{left.name}")]
    assert not left.exists()
    assert young.exists()


@pytest.mark.parametrize("made", [True, False])
def test_claims_go_when_all_shards_are_made(built, store, corpus, made):
    """Otherwise they are the builders' affair."""
    (store / "claims").mkdir()
    claim = store / "claims" / "00001-0.json"
    claim.write_text('{"host": "elsewhere", "pid": 1, "token": "x"}')
    os.utime(claim, (0, 0))
    if made:
        assert done(store) == [("remove", "claims/00001-0.json")]
        assert held_by(store) == files_of(built)
        assert not (store / "claims").exists()
    else:
        (store / SHARDS[1]).unlink()
        assert repair_store(store).problems == []
        assert claim.exists()
        check_restored(built, store, corpus, rows=3)


@pytest.mark.parametrize("change", ["missing", "altered"])
@pytest.mark.parametrize("also", [None, "manifest.json"])
def test_without_the_plan_nothing_is_touched(store, change, also):
    for name in ["plan.json", SHARDS[0], *([also] if also else [])]:
        if change == "missing" and name != also:
            (store / name).unlink()
        else:
            flip(store / name)
    before = files_of(store)
    with pytest.raises(IntegrityError) as e:
        repair_store(store)
    assert str(e.value).startswith(f"{store / 'plan.json'}: ")
    assert "nothing was changed" in str(e.value)
    assert "opy plan.json again" in str(e.value)
    assert ("can still be read" in str(e.value)) is (also is None)
    assert files_of(store) == before


def test_a_damaged_tokenizer_file_is_named_with_its_remedy(store):
    flip(store / "tokenizer/tokenizer.json")
    before = files_of(store)
    repair = repair_store(store)
    assert not repair.whole
    assert repair.actions == []
    (problem,) = repair.problems
    assert problem.startswith(f"{store / 'tokenizer/tokenizer.json'}: ")
    assert "another store that was built with the same tokenizer" in problem
    assert files_of(store) == before


def test_strangers_are_named_and_left_alone(store):
    (store / "note.txt").write_text("mine")
    repair = repair_store(store)
    assert not repair.whole
    assert repair.problems == [
        f"{store / 'note.txt'}: no record of the store names it, so it was left alone; look at it, and move it "
        "to where it belongs"
    ]
    assert (store / "note.txt").read_text() == "mine"


def test_records_of_two_builds_are_not_judged(built, store, corpus, tmp_path):
    """A wrong plan copied over the right one must not cost the shards."""
    other = tmp_path / "other"
    build_tiny(other, corpus, k=4, limit_rows=8, shard_rows=3)
    shutil.copy(other / "plan.json", store / "plan.json")
    before = files_of(store)
    with pytest.raises(IntegrityError, match="are of two builds; put the right one back"):
        repair_store(store)
    (store / "manifest.json").unlink()
    with pytest.raises(IntegrityError, match="are intact, but of another build than plan"):
        repair_store(store)
    assert files_of(store) == {n: d for n, d in before.items() if n != "manifest.json"}


def test_a_manifest_that_lists_other_shards_is_made_again(built, store):
    reseal(store / "manifest.json", shards__1__sha256="0" * 64)
    assert ("publish", "manifest.json") in done(store)
    assert held_by(store) == files_of(built)


def test_a_file_that_may_not_be_read_is_not_taken_for_damaged(store, monkeypatch):
    path = store / SHARDS[1]
    read = type(path).read_bytes

    def refuse(self):
        if self == path:
            raise PermissionError(13, "Permission denied")
        return read(self)

    monkeypatch.setattr(type(path), "read_bytes", refuse)
    with pytest.raises(StoreError, match=r"Permission denied.*does not mean that it is damaged"):
        repair_store(store)


def test_nothing_outside_the_store_is_removed(store, tmp_path):
    """A folder of the store that is a link to elsewhere, whose files the plan happens to name."""
    elsewhere = tmp_path / "elsewhere"
    (store / "data").rename(elsewhere)
    (store / "data").symlink_to(elsewhere)
    mine = elsewhere / SHARDS[1].removeprefix("data/")
    mine.write_bytes(b"my thesis")
    with pytest.raises(StoreError, match="is a link"):
        repair_store(store)
    assert mine.read_bytes() == b"my thesis"


def test_what_is_not_a_store_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(FormatError, match="not a store"):
            repair_store(path)


def test_random_damage_is_always_mended(built, store, corpus):
    """Files missing, flipped or cut, several at once: dry run, repair, build; intact files never change."""
    rng = random.Random(7)
    whole = files_of(built)
    names = [n for n in whole if not n.startswith(("plan", "tokenizer"))]
    for _ in range(12):
        hit = rng.sample(names, rng.randint(1, 4))
        for name in hit:
            path = store / name
            match rng.choice(["unlink", "flip", "cut"]):
                case "unlink":
                    path.unlink()
                case "flip":
                    flip(path)
                case "cut":
                    path.write_bytes(path.read_bytes()[: rng.randrange(50)])
        before = files_of(store)
        dry = repair_store(store, dry_run=True)
        assert files_of(store) == before
        repair = repair_store(store)
        assert [a.file for a in dry.actions] == [a.file for a in repair.actions]
        assert (dry.rebuild, dry.problems) == (repair.rebuild, repair.problems)
        assert repair.whole is (not any(n.startswith("data/") for n in hit))
        teacher = Counting()
        build_tiny(store, corpus, teacher=teacher, **JOB)
        assert teacher.rows == sum({SHARDS[2]: 2}.get(n, 3) for n in repair.rebuild)
        assert verify_store(store).problems == []
        now = files_of(store)
        for name in whole:
            if name.startswith("data/"):
                assert now[name] == whole[name]
        for name, data in whole.items():  # the next round starts from the original
            (store / name).write_bytes(data)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_has_no_end_is_moved_aside_unread(built, store, kind):
    card = store / "README.md"
    card.unlink()
    if kind == "pipe":
        os.mkfifo(card)
    else:
        card.symlink_to("/dev/zero")
    (store / "manifest.json").unlink()  # the card is looked at when the manifest is made
    repair = repair_store(store)
    assert repair.whole
    assert len(repair.quarantine) == 1
    assert card.read_bytes() == (built / "README.md").read_bytes()


def test_a_pipe_in_the_place_of_a_claim_holds_nobody_up(store):
    (store / "manifest.json").unlink()
    (store / "claims").mkdir()
    os.mkfifo(store / "claims" / "00000-0.json")
    with pytest.raises(StoreError, match=r"a builder is at work on it \(somebody holds shard 0\)"):
        repair_store(store)


def test_claims_in_a_folder_elsewhere_are_not_removed(store, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "00001-0.json").write_text("mine")
    os.utime(elsewhere / "00001-0.json", (0, 0))
    (store / "claims").symlink_to(elsewhere)
    with pytest.raises(StoreError, match=r"claims: is a link, .*put a real folder in its place"):
        repair_store(store)
    assert [p.name for p in elsewhere.iterdir()] == ["00001-0.json"]
    assert (elsewhere / "00001-0.json").read_text() == "mine"
