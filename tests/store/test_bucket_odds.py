"""What a review of stores in a bucket found: what others put into `claims/`, and repairs that died or stood still."""

from __future__ import annotations

import json
import random
import re
from contextlib import closing, suppress
from pathlib import Path

import pytest

from softlabels.core.records import canonical, digest_of
from softlabels.errors import FormatError, IntegrityError, StoreError
from softlabels.format.manifest import MANIFEST
from softlabels.making.claims import EXPIRY, Holder, holder_of
from softlabels.making.leases import cut
from softlabels.making.place import TRIED, exists
from softlabels.making.place import finish as place_finish
from softlabels.making.place.blocks import Blocks
from softlabels.making.place.claims import PlaceClaims
from softlabels.making.place.finish import clear_in
from softlabels.making.place.names import (
    FINISH,
    FREE,
    FULL,
    PLANNING,
    claim_name,
    done_name,
    is_ours,
    mark_name,
)
from softlabels.making.place.repair import repair_at
from softlabels.making.status import status_in
from softlabels.store.remote.bucket import BucketPlace
from tests.fakes import Notices, build_tiny
from tests.store.memory_place import Died, MemoryPlace
from tests.store.s3 import delete, environment, get, keep_versions, put, s3_server, upload
from tests.store.test_bucket_repair import (
    FAR,
    JOB,
    SHARDS,
    Clock,
    build_over,
    damage,
    in_memory,
    repaired,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory, corpus) -> Path:
    """A finished store of four shards, in a folder."""
    store = tmp_path_factory.mktemp("built") / "store"
    build_tiny(store, corpus, **JOB)
    return store


@pytest.fixture
def unfinished(tmp_path, corpus, monkeypatch) -> MemoryPlace:
    """All its shards and leases are done; there is no manifest."""
    place = MemoryPlace()
    with monkeypatch.context() as m:
        m.setattr("softlabels.making.site.finish_in", lambda *_: 1 / 0)
        with suppress(ZeroDivisionError):
            build_over(place, tmp_path / "unfinished", corpus)
    assert done_name(1) in place.files
    assert MANIFEST not in place.files
    return place


# -- repairs that died, and stores that lost files ------------------------------------------------


@pytest.fixture
def many(monkeypatch) -> None:
    """Shards count as too many to be listed: a builder knows by claims alone what is done."""
    monkeypatch.setattr("softlabels.making.site.COUNTED", 0)
    monkeypatch.setattr("softlabels.making.site.PAGE", 3)


def test_of_many_shards_in_few_leases_those_alone_are_made_that_were_withdrawn(
    built, tmp_path, corpus, many
):
    place = in_memory(built)
    damage(place, SHARDS[2])
    assert repaired(place, tmp_path / "a").rebuild == [SHARDS[2]]
    assert build_over(place, tmp_path / "b", corpus) == 2


def test_a_mark_of_a_block_of_which_a_shard_was_deleted(unfinished, tmp_path, corpus):
    for name in (SHARDS[1], "commits/00001.json", done_name(1)):
        unfinished.files.pop(name)
    assert mark_name(0) in unfinished.files
    assert repaired(unfinished, tmp_path / "b").rebuild == [SHARDS[1]]
    assert mark_name(0) not in unfinished.files, "nobody would look there"
    assert build_over(unfinished, tmp_path / "c", corpus) == 2


@pytest.mark.parametrize("record", [True, False])
def test_an_unfinished_store_from_which_a_shard_was_deleted(unfinished, tmp_path, corpus, record):
    """The records of its lease, which are left, would have nobody make it."""
    unfinished.files.pop(SHARDS[1])
    if record:
        unfinished.files.pop("commits/00001.json")
    with pytest.raises(IntegrityError, match="`softlabels repair"):
        build_over(unfinished, tmp_path / "a", corpus)
    would = repaired(unfinished, tmp_path / "b", dry_run=True).actions
    assert done_name(1) in unfinished.files
    repair = repaired(unfinished, tmp_path / "b")
    assert repair.rebuild == [SHARDS[1]]
    assert repair.actions == would
    assert ("remove", done_name(1)) in [(a.action, a.file) for a in would], "it says what it did"
    assert done_name(1) not in unfinished.files
    assert build_over(unfinished, tmp_path / "c", corpus) == 2
    assert MANIFEST in unfinished.files


def die(files: dict, tmp_path: Path, corpus: str, at: int) -> bool:
    """Die at a moment of the repair of an unfinished store, repair again, build. False: it ended before that."""
    place, died = MemoryPlace(dict(files)), False
    place.dies_at = at
    try:
        repaired(place, tmp_path / f"a{at}")
    except Died:
        died = True
    place.dies_at = None
    repaired(place, tmp_path / f"b{at}")
    assert build_over(place, tmp_path / f"c{at}", corpus) == 2
    assert MANIFEST in place.files
    return died


