"""`softlabels build --out s3://…`: the store of a folder, made by any number of builders, whatever happens to them."""

from __future__ import annotations

import dataclasses
import random
import re
import time
from contextlib import closing
from pathlib import Path

import pytest

import softlabels
from softlabels.builder.build import build, build_at, site_of
from softlabels.builder.dry_run import dry_run
from softlabels.core.records import read_record
from softlabels.core.settings import place_from
from softlabels.errors import ConfigError, IntegrityError, PlanError
from softlabels.format.manifest import Commit, load_manifest
from softlabels.making.claims import EXPIRY, Holder
from softlabels.making.place import HELD, FolderPlace
from softlabels.making.place.blocks import Blocks
from softlabels.making.place.claims import FRESH, PlaceClaims
from softlabels.making.place.holding import RENEWAL
from softlabels.making.place.names import (
    DONE,
    FREE,
    FULL,
    claim_content,
    claim_name,
    done_name,
    is_free,
    may_be_beside,
)
from softlabels.making.place.plan import Mirror
from softlabels.making.site import PlaceSite
from tests.fakes import Notices, TinyTeacher, build_tiny, config_of
from tests.store.made_up import files_of
from tests.store.s3 import Proxy, environment, get, put, s3_server

_CLAIM = re.compile(r"PUT .*/claims/\d+\.json")
TIMED = ("commits/", "README.md", "manifest.json")
"""Files that tell how long a build took."""


