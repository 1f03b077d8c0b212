"""`softlabels repair s3://…`: whatever is broken, repair and the same build give the store back, as in a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from softlabels.cli.main import main
from softlabels.core.records import canonical
from softlabels.errors import ConfigError, FormatError, IntegrityError, RemoteError, StoreError
from softlabels.making import leases as leases_module
from softlabels.making.claims import EXPIRY, Holder
from softlabels.making.mending import Repair
from softlabels.making.place import claims as place_claims
from softlabels.making.place import leases as place_leases
from softlabels.making.place.claims import PlaceClaims
from softlabels.making.place.commit import read_commit, recorded_in
from softlabels.making.place.names import claim_name, done_name
from softlabels.making.place.plan import Mirror
from softlabels.making.place.quarantine import WITHDRAWN, retract_in
from softlabels.making.place.repair import repair_at, repair_in
from softlabels.making.plan import read_plan
from softlabels.making.site import PlaceSite
from softlabels.store.remote.bucket import BucketPlace
from softlabels.store.verify import verify_store
from tests.fakes import Notices, TinyTeacher, build_tiny, config_of
from tests.fixtures.make import small_pages
from tests.store.made_up import files_of
from tests.store.memory_place import Died, MemoryPlace
from tests.store.places import check_place
from tests.store.s3 import delete, environment, get, put, s3_server, upload

JOB = {"limit_rows": 8, "shard_rows": 2, "batch_tokens": 64}
SHARDS = [f"data/train-{i:05d}-of-00004.parquet" for i in range(4)]


class Counting(TinyTeacher):
    """Counts the rows that it is shown."""

    rows = 0

    def logits(self, rows):
        self.rows += len(rows)
        yield from super().logits(rows)


@pytest.fixture(scope="module")
def server():
    with s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def built(tmp_path_factory, corpus) -> Path:
    """A finished store of four shards, in a folder."""
    store = tmp_path_factory.mktemp("built") / "store"
    build_tiny(store, corpus, **JOB)
    return store


@pytest.fixture
def bucket(server, built, tmp_path, monkeypatch, request) -> str:
    """Address of a copy of it."""
    for name, value in environment(server, tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    return upload(built, server, re.sub(r"\W", "-", request.node.name))


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


# -- on a service that speaks S3 ------------------------------------------------------------------


def names(address: str) -> dict[str, str]:
    return {e.name: e.version for e in BucketPlace(address).list("")}


def check_restored(address: str, built: Path, corpus: str, *, rows: int) -> None:
    """The same build teaches `rows` rows, and the store is as it was, but for what the work cost."""
    teacher = Counting()
    build_tiny(address, corpus, teacher=teacher, **JOB)
    assert teacher.rows == rows
    place = BucketPlace(address)
    found = {n for n in names(address) if not n.startswith("quarantine/")}
    assert found == set(files_of(built))
    for name, data in files_of(built).items():
        if name.startswith(("data/", "tokenizer/", "plan.json")):
            assert place.read(name, limit=2**30)[0] == data, name
    assert verify_store(address).problems == []


def test_a_whole_store_is_left_alone(bucket):
    before = names(bucket)
    repair = repair_at(bucket)
    assert repair.whole
    assert (repair.actions, repair.rebuild, repair.problems) == ([], [], [])
    assert names(bucket) == before


@pytest.mark.parametrize("change", ["missing", "rotten", "cut short", "empty"])
def test_a_damaged_shard_is_found_withdrawn_and_alone_made_again(
    server, bucket, built, corpus, change
):
    key = f"{bucket.removeprefix('s3://bucket/')}/{SHARDS[1]}"
    data = get(server, key)
    bad = {"rotten": flipped(data), "cut short": data[:-9], "empty": b""}.get(change)
    if bad is None:
        delete(server, key)
    else:
        put(server, key, bad)
    (problem,) = verify_store(bucket).problems
    assert f"{bucket}/{SHARDS[1]}" in problem
    before = names(bucket)
    assert repair_at(bucket, dry_run=True).rebuild == [SHARDS[1]]
    assert names(bucket) == before
    said = CliRunner().invoke(main, ["repair", bucket])
    assert said.exit_code == 1, said.output
    assert "1 shards must be built; run the same `softlabels build` again" in said.output
    assert f"withdraw {SHARDS[1]}" in said.output or change == "missing"
    assert not {"manifest.json", "README.md", "commits/00001.json"} & names(bucket).keys()
    if change == "missing":
        assert SHARDS[1] not in names(bucket)
    else:
        assert get(server, key) == WITHDRAWN, "a builder replaces it, and nobody deletes it"
    aside = [n for n in names(bucket) if n.startswith("quarantine/")]
    assert len(aside) == (change != "missing")
    for name in aside:
        assert BucketPlace(bucket).read(name, limit=2**30)[0] == bad
    again = repair_at(bucket)
    assert (again.rebuild, again.actions) == ([SHARDS[1]], [])
    check_restored(bucket, built, corpus, rows=2)


@pytest.mark.parametrize("change", ["missing", "rotten"])
@pytest.mark.parametrize("name", ["manifest.json", "README.md", "commits/00002.json"])
def test_what_can_be_made_again_is(server, bucket, built, corpus, name, change):
    key = f"{bucket.removeprefix('s3://bucket/')}/{name}"
    if change == "missing":
        delete(server, key)
    else:
        put(server, key, flipped(get(server, key)))
    assert repair_at(bucket).whole
    assert verify_store(bucket).problems == []
    check_restored(bucket, built, corpus, rows=0)


def test_what_cannot_is_told(server, bucket):
    prefix = bucket.removeprefix("s3://bucket/")
    put(server, f"{prefix}/notes.txt", b"mine")
    repair = repair_at(bucket)
    assert [p for p in repair.problems if "notes.txt: no record of the store names it" in p]
    assert get(server, f"{prefix}/notes.txt") == b"mine"
    delete(server, f"{prefix}/plan.json")
    with pytest.raises(IntegrityError, match=r"plan\.json: missing\. The plan cannot be made"):
        repair_at(bucket)
    with pytest.raises(FormatError, match="not a store"):
        repair_at("s3://bucket/nothing-here")
    with pytest.raises(ConfigError, match="expected a folder, s3:// or gs://"):
        repair_at("https://host/store")


# -- builders at work -----------------------------------------------------------------------------


def in_memory(built: Path) -> MemoryPlace:
    place = MemoryPlace()
    for name, data in files_of(built).items():
        place.put(name, data)
    return place


def damage(place: MemoryPlace, name: str) -> None:
    place.put(name, flipped(place.files[name][0]))


def repaired(place: MemoryPlace, scratch: Path, **options) -> Repair:
    scratch.mkdir(exist_ok=True)
    return repair_in(Mirror(place, scratch), **options)


def build_over(place: MemoryPlace, scratch: Path, corpus: str) -> int:
    """Build; how many rows were taught."""
    from softlabels.builder.build import build_at

    scratch.mkdir(exist_ok=True)
    teacher = Counting()
    build_at(config_of(corpus, **JOB), PlaceSite(Mirror(place, scratch)), teacher=teacher)
    return teacher.rows


class Clock:
    """Seconds, as they are told; sleeping passes them."""

    def __init__(self) -> None:
        self.now = 1e6
        self.then: Callable[[], object] = lambda: None
        """What happens meanwhile."""

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.then()


FAR = Holder(host="far", pid=7, token="t")


def test_the_place_of_these_tests_is_one():
    files: dict[str, tuple[bytes, str]] = {}
    check_place(lambda: MemoryPlace(files), threads=0)


def test_a_builder_that_renews_is_at_work_and_nothing_is_changed(built, tmp_path):
    place, clock = in_memory(built), Clock()
    damage(place, SHARDS[1])
    place.create(claim_name(0), canonical(FAR))
    clock.then = lambda: place.put(claim_name(0), canonical(FAR))
    before = dict(place.files)
    with pytest.raises(StoreError, match=r"process 7 of far holds claims/00000000\.json"):
        repaired(place, tmp_path / "a", clock=clock, sleep=clock.sleep)
    assert place.files.keys() == before.keys()
    assert all(place.files[n] == f for n, f in before.items() if not n.startswith("claims/"))


def test_one_of_this_host_is_at_work_at_once(built, tmp_path):
    place = in_memory(built)
    damage(place, SHARDS[1])
    with closing(PlaceClaims(place, 4)) as claims:
        assert claims.take() is not None
        with pytest.raises(StoreError, match="a builder is at work on it"):
            repaired(place, tmp_path / "a")


def test_one_that_is_silent_for_five_minutes_is_dead(built, tmp_path, corpus):
    place, clock, notices = in_memory(built), Clock(), Notices()
    damage(place, SHARDS[1])
    place.create(claim_name(1), canonical(FAR))
    begun = clock.now
    options = {"clock": clock, "sleep": clock.sleep, "reporter": notices}
    assert repaired(place, tmp_path / "a", **options).rebuild == [SHARDS[1]]
    assert clock.now - begun > EXPIRY
    assert any(
        "waiting for up to 300 s to see whether process 7 of far" in n for n in notices.lines
    )
    assert build_over(place, tmp_path / "b", corpus) == 2


def test_a_builder_that_comes_meanwhile_is_seen(built, tmp_path):
    place, clock = in_memory(built), Clock()
    damage(place, SHARDS[1])
    place.create(claim_name(0), canonical(FAR))
    clock.then = lambda: place.create(claim_name(3), canonical(FAR))
    with pytest.raises(StoreError, match=r"holds claims/00000003\.json"):
        repaired(place, tmp_path / "a", clock=clock, sleep=clock.sleep)
    assert "manifest.json" in place.files


def test_a_file_that_was_replaced_since_it_was_judged_stays(built):
    place = in_memory(built)
    seen = place.files[SHARDS[1]][1]
    place.put(SHARDS[1], b"another's")
    assert retract_in(place, SHARDS[1], seen) is None
    assert place.files[SHARDS[1]][0] == b"another's"
    assert not [n for n in place.files if n.startswith("quarantine/")]


def test_an_unfinished_store_whose_leases_were_done(built, tmp_path, corpus, monkeypatch):
    """Records of leases and marks of blocks, which builders trust, are withdrawn with the shard."""
    monkeypatch.setattr(leases_module, "FEWEST", 1)
    monkeypatch.setattr(leases_module, "LONGEST", 2)
    for module in (place_claims, place_leases):
        monkeypatch.setattr(module, "BLOCK", 1)
    place_leases.leases_of.cache_clear()
    try:
        place = MemoryPlace()
        with monkeypatch.context() as m:
            m.setattr("softlabels.making.site.finish_in", lambda *_: 1 / 0)
            with suppress(ZeroDivisionError):
                build_over(place, tmp_path / "a", corpus)
        assert {done_name(0), "claims/block-00000.json"} <= place.files.keys()
        assert "manifest.json" not in place.files
        damage(place, SHARDS[1])
        repair = repaired(place, tmp_path / "b")
        assert repair.rebuild == [SHARDS[1]]
        assert done_name(0) not in place.files
        assert done_name(2) in place.files
        place.requests.clear()
        assert build_over(place, tmp_path / "c", corpus) == 2
        assert not [r for r in place.requests if r == f"read {SHARDS[3]}"], "it is whole"
        assert repaired(place, tmp_path / "d").whole
    finally:
        place_leases.leases_of.cache_clear()


def test_of_very_many_shards_too_only_those_are_made_that_were_withdrawn(
    built, tmp_path, corpus, monkeypatch
):
    """A builder does not ask which of so many are recorded: claims tell it."""
    monkeypatch.setattr("softlabels.making.site.COUNTED", 0)
    monkeypatch.setattr("softlabels.making.site.PAGE", 4)
    place = in_memory(built)
    damage(place, SHARDS[2])
    assert repaired(place, tmp_path / "a").rebuild == [SHARDS[2]]
    assert build_over(place, tmp_path / "b", corpus) == 2


def test_a_shard_that_is_gone_has_a_way_out_that_works(built, tmp_path, corpus):
    place = in_memory(built)
    place.files.pop(SHARDS[0])
    with pytest.raises(
        IntegrityError, match="run `softlabels repair mem://bucket`, which withdraws"
    ):
        build_over(place, tmp_path / "a", corpus)
    assert repaired(place, tmp_path / "b").rebuild == [SHARDS[0]]
    assert build_over(place, tmp_path / "c", corpus) == 2


def test_another_file_at_the_name_of_a_shard_is_moved_aside(built, tmp_path, corpus):
    place = in_memory(built)
    for name in ("manifest.json", "README.md", "commits/00001.json"):
        place.files.pop(name)
    place.put(SHARDS[1], b"somebody's")
    with pytest.raises(IntegrityError, match=r"is not the shard of this plan.*`softlabels repair"):
        build_over(place, tmp_path / "a", corpus)
    repair = repaired(place, tmp_path / "b")
    assert repair.rebuild == [SHARDS[1]]
    (aside,) = repair.quarantine
    assert place.files[aside][0] == b"somebody's"
    assert build_over(place, tmp_path / "c", corpus) == 2


# -- deaths ---------------------------------------------------------------------------------------


Fault = tuple[type[BaseException], bool]
FAULTS: dict[str, Fault] = {
    "death": (Died, False),
    "out of reach from then on": (RemoteError, False),
    "one request fails": (RemoteError, True),
}


def die(
    built: Path,
    tmp_path: Path,
    corpus: str,
    at: int,
    bad: dict[str, bytes | None],
    fault: Fault = FAULTS["death"],
) -> bool:
    """Die at a moment of a repair, repair again, build: the store of before. False: it ended before that."""
    place = in_memory(built)
    for name, data in bad.items():
        place.files.pop(name) if data is None else place.put(name, data)
    place.dies_at, (place.dies_with, place.once) = at, fault
    died = False
    try:
        repaired(place, tmp_path / f"a{at}")
    except (Died, RemoteError):
        died = True
    place.dies_at = None
    for name, data in bad.items():
        copies = [
            d for n, (d, _) in place.files.items() if n == name or n.startswith("quarantine/")
        ]
        assert not data or data in copies or not name.startswith("data/"), "what was judged is kept"
    repaired(place, tmp_path / f"b{at}")
    build_over(place, tmp_path / f"c{at}", corpus)
    found = {n: d for n, (d, _) in place.files.items() if not n.startswith("quarantine/")}
    assert found.keys() == files_of(built).keys()
    for name, data in files_of(built).items():
        if name.startswith("data/"):
            assert found[name] == data, name
    digest = json.loads((built / "manifest.json").read_text())["content_digest"]
    assert json.loads(found["manifest.json"])["content_digest"] == digest
    assert WITHDRAWN not in found.values()
    return died


def test_a_build_goes_on_where_a_repair_died_before_it_deleted_its_mark(built, tmp_path, corpus):
    """Of the manifest, the card, and a record: what it withdraws of a shard that rotted."""
    place = in_memory(built)
    damage(place, SHARDS[1])
    repaired(place, tmp_path / "count")
    marked = {
        r.removeprefix("remove "): at
        for at, r in enumerate(place.requests)
        if r.startswith("remove ") and "claims/" not in r
    }
    assert set(marked) == {"manifest.json", "README.md", "commits/00001.json"}
    for i, (name, at) in enumerate(marked.items()):
        place = in_memory(built)
        damage(place, SHARDS[1])
        place.dies_at = 2 * at
        with pytest.raises(Died):
            repaired(place, tmp_path / f"a{i}")
        place.dies_at = None
        assert place.files[name][0] == WITHDRAWN
        recorded = name != "commits/00001.json"
        assert (1 in recorded_in(place, range(4))) == recorded
        assert build_over(place, tmp_path / f"b{i}", corpus) == (0 if recorded else 2)
        assert WITHDRAWN not in [data for data, _ in place.files.values()]
        assert place.files["README.md"][0].startswith(b"---")


@pytest.mark.parametrize(
    ("data", "says"),
    [(WITHDRAWN, "was withdrawn by a repair that did not end"), (b"{", "not valid")],
)
def test_a_record_that_is_none_has_a_way_out_that_works(built, tmp_path, corpus, data, says):
    place = in_memory(built)
    for name in ("manifest.json", "README.md"):
        place.files.pop(name)
    place.put("commits/00001.json", data)
    plan = read_plan(built)
    with pytest.raises(
        IntegrityError,
        match=rf"commits/00001\.json: {says}.*[;:] run `softlabels repair mem://bucket`",
    ):
        read_commit(place, plan, plan.shards[1])
    repaired(place, tmp_path / "a")
    assert build_over(place, tmp_path / "b", corpus) == 0


@pytest.fixture(scope="module")
def paged(tmp_path_factory, corpus) -> Path:
    """The same store, in pages of two shards."""
    store = tmp_path_factory.mktemp("paged") / "store"
    with small_pages(2):
        build_tiny(store, corpus, **JOB)
    return store


def torn_page(files: dict[str, bytes]) -> dict[str, bytes]:
    name = next(n for n in files if n.startswith("pages/manifest-00001-"))
    return {name: files[name][:-1]}


def test_a_store_in_pages_is_built_torn_and_mended(paged, corpus, tmp_path):
    place = MemoryPlace()
    with small_pages(2):
        assert build_over(place, tmp_path / "a", corpus) == 8
        assert set(place.files) == set(files_of(paged))
        (torn,) = bad = torn_page({n: d for n, (d, _) in place.files.items()})
        place.put(torn, bad[torn])
        assert repaired(place, tmp_path / "b").whole
        assert repaired(place, tmp_path / "c").actions == []
        damage(place, SHARDS[1])
        assert repaired(place, tmp_path / "d").rebuild == [SHARDS[1]]
        assert build_over(place, tmp_path / "e", corpus) == 2
        assert repaired(place, tmp_path / "f").whole


def test_a_repair_in_pages_may_die_at_some_requests(paged, corpus, tmp_path):
    bad = torn_page(files_of(paged))
    place = in_memory(paged)
    for name, data in bad.items():
        place.put(name, data)
    with small_pages(2):
        repaired(place, tmp_path / "count")
        first = next(i for i, r in enumerate(place.requests) if not r.startswith(("read", "list")))
        for at in range(2 * first, 2 * len(place.requests), 5):
            die(paged, tmp_path, corpus, at, bad)


def test_a_build_in_pages_may_die_at_some_requests(paged, corpus, tmp_path):
    with small_pages(2):
        place = MemoryPlace()
        build_over(place, tmp_path / "count", corpus)
        for at in range(0, 2 * len(place.requests), 7):
            place = MemoryPlace()
            place.dies_at = at
            with suppress(Died):
                build_over(place, tmp_path / f"a{at}", corpus)
            place.dies_at = None
            build_over(place, tmp_path / f"b{at}", corpus)
            assert set(place.files) == set(files_of(paged)), at


DAMAGE = {
    "a shard": lambda f: {SHARDS[1]: flipped(f[SHARDS[1]])},
    "a record and the manifest": lambda f: {
        "commits/00002.json": flipped(f["commits/00002.json"]),
        "manifest.json": flipped(f["manifest.json"]),
    },
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_repair_may_die_at_some_requests(built, tmp_path, corpus, kind):
    bad = DAMAGE[kind](files_of(built))
    place = in_memory(built)
    for name, data in bad.items():
        place.put(name, data)
    repaired(place, tmp_path / "count")
    requests = len(place.requests)
    first = next(i for i, r in enumerate(place.requests) if not r.startswith(("read", "list")))
    for at in range(2 * first, 2 * requests, 13):
        die(built, tmp_path, corpus, at, bad)


def test_a_plan_that_is_out_of_reach_is_not_damaged(built, tmp_path):
    place = in_memory(built)
    place.dies_at, place.dies_with, place.once = 2, RemoteError, True
    with pytest.raises(RemoteError, match=r"^mem://bucket: out of reach$"):
        repaired(place, tmp_path / "a")
    assert place.requests[1] == "read plan.json"


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", [*DAMAGE, "a page"])
def test_a_repair_may_meet_a_fault_at_any_request(built, paged, tmp_path, corpus, kind, fault):
    """docs/durability.md has how many there are."""
    store = paged if kind == "a page" else built
    bad = {**DAMAGE, "a page": torn_page}[kind](files_of(store))
    with small_pages(2) if store is paged else nullcontext():
        place = in_memory(store)
        for name, data in bad.items():
            place.put(name, data)
        repaired(place, tmp_path / "count")
        requests = len(place.requests)
        assert requests > 25
        for at in range(2 * requests):
            die(store, tmp_path, corpus, at, bad, FAULTS[fault])
    print(f"repair of {kind}, {fault}: {2 * requests}")


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("pages", [False, True])
def test_a_build_may_meet_a_fault_at_any_request(built, paged, tmp_path, corpus, pages, fault):
    store = paged if pages else built
    with small_pages(2) if pages else nullcontext():
        place = MemoryPlace()
        build_over(place, tmp_path / "count", corpus)
        requests = len(place.requests)
        for at in range(2 * requests):
            place = MemoryPlace()
            place.dies_at, (place.dies_with, place.once) = at, FAULTS[fault]
            with suppress(Died, RemoteError):
                build_over(place, tmp_path / f"a{at}", corpus)
            place.dies_at = None
            build_over(place, tmp_path / f"b{at}", corpus)
            assert set(place.files) == set(files_of(store)), at
    print(f"build{', in pages' if pages else ''}, {fault}: {2 * requests}")
