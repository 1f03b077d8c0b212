"""A store in a bucket of Google's, whose listings tell no generation, and whose conditions are on one."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from softlabels.core.records import canonical
from softlabels.errors import RemoteError
from softlabels.making.claims import EXPIRY, Holder
from softlabels.making.place import HELD, TRIED
from softlabels.making.place.claims import PlaceClaims
from softlabels.making.place.names import FREE, claim_name, is_ours
from softlabels.making.place.quarantine import WITHDRAWN
from softlabels.making.place.repair import repair_at
from softlabels.store.remote.bucket import BucketPlace, probe
from softlabels.store.remote.push import push
from softlabels.store.verify import verify_store
from tests.fakes import TinyTeacher, build_tiny
from tests.store.gcs import Bucket, environment, gcs_server
from tests.store.made_up import files_of
from tests.store.places import check_place

JOB = {"limit_rows": 8, "shard_rows": 2, "batch_tokens": 64, "licence": "CC-BY-4.0"}
ADDRESS = "gs://bucket/store"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    with gcs_server() as (address, bucket):
        for name, value in environment(address).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("SOFTLABELS_CACHE", str(tmp_path / "cache"))
        yield bucket


@pytest.fixture(scope="module")
def built(tmp_path_factory, corpus) -> Path:
    """A finished store of four shards, in a folder."""
    store = tmp_path_factory.mktemp("built") / "store"
    build_tiny(store, corpus, **JOB)
    return store


def shards_of(bucket: Bucket) -> dict[str, bytes]:
    return {
        name.removeprefix("store/"): data
        for name, (data, _) in bucket.files.items()
        if name.startswith("store/data/")
    }


def test_a_bucket_of_googles_is_a_place(bucket):
    check_place(lambda: BucketPlace(ADDRESS), threads=4)


def test_a_claim_that_was_listed_is_taken_over(bucket):
    place, now = BucketPlace(ADDRESS), [0.0]
    place.create(claim_name(0), canonical(Holder(host="far", pid=7, token="t")))
    me = Holder(host="here", pid=1, token="q")
    with closing(PlaceClaims(place, 1, me=me, clock=lambda: now[0])) as claims:
        assert claims.take() is None
        now[0] += EXPIRY + 100
        lease = claims.take()
        assert lease is not None
        assert lease.holds()
        lease.release()
    assert place.read(claim_name(0), limit=99)[0] == FREE


def test_a_store_is_made_damaged_repaired_and_made_again(bucket, built, corpus):
    build_tiny(ADDRESS, corpus, **JOB)
    shards = {n: d for n, d in files_of(built).items() if n.startswith("data/")}
    assert shards_of(bucket) == shards
    name = sorted(shards)[1]
    bucket.put(f"store/{name}", shards[name][:-9])
    assert repair_at(ADDRESS).rebuild == [name]
    assert bucket.files[f"store/{name}"][0] == WITHDRAWN
    assert "store/manifest.json" not in bucket.files
    teacher = TinyTeacher()
    build_tiny(ADDRESS, corpus, teacher=teacher, **JOB)
    assert shards_of(bucket) == shards
    assert verify_store(ADDRESS).problems == []
    assert not [n for n in bucket.files if is_ours(n.removeprefix("store/"))]


def test_a_store_is_pushed(bucket, built):
    push(built, ADDRESS)
    assert verify_store(ADDRESS).problems == []


@pytest.mark.parametrize("begun", [False, True])
def test_listings_that_tell_another_version_than_reads_are_refused(bucket, begun):
    place = BucketPlace(ADDRESS)
    probe(place, begun)
    bucket.lists_tags = False
    with pytest.raises(RemoteError, match=r"its listings do not tell the version \(ETag\)"):
        probe(place, begun)
    assert [n for n in bucket.files if not n.endswith(TRIED)] == []


def test_a_service_that_tells_no_generation_is_refused(bucket, monkeypatch):
    monkeypatch.setattr("tests.store.gcs._Handler.tells_generations", False)
    with pytest.raises(RemoteError, match="tells no x-goog-generation"):
        probe(BucketPlace(ADDRESS))


def test_files_of_which_one_is_gone_are_removed(bucket):
    """Google refuses to delete what is not there."""
    place = BucketPlace(ADDRESS)
    names = [f"{HELD}/{i:08d}.json" for i in range(30)]
    for name in names[1:]:
        place.create(name, FREE)
    place.remove(*names)
    assert bucket.files == {}