def first_change(files: dict, scratch: Path) -> int:
    place = MemoryPlace(dict(files))
    repaired(place, scratch)
    return next(i for i, r in enumerate(place.requests) if not r.startswith(("read", "list")))


def test_a_repair_of_an_unfinished_store_may_die_at_some_requests(
    unfinished, tmp_path, corpus, many
):
    damage(unfinished, SHARDS[1])
    at = 2 * first_change(unfinished.files, tmp_path / "count")
    while die(unfinished.files, tmp_path, corpus, at):
        at += 5


@pytest.mark.slow
def test_a_repair_of_an_unfinished_store_may_die_at_any_request(unfinished, tmp_path, corpus, many):
    damage(unfinished, SHARDS[1])
    at = 2 * first_change(unfinished.files, tmp_path / "count")
    while die(unfinished.files, tmp_path, corpus, at):
        at += 1


# -- what others do meanwhile ---------------------------------------------------------------------


class Hooked(MemoryPlace):
    """Something happens once, before a request."""

    def __init__(self, files: dict[str, tuple[bytes, str]], verb: str, name: str) -> None:
        super().__init__(files)
        self._at, self.then = (verb, name), [lambda: None]

    def _ask(self, verb: str, name: str) -> None:
        if (verb, name) == self._at and self.then:
            self.then.pop()()
        super()._ask(verb, name)


def test_a_repair_that_stood_still_changes_nothing_more(built, tmp_path, corpus):
    """Another repair and a build ran meanwhile: the manifest that it meets then is not its own to withdraw."""
    clock, files = Clock(), in_memory(built).files
    place, other = Hooked(files, "remove", "commits/00001.json"), MemoryPlace(files)
    damage(place, SHARDS[1])

    def stands_still() -> None:
        clock.now += EXPIRY + 100
        other.put("claims/finish.json", FREE)  # as who takes over from it does
        repaired(other, tmp_path / "other")
        build_over(other, tmp_path / "build", corpus)

    place.then = [stands_still]
    with pytest.raises(StoreError, match="stood still for so long that another began"):
        repaired(place, tmp_path / "a", clock=clock)
    assert {MANIFEST, SHARDS[1]} <= place.files.keys()


@pytest.mark.parametrize("verb", ["read", "swap"])
def test_no_repair_however_late_takes_a_shard_away_that_was_made_since(
    built, tmp_path, corpus, verb
):
    """It stands still at each of its requests about the shard, while another repair and a build make it."""
    clock, files = Clock(), in_memory(built).files
    good, _ = files[SHARDS[1]]
    place, other = Hooked(files, verb, SHARDS[1]), MemoryPlace(files)
    damage(place, SHARDS[1])

    def stands_still() -> None:
        clock.now += EXPIRY + 100
        other.put("claims/finish.json", FREE)
        repaired(other, tmp_path / "other")
        build_over(other, tmp_path / "build", corpus)
        assert files[SHARDS[1]][0] == good

    place.then = [stands_still]
    if verb == "read":  # the first is the diagnosis
        place.then = [stands_still, lambda: None]
    with suppress(StoreError):
        repaired(place, tmp_path / "a", clock=clock)
    assert not place.then, "it stood still"
    assert files[SHARDS[1]][0] == good
    assert not [r for r in place.requests if r.startswith("remove data/")], "that has no condition"


def test_a_builder_that_was_late_replaces_no_shard_by_a_mark(built, tmp_path, corpus):
    """Of two that meet a mark one swaps it; the other takes what is then there."""
    files = in_memory(built).files
    good, _ = files[SHARDS[1]]
    damage(MemoryPlace(files), SHARDS[1])
    repaired(MemoryPlace(files), tmp_path / "a")
    place = Hooked(files, "swap", SHARDS[1])
    place.then = [lambda: MemoryPlace(files).put(SHARDS[1], good)]
    build_over(place, tmp_path / "late", corpus)
    assert not place.then
    assert files[SHARDS[1]][0] == good
    assert repaired(MemoryPlace(files), tmp_path / "b").whole


def test_a_store_that_was_finished_while_it_was_looked_at_stays(built, tmp_path, corpus):
    files = in_memory(built).files
    for name in (MANIFEST, "README.md", SHARDS[2], "commits/00002.json", "commits/00000.json"):
        files.pop(name)
    place = Hooked(files, "read", SHARDS[3])
    place.then = [lambda: build_over(MemoryPlace(files), tmp_path / "build", corpus) and None]
    with pytest.raises(StoreError, match=r"changed meanwhile; run the same command again \(noth"):
        repaired(place, tmp_path / "a")
    assert {MANIFEST, SHARDS[2], "commits/00000.json"} <= files.keys()
    assert repaired(MemoryPlace(files), tmp_path / "b").whole


