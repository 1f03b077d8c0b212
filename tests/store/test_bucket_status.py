"""`softlabels status s3://…`: as of a folder, from listings and what the claims in force say."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest
from click.testing import CliRunner

from softlabels.cli.main import main
from softlabels.core.records import canonical
from softlabels.errors import ConfigError, FormatError, RemoteError
from softlabels.making.claims import EXPIRY, Holder
from softlabels.making.place import PAGE, Entry, FolderPlace
from softlabels.making.place.claims import PlaceClaims
from softlabels.making.place.names import FREE, claim_name, done_name
from softlabels.making.status import status_in, status_of
from softlabels.store.remote.bucket import BucketPlace
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.store.s3 import Proxy, environment, s3_server

CHANGES = {"shard_rows": 2, "batch_tokens": 64, "limit_rows": 16}  # a row a batch, eight shards


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


@pytest.fixture
def begun(bucket, tmp_path):
    """A store of eight shards, of which three are done, and nobody at work."""
    with pytest.raises(KeyboardInterrupt):
        build_tiny(bucket, write_corpus(tmp_path / "corpus"), teacher=Stops(7), **CHANGES)
    return bucket


def files(address: str) -> dict[str, str]:
    """Names and versions of all that is there."""
    return {e.name: e.version for e in BucketPlace(address).list("")}


def claim(place: BucketPlace, holder: Holder) -> int:
    """Claim a lease for somebody that nobody ever held, so that it is not recorded; its shard."""
    return next(i for i in range(8) if place.create(claim_name(i), canonical(holder)))


def said(address: str) -> str:
    result = CliRunner().invoke(main, ["status", address])
    assert result.exit_code == 0, result.output
    return result.output


def test_what_is_done_and_what_is_held(server, begun, monkeypatch):
    assert status_of(begun).held == (), "who was interrupted has let go"
    place = BucketPlace(begun)
    number = claim(place, Holder.here())
    stale = claim(place, Holder(host="far", pid=7, token="t"))
    before = files(begun)
    with Proxy(server) as proxy, monkeypatch.context() as m:
        m.setenv("AWS_ENDPOINT_URL", proxy.url)
        status = status_of(begun)
        assert len(proxy.requests) == 4 + 2, "plan, records, claims, manifest; two claims"
        assert all(r.startswith("GET") for r in proxy.requests)
        assert not proxy.gets("/data/")
        assert not proxy.gets("/commits/")
    assert (status.planned, status.complete) == (True, False)
    assert (status.shards, status.shards_done) == (8, 3)
    held = {h.shard: h for h in status.held}
    assert set(held) == {number, stale}
    assert (held[number].state, held[number].pid) == ("working", os.getpid())
    assert held[stale].state == "working", "it cannot be looked at from here"
    now = time.time() + EXPIRY + 60
    monkeypatch.setattr(time, "time", lambda: now)
    held = {h.shard: h for h in status_of(begun).held}
    assert held[stale].state == "stale"
    assert held[stale].silent > EXPIRY
    text = said(begun)
    assert "3 of 8 done" in text
    assert f"shard {stale}: process 7 of far, stale" in text
    assert "any builder takes over" in text
    assert files(begun) == before, "it writes nothing"


def test_rate_and_time_left_are_by_the_buckets_clock(begun, monkeypatch):
    """Records ten seconds apart: one of them is before the rate, as in a folder."""
    real, at = BucketPlace.list, {}

    def timed(place: BucketPlace, folder: str, *, after: str = "") -> list[Entry]:
        entries = real(place, folder, after=after)
        for entry in (e for e in entries if e.name.startswith("commits/")):
            at.setdefault(entry.name, 1e9 + 10 * len(at))
        return [e._replace(modified=at.get(e.name, e.modified)) for e in entries]

    monkeypatch.setattr(BucketPlace, "list", timed)
    claim(BucketPlace(begun), Holder.here())
    status = status_of(begun)
    each = status.positions_done / 3
    assert status.positions_per_second == pytest.approx(each / 10, rel=0.2)
    left = (status.positions - status.positions_done) / status.positions_per_second
    assert status.seconds_left == pytest.approx(left)


def test_a_builder_that_was_killed_is_dead_at_once(begun):
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    me = dataclasses.replace(Holder.here(), pid=child.pid, started="")
    place = BucketPlace(begun)
    shard = claim(place, me)
    assert [h.state for h in status_of(begun).held] == ["working"]
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    status = status_of(begun)
    assert [h.state for h in status.held] == ["dead"]
    assert (status.working, status.seconds_left) == (0, None)
    assert "none is at work" in said(begun)
    place.create(done_name(shard), b"{}")
    assert status_of(begun).held == (), "all of it is done, whatever the claim says"


def test_who_plans_and_who_finishes(bucket, begun):
    place = BucketPlace(f"{bucket}/new")
    with closing(PlaceClaims(place, 0)) as claims:
        lease = claims.take_end("plan")
        assert lease is not None
        status = status_in(place)
        assert (status.planned, status.complete, status.shards) == (False, False, 0)
        assert f"the plan: process {os.getpid()} of" in said(f"{bucket}/new")
        lease.release()
        with pytest.raises(FormatError, match="holds no plan, so no build was begun there"):
            status_in(place)
    with closing(PlaceClaims(BucketPlace(begun), 8)) as claims:
        assert claims.take_end("finish") is not None
        assert [(h.shard, h.shards) for h in status_of(begun).held] == [(8, 0)]
        assert f"the manifest: process {os.getpid()} of" in said(begun)


def test_a_finished_store(bucket, tmp_path):
    build_tiny(bucket, write_corpus(tmp_path / "corpus"), **CHANGES)
    done = json.loads(CliRunner().invoke(main, ["status", bucket, "--json"]).output)
    assert (done["complete"], done["shards_done"], done["held"]) == (True, 8, [])
    build_tiny(tmp_path / "store", write_corpus(tmp_path / "corpus"), **CHANGES)
    folder = json.loads(
        CliRunner().invoke(main, ["status", str(tmp_path / "store"), "--json"]).output
    )
    assert folder | {"store": ""} == done | {"store": ""}
    assert ", complete" in said(bucket)


def test_what_is_none_is_said(bucket, monkeypatch):
    with pytest.raises(FormatError, match=rf"{bucket}: holds no plan, so no build was begun there"):
        status_of(bucket)
    with pytest.raises(RemoteError, match=r"other-bucket/store.*check the address"):
        status_of("s3://other-bucket/store")
    with pytest.raises(ConfigError, match="expected a folder, s3:// or gs://"):
        status_of("hf://datasets/a/b")
    result = CliRunner().invoke(main, ["status", bucket])
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "Traceback" not in result.output


def test_a_large_plan_takes_a_listing_a_thousand_and_no_more(tmp_path, monkeypatch):
    """2,500 shards, all but a few recorded: plan, 3 pages of records, one of claims, one look for the manifest."""
    build_tiny(tmp_path / "small", write_corpus(tmp_path / "corpus"), **CHANGES)
    place = Counting(tmp_path / "small")
    (tmp_path / "small" / "manifest.json").unlink()
    one = status_in(place)
    assert place.calls == {"read": 1, "list": 3}, "plan; records, claims, manifest"
    assert one.shards_done == 8
    place.calls.clear()
    for i in range(8, 2 * PAGE + 300):
        (tmp_path / "small" / "commits" / f"{i:05d}.json").touch()
    for i in range(3):
        place.create(claim_name(10**6 + i), FREE)
    assert status_in(place).shards_done == 8, "what is no shard of the plan is not counted"
    assert place.calls == {"read": 1, "list": 5, "create": 3}


class Counting(FolderPlace):
    """Counts what would be requests."""

    def __init__(self, root):
        super().__init__(root)
        self.calls: dict[str, int] = {}

    def read(self, name, *, limit):
        self.calls["read"] = self.calls.get("read", 0) + 1
        return super().read(name, limit=limit)

    def list(self, folder, *, after=""):
        self.calls["list"] = self.calls.get("list", 0) + 1
        return super().list(folder, after=after)

    def create(self, name, data):
        self.calls["create"] = self.calls.get("create", 0) + 1
        return super().create(name, data)