@pytest.fixture(scope="module")
def server():
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(server, tmp_path, monkeypatch, request):
    """Address of a prefix of its own."""
    for name, value in environment(server, tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{request.node.name}"


def there(server: str, bucket: str) -> dict[str, bytes]:
    """All files of a store at an address."""
    with site_of(bucket, only_read=True) as site:
        names = [e.name for e in site._mirror.place.list("")]
    prefix = bucket.removeprefix("s3://bucket/")
    return {name: get(server, f"{prefix}/{name}") for name in names}


def check_same(found: dict[str, bytes], folder: Path) -> None:
    wanted = files_of(folder)
    assert sorted(found) == sorted(wanted)
    for name, content in wanted.items():
        assert name.startswith(TIMED) or found[name] == content, name


# -- the same store -------------------------------------------------------------------------------


def test_a_store_in_a_bucket_is_the_one_in_a_folder(server, bucket, corpus, tmp_path, monkeypatch):
    in_folder = build_tiny(tmp_path / "store", corpus)
    with Proxy(server) as proxy:
        with monkeypatch.context() as m:
            m.setenv("AWS_ENDPOINT_URL", proxy.url)
            in_bucket = build_tiny(bucket, corpus)
        shards = len(in_bucket.shards)
        puts = [r for r in proxy.requests if r.startswith("PUT")]
        for kind in ("/data/", "/commits/", ".done.json"):
            assert sum(kind in r for r in puts) == shards
        before = len(proxy.requests)
        assert (
            before <= 5 * shards + 45
        )  # a slow machine renews more; with leases of several shards there are less
    assert in_bucket.content_digest == in_folder.content_digest
    assert in_bucket.column_bytes == in_folder.column_bytes
    check_same(there(server, bucket), tmp_path / "store")
    one, two = softlabels.open_store(bucket), softlabels.open_store(tmp_path / "store")
    assert (one.row(9).targets.ids == two.row(9).targets.ids).all()


def test_a_builder_asks_so_often_before_it_takes_its_first_lease(
    server, bucket, corpus, monkeypatch
):
    """As docs/many-builders.md says: who plans, who joins first, who joins then."""
    counts = []
    with Proxy(server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        for _ in range(3):
            proxy.requests.clear()
            with pytest.raises(KeyboardInterrupt):
                build_tiny(bucket, corpus, teacher=Stops(0), batch_tokens=64)
            claims = (i for i, r in enumerate(proxy.requests) if _CLAIM.search(r))
            counts.append(next(claims))
    assert counts == [21, 9, 8]


def test_a_finished_one_is_found_and_another_job_refused(bucket, corpus):
    first = build_tiny(bucket, corpus, limit_rows=3)
    notices = Notices()
    teacher = TinyTeacher()
    config = config_of(corpus, limit_rows=3)
    assert build(config, bucket, teacher=teacher, reporter=notices) == first
    assert f"{bucket} is complete already" in notices.lines
    assert teacher.seen == 0
    with pytest.raises(PlanError, match=rf"{bucket}: was planned with targets k = 5.*\(--k\)"):
        build_tiny(bucket, corpus, limit_rows=3, k=6)
    with pytest.raises(PlanError, match="targets k = 5"):
        dry_run(config_of(corpus, limit_rows=3, k=6), bucket, teacher=TinyTeacher())


def test_what_is_not_ours_is_refused_and_left(server, bucket, corpus):
    put(server, f"{bucket.removeprefix('s3://bucket/')}/notes.txt", b"mine")
    with pytest.raises(PlanError, match=r"not empty and not a store \(it holds 'notes.txt'\)"):
        build_tiny(bucket, corpus)
    assert there(server, bucket) == {"notes.txt": b"mine"}


def test_a_dictionary_is_trained_on_the_first_shards(bucket, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("softlabels.making.dictionary.POSITIONS", 1)
    packed = {"profile": "packed", "values": "nat16"}
    in_folder = build_tiny(tmp_path / "store", corpus, **packed)
    assert build_tiny(bucket, corpus, **packed).content_digest == in_folder.content_digest
    assert in_folder.identity.encoding.dictionary_shards == 1


def test_the_same_protocol_makes_it_in_a_folder(corpus, tmp_path):
    build_tiny(tmp_path / "store", corpus)
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    build_over(FolderPlace(out), scratch, corpus)
    check_same(files_of(out), tmp_path / "store")


def build_over(place, scratch: Path, corpus: str, teacher: TinyTeacher | None = None, **changes):
    """Build in a place that has no address."""
    site = PlaceSite(Mirror(place, scratch))
    return build_at(config_of(corpus, **changes), site, teacher=teacher or TinyTeacher())


def test_an_address_may_stand_in_the_file_and_others_are_refused(tmp_path):
    toml = tmp_path / "job.toml"
    toml.write_text('out = "s3://bucket/store"\n', encoding="utf-8")
    assert place_from(toml, None) == "s3://bucket/store"
    assert place_from(toml, Path("here")) == Path("here")
    with (
        pytest.raises(ConfigError, match="a store cannot be built there"),
        site_of("hf://datasets/a/b"),
    ):
        pass


# -- broken off, and gone on with -----------------------------------------------------------------


class Stops(TinyTeacher):
    """Is interrupted after so many rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.left = rows

    def logits(self, rows):
        self.left -= len(rows)
        if self.left < 0:
            raise KeyboardInterrupt
        yield from super().logits(rows)


def test_a_lease_is_done_as_soon_as_its_last_shard_is_written(corpus, tmp_path):
    """The next shard may take longer than a claim lasts, and nobody renews a claim on what is written."""
    (tmp_path / "out").mkdir()
    place = FolderPlace(tmp_path / "out")

    class Looks(TinyTeacher):
        shards, found = 0, False

        def logits(self, rows):
            self.shards += 1
            for chunk in super().logits(rows):
                yield chunk
                if self.shards == 2 and not self.found:
                    time.sleep(
                        0.02
                    )  # a chunk, in which the thread that writes the first shard ends
                    self.found = any(e.name.endswith(DONE) for e in place.list(HELD))

    teacher = Looks(chunk=5)
    build_over(place, tmp_path / "a", corpus, teacher, batch_tokens=8 * 64)
    assert teacher.found


def test_what_is_recorded_is_not_made_again(corpus, tmp_path):
    whole = build_tiny(tmp_path / "store", corpus)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(KeyboardInterrupt):
        build_over(FolderPlace(out), tmp_path / "a", corpus, Stops(20), batch_tokens=64)
    done = [read_record(p, Commit) for p in (out / "commits").iterdir()]
    assert len(done) == 2
    again = TinyTeacher()
    build_over(FolderPlace(out), tmp_path / "b", corpus, again, batch_tokens=64)
    assert again.seen == whole.identity.corpus.positions - sum(c.positions for c in done)
    check_same(files_of(out), tmp_path / "store")


def test_another_file_at_the_name_of_a_shard_is_named_and_left(corpus, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(KeyboardInterrupt):
        build_over(FolderPlace(out), tmp_path / "a", corpus, Stops(1), batch_tokens=64)
    name = "data/train-00001-of-00005.parquet"
    FolderPlace(out).create(name, b"somebody's")
    with pytest.raises(IntegrityError, match=rf"{name}: is there already and is not the shard"):
        build_over(FolderPlace(out), tmp_path / "b", corpus)
    assert (out / name).read_bytes() == b"somebody's"
    assert not (out / "manifest.json").exists()


def test_a_shard_without_a_record_is_adopted(corpus, tmp_path):
    whole = build_tiny(tmp_path / "store", corpus)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(KeyboardInterrupt):
        build_over(FolderPlace(out), tmp_path / "a", corpus, Stops(1), batch_tokens=64)
    for shard in whole.shards:
        FolderPlace(out).create(shard.name, (tmp_path / "store" / shard.name).read_bytes())
    found = build_over(FolderPlace(out), tmp_path / "b", corpus)
    assert found.content_digest == whole.content_digest


def test_a_shard_that_is_gone_since_is_told(corpus, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    build_over(FolderPlace(out), tmp_path / "a", corpus)
    (out / load_manifest(out).shards[1].name).unlink()
    with pytest.raises(IntegrityError, match=r"missing, recorded with .* \(1 of 5 shards are not"):
        build_over(FolderPlace(out), tmp_path / "b", corpus)


# -- claims ---------------------------------------------------------------------------------------


class Clock:
    """Seconds, as they are told."""

    now = 1e6

    def __call__(self) -> float:
        return self.now


def builder(place, clock: Clock, host: str, shards: int = 1) -> PlaceClaims:
    me = Holder(host=host, pid=1, token=host)
    return PlaceClaims(place, shards, me=me, clock=clock, chance=random.Random(0))


def test_a_claim_that_does_not_change_is_taken_over_by_the_clock_of_who_watches(tmp_path):
    place = FolderPlace(tmp_path)
    mine, theirs = Clock(), Clock()
    theirs.now = -5e5  # what it says is nobody's business
    a, b = builder(place, theirs, "a"), builder(place, mine, "b")
    held = a.take()
    assert held is not None
    assert b.take() is None  # seen first now
    mine.now += EXPIRY - 1
    assert b.take() is None
    theirs.now += RENEWAL
    held.renew()
    mine.now += 2
    assert b.take() is None  # renewed since
    mine.now += EXPIRY + 1
    taken = b.take()
    assert taken is not None
    assert taken.taken_over
    theirs.now += RENEWAL
    held.renew()
    assert held.version is None  # and a sees it
    held.release()
    assert [e.name for e in place.list("claims")] == [claim_name(0)]


def test_one_of_many_takes_over(tmp_path):
    place, clock = FolderPlace(tmp_path), Clock()
    assert builder(place, clock, "dead").take() is not None
    crew = [builder(place, clock, f"host-{i}") for i in range(6)]
    assert [b.take() for b in crew] == [None] * 6
    clock.now += EXPIRY + 1
    assert sum(b.take() is not None for b in crew) == 1


def test_a_process_of_this_host_that_is_gone_is_dead_at_once(tmp_path):
    place = FolderPlace(tmp_path)
    me = dataclasses.replace(Holder.here(), started="1")
    assert place.create(claim_name(0), claim_content(me, "", 0)) is not None
    with closing(PlaceClaims(place, 1)) as claims:
        assert claims.take() is not None


def test_it_is_dead_even_if_its_claim_was_listed_while_there_was_other_work(tmp_path):
    place = FolderPlace(tmp_path)
    me = dataclasses.replace(Holder.here(), started="1")
    assert place.create(claim_name(0), claim_content(me, "", 0)) is not None
    with closing(PlaceClaims(place, 2)) as claims:
        other = claims.take()
        assert other is not None
        assert other.shards.start == 1
        claims.finish(other, b"{}")
        taken = claims.take()
        assert taken is not None
        assert taken.shards.start == 0


def test_the_length_of_a_claim_tells_its_host_whoever_renews_it_how_often(tmp_path):
    place, here = FolderPlace(tmp_path), Holder.here()
    there = dataclasses.replace(here, host="another")
    for i, (holder, renewals) in enumerate([(here, 0), (here, 10**6), (there, 0), (there, 7)]):
        place.create(claim_name(i), claim_content(holder, f"{i:016x}", renewals))
    place.create(claim_name(4), FREE)
    beside = [may_be_beside(entry, here) for entry in place.list("claims")]
    assert beside == [True, True, False, False, False]
    assert [is_free(entry) for entry in place.list("claims")] == [False] * 4 + [True]


def test_claims_of_other_hosts_are_not_read(tmp_path, monkeypatch):
    place, clock = FolderPlace(tmp_path), Clock()
    read = []
    monkeypatch.setattr(place, "read", lambda name, limit: read.append(name))
    assert builder(place, clock, "a").take() is not None
    assert builder(place, clock, "b").take() is None
    assert read == []


def test_marks_of_blocks_beyond_a_page_are_seen_when_those_before_are_done(tmp_path, monkeypatch):
    monkeypatch.setattr("softlabels.making.place.PAGE", 4)
    place, clock = FolderPlace(tmp_path), Clock()
    teller, told = (Blocks(place, [1] * 7, clock) for _ in range(2))
    for block in range(6):
        teller.mark(block, FULL)
        if block < 5:
            teller.mark(block)
    told.read_marks(FRESH)
    assert told.left == 5
    told.read_marks(FRESH)  # it was seen this moment
    assert told.left == 5
    for left in (3, 2, 2):
        clock.now += FRESH
        told.read_marks(FRESH)
        assert told.left == left
    assert told.is_full(5)
    where = told.where_to_look(7, random.Random(0), fresh=FRESH)
    assert list(where) == [6, 5]  # what nobody said is full comes first


def test_a_lease_that_was_let_go_of_is_free_soon_and_known_to_have_been_somebodys(tmp_path):
    place, clock = FolderPlace(tmp_path), Clock()
    a, b, c = (builder(place, clock, name) for name in "abc")
    held = a.take()
    assert held is not None
    assert b.take() is None
    held.release()
    clock.now += FRESH
    taken = b.take()
    assert taken is not None
    assert taken.taken_over  # so what is recorded of it is asked for
    assert c.take() is None
    assert not place.swap(held.name, b"late", held.version or "")


def test_who_waits_is_told_that_the_claims_are_gone(tmp_path):
    place, clock = FolderPlace(tmp_path), Clock()
    a, b = builder(place, clock, "a"), builder(place, clock, "b")
    held = a.take()
    assert held is not None
    assert b.take() is None
    place.remove(held.name)
    clock.now += EXPIRY
    assert b.take() is None
    assert b.cleared
    assert b.take() is not None  # they were, but the store is not finished


def test_a_lease_that_is_done_is_done_whatever_its_claim_says(tmp_path):
    place, clock = FolderPlace(tmp_path), Clock()
    a, b = builder(place, clock, "a"), builder(place, clock, "b")
    held = a.take()
    assert held is not None
    assert b.take() is None
    a.finish(held, b"{}")
    assert place.read(done_name(0), limit=9)[0] == b"{}"
    clock.now += 2 * EXPIRY
    assert b.take() is None
    assert b.done


def test_leases_of_a_large_plan_are_of_many_shards_and_go_on_one_after_the_other(tmp_path):
    claims = builder(FolderPlace(tmp_path), Clock(), "a", shards=5000)
    first = claims.take()
    assert first is not None
    assert 8 <= len(first.shards) <= 16
    second = claims.take()
    assert second is not None
    assert second.shards.start == first.shards.stop


@pytest.mark.slow
def test_builders_that_are_killed_at_random_and_one_that_sleeps_past_its_lease(tmp_path):
    """A small form of `python -m tests.benchmarks.bucket`."""
    from tests.benchmarks.bucket import torment

    found = torment(tmp_path, shards=16, builders=3, kills=6, seed=1)
    assert found["kills"] >= 3  # while the one that sleeps holds a lease
    assert found["paused"] == 1
    assert found["same_digests"] is True
    assert found["exit_codes"] == [0, 0, 0]