def test_who_finishes_and_was_taken_over_from_publishes_nothing(
    unfinished, tmp_path, corpus, monkeypatch
):
    """It stood still while it made the manifest, and a repair withdrew a shard."""
    damage(unfinished, SHARDS[1])
    make, repairs = place_finish.make_manifest, []

    def stands_still(*args, **options):
        made = make(*args, **options)
        if not repairs:
            clock, other = Clock(), MemoryPlace(unfinished.files)
            other.put("claims/finish.json", canonical(FAR))
            repairs.append(None)
            repairs[0] = repaired(other, tmp_path / "other", clock=clock, sleep=clock.sleep)
        return made

    monkeypatch.setattr(place_finish, "make_manifest", stands_still)
    with pytest.raises(IntegrityError, match="somebody withdrew it"):
        build_over(unfinished, tmp_path / "a", corpus)
    assert repairs[0].rebuild == [SHARDS[1]]
    assert MANIFEST not in unfinished.files
    assert build_over(unfinished, tmp_path / "b", corpus) == 2


def test_a_manifest_is_retracted_if_a_shard_goes_while_it_is_published(
    unfinished, tmp_path, corpus
):
    place = Hooked(unfinished.files, "create", MANIFEST)
    place.then = [lambda: unfinished.files.pop(SHARDS[1]) and None]
    with pytest.raises(IntegrityError, match=re.escape(f"{SHARDS[1]}: missing")):
        build_over(place, tmp_path / "a", corpus)
    assert MANIFEST not in unfinished.files


def test_a_bucket_that_keeps_versions(built, tmp_path, monkeypatch, corpus):
    """A listing of one does not tell the version that a read tells."""
    with s3_server() as server:
        for name, value in environment(server, tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        keep_versions(server)
        bucket = upload(built, server, "kept")
        place = BucketPlace(bucket)
        (listed,) = (e for e in place.list("") if e.name == MANIFEST)
        assert listed.version == place.read(MANIFEST, limit=2**30)[1]
        delete(server, f"kept/{SHARDS[1]}")
        assert repair_at(bucket).rebuild == [SHARDS[1]]
        assert not exists(place, MANIFEST)
        build_tiny(bucket, corpus, **JOB)
        assert repair_at(bucket).whole


# -- what is not a builder's ----------------------------------------------------------------------

FOREIGN = [
    "claims/",
    "claims/notes.txt",
    "claims/00000000.json.bak",
    "claims/0000000x.json",
    "claims/00000000/notes.json",
    "claims/000000000.json",
    "claims/block-00000.json.bak",
    "claims/block-notes.txt",
    "claims/00000001.done.json.old",
    "claims/mine.json",
]


def test_which_files_of_claims_are_ours():
    ends = [f"claims/{name}.json" for name in (PLANNING, FINISH)]
    marks = [mark_name(3), mark_name(3, FULL)]
    assert all(map(is_ours, [claim_name(7), done_name(7), TRIED, *ends, *marks]))
    assert not any(map(is_ours, [*FOREIGN, "plan.json", "claims"]))


def test_others_files_among_the_claims_are_named_and_left(built, tmp_path, corpus):
    place = in_memory(built)
    damage(place, SHARDS[1])
    for name in FOREIGN:
        place.put(name, b"mine")
    problems = repaired(place, tmp_path / "a").problems
    assert all(any(f"/{name}: no record" in p for p in problems) for name in FOREIGN)
    assert status_in(place).held == ()
    assert build_over(place, tmp_path / "b", corpus) == 2
    assert all(place.files[name][0] == b"mine" for name in FOREIGN)
    assert {n for n in place.files if n.startswith("claims/")} == set(FOREIGN)


@pytest.mark.parametrize("shards", [2, 20, 2000, 20000])
def test_a_builder_takes_none_of_them_over(shards):
    place, clock = MemoryPlace(), Clock()
    for name in [*FOREIGN, "claims/block-99999.json"]:
        place.put(name, b"mine!")
    for lease in cut(shards)[:20]:
        place.put(claim_name(lease.start), canonical(FAR))
    options = {"clock": clock, "me": Holder(host="here", pid=1, token="q")}
    with closing(PlaceClaims(place, shards, chance=random.Random(0), **options)) as claims:
        taken = [claims.take() for _ in range(30) if clock.sleep(EXPIRY + 100) is None]
    starts = {claim_name(lease.start) for lease in cut(shards)}
    assert {lease.name for lease in taken if lease} <= starts
    assert all(place.files[name][0] == b"mine!" for name in FOREIGN)


def test_a_mark_of_a_block_that_the_plan_has_not_says_nothing():
    place = MemoryPlace()
    blocks = Blocks(place, [1, 1, 1], Clock())
    for name in (mark_name(1), mark_name(99999), "claims/block-00000.json.bak"):
        place.put(name, b"done\n")
    blocks.read_marks(0.0)
    assert blocks.left == 2


def test_a_folder_mark_of_a_bucket_is_no_end_to_clearing(built, tmp_path, monkeypatch, corpus):
    with s3_server() as server:
        for name, value in environment(server, tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        bucket = upload(built, server, "marked")
        put(server, "marked/claims/", b"")
        put(server, "marked/claims/notes.txt", b"mine")
        put(server, "marked/README.md", b"rotten")
        build_tiny(bucket, corpus, **JOB)
        (problem, *_) = repair_at(bucket).problems[::-1]
        assert "claims/notes.txt: no record of the store names it" in problem
        assert get(server, "marked/claims/notes.txt") == b"mine"


def test_clearing_takes_all_that_is_ours_and_no_more():
    place = MemoryPlace()
    for name in [*FOREIGN, claim_name(0), done_name(0), mark_name(0), TRIED]:
        place.put(name, FREE)
    clear_in(place)
    assert sorted(place.files) == sorted(FOREIGN)


ODD = {
    "not UTF-8": b'{"host":"\xff","pid":1,"token":"x"}',
    "deep": b'{"host":"a","pid":1,"token":"x","z":' + b"[" * 1900 + b"]" * 1900 + b"}",
    "long": b"x" * 5000,
    "no JSON": b"somebody's",
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_a_claim_that_names_nobody_is_one_of_somebody(built, tmp_path, corpus, content):
    place, clock = in_memory(built), Clock()
    place.files.pop(MANIFEST)
    place.files.pop("commits/00001.json")
    place.put(claim_name(1), content)
    (held,) = status_in(place).held
    assert (held.shard, held.host, held.pid) == (1, None, None)
    notices = Notices()
    repair = repaired(place, tmp_path / "a", clock=clock, sleep=clock.sleep, reporter=notices)
    assert repair.whole
    assert any("whether somebody, who holds claims/00000001.json" in n for n in notices.lines)
    assert holder_of(content) is None


@pytest.mark.parametrize("content", [b"\xff", b'{"records":["\xff"]}', b"[" * 5000])
def test_records_of_a_lease_that_are_none_are_read_one_by_one(
    unfinished, tmp_path, corpus, content
):
    unfinished.put(done_name(1), content)
    assert build_over(unfinished, tmp_path / "a", corpus) == 0
    assert MANIFEST in unfinished.files


def test_a_plan_whose_shards_are_out_of_order(built, tmp_path):
    place = in_memory(built)
    place.files.pop(MANIFEST)
    raw = json.loads(place.files["plan.json"][0])
    raw["shards"][0]["index"] = 99
    raw["digest"] = digest_of(raw)
    place.put("plan.json", canonical(raw))
    with pytest.raises(FormatError, match=r"plan\.json: shard 0 is out of order"):
        status_in(place)
    with pytest.raises(IntegrityError, match="shard 0 is out of order"):
        repaired(place, tmp_path / "a")


def test_a_plan_of_a_dictionary_of_more_shards_than_it_has(built, tmp_path, corpus):
    place = in_memory(built)
    for name in (MANIFEST, "commits/00001.json"):
        place.files.pop(name)
    raw = json.loads(place.files["plan.json"][0])
    raw["identity"]["encoding"]["dictionary_shards"] = 10
    raw["digest"] = digest_of(raw)
    place.put("plan.json", canonical(raw))
    says = (
        r"plan\.json: a dictionary of its first 10 shards, and it has 4; .* build the store again"
    )
    with pytest.raises(FormatError, match=says):
        build_over(place, tmp_path / "a", corpus)
    with pytest.raises(FormatError, match=says):
        status_in(place)


def test_a_file_hides_none_whose_name_begins_alike(built):
    place = in_memory(built)
    place.put("manifest.jsoa", b"mine")
    assert exists(place, MANIFEST)
    assert status_in(place).complete
    place.put(f"claims/{FINISH}.jsoa", b"mine")
    with closing(PlaceClaims(place, 4)) as claims:
        lease = claims.take_end(FINISH)
        assert lease is not None
        lease.release()
        assert claims.take_end(FINISH) is not None
