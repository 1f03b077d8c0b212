"""Claims: one holder at a time, taken over when it dies, by the file system's clock alone."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import shutil
import threading
import time
from pathlib import Path

import msgspec
import pytest

from softlabels.core.processes import Process, this_process
from softlabels.errors import StoreError
from softlabels.making import claims as claims_module
from softlabels.making.claims import EXPIRY, RENEWAL, Claims, Holder, at_work, clear_claims
from softlabels.making.repair import repair_store
from softlabels.store.verify import verify_store
from tests.fakes import Notices
from tests.store.made_up import files_of

ELSEWHERE = Process(host="elsewhere", pid=1, boot="0a1b2c3d4e5f", space="4", started="5")
FORK = multiprocessing.get_context("fork")


def claimed(store, *, process=ELSEWHERE, age=0.0, name="00000-0.json"):
    """A claim that another builder made and last renewed `age` seconds ago."""
    path = store / "claims" / name
    path.parent.mkdir(exist_ok=True)
    holder = Holder(**dataclasses.asdict(process), token="0" * 16)
    path.write_bytes(msgspec.json.encode(holder))
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))
    return path


def dead() -> Process:
    """A process of this host that has ended."""
    queue = FORK.Queue()
    child = FORK.Process(target=lambda: queue.put(this_process()))
    child.start()
    process = queue.get(timeout=30)
    child.join()
    return process


def parent() -> Process:
    """A process of this host that lives."""
    return dataclasses.replace(this_process(), pid=os.getppid(), started="")


# -- taking and releasing -------------------------------------------------------------------------


def test_a_claim_names_its_holder_and_is_gone_when_released(tmp_path):
    claim = Claims(tmp_path).take([3, 4])
    assert claim is not None
    assert claim.index == 3
    holder = msgspec.json.decode((tmp_path / "claims" / "00003-0.json").read_bytes(), type=Holder)
    assert str(holder) == str(this_process())
    claim.release()
    assert files_of(tmp_path) == {}
    assert Claims(tmp_path).take([3]) is not None


def test_a_claimed_shard_is_left_to_its_holder(tmp_path):
    mine, theirs = Claims(tmp_path), Claims(tmp_path)
    first = mine.take([0, 1])
    second = theirs.take([0, 1])
    assert first is not None
    assert second is not None
    assert {first.index, second.index} == {0, 1}
    assert mine.take([0, 1]) is None
    assert theirs.take([0, 1]) is None
    with first:
        pass
    third = theirs.take([0, 1])
    assert third is not None
    assert third.index == first.index
    assert not [n for n in files_of(tmp_path) if ".tmp-" in n]


def test_an_error_releases_the_shard(tmp_path):
    claim = Claims(tmp_path).take([0])
    assert claim is not None
    with pytest.raises(KeyboardInterrupt), claim:
        raise KeyboardInterrupt
    assert files_of(tmp_path) == {}


def race(store, builders, target, wrap):
    """Let `builders` of one kind (threads, processes) start at once; returns what each of them got."""
    start, got = wrap
    crew = [target(target=run_racer, args=(store, start, got)) for _ in range(builders)]
    for member in crew:
        member.start()
    results = [got.get() for _ in crew]
    for member in crew:
        member.join()
    return [r for r in results if r is not None]


def run_racer(store, start, got):
    claims = Claims(store)
    start.wait()
    claim = claims.take([0])
    got.put(None if claim is None else claim.path.name)
    start.wait()  # nobody ends before all have tried: the end of a process is the end of its claim


@pytest.mark.parametrize("kind", ["threads", "processes"])
@pytest.mark.parametrize("expired", [False, True])
def test_one_of_many_takers_wins(tmp_path, kind, expired):
    import queue

    n = 12
    for i in range(10):
        store = tmp_path / str(i)
        store.mkdir()
        if expired:
            claimed(store, age=EXPIRY + 1)
        if kind == "threads":
            won = race(store, n, threading.Thread, (threading.Barrier(n), queue.Queue()))
        else:
            won = race(store, n, FORK.Process, (FORK.Barrier(n), FORK.Queue()))
        assert won == [f"00000-{int(expired)}.json"]


def test_every_shard_goes_to_one_of_many_takers(tmp_path):
    got: list[int] = []

    def run():
        claims = Claims(tmp_path)
        while claim := claims.take(range(40)):
            got.append(claim.index)

    crew = [threading.Thread(target=run) for _ in range(8)]
    for member in crew:
        member.start()
    for member in crew:
        member.join()
    assert sorted(got) == list(range(40))


# -- the dead -------------------------------------------------------------------------------------


def test_the_first_free_shard_is_taken_or_in_a_crowd_one_of_the_first(tmp_path):
    few = [Claims(tmp_path / "few").take(range(200)).index for _ in range(claims_module.CROWD)]
    assert few == list(range(claims_module.CROWD))
    crowd = [Claims(tmp_path / "crowd").take(range(200)).index for _ in range(80)]
    assert sorted(crowd) != crowd
    assert max(crowd) < 80 + 80 / claims_module.CROWD
    in_order = Claims(tmp_path / "crowd").take(range(200), in_order=True).index
    assert in_order == min(set(range(200)) - set(crowd))


def test_a_claim_of_a_process_that_is_gone_is_taken_over_at_once(tmp_path):
    claimed(tmp_path, process=dead())
    claim = Claims(tmp_path).take([0])
    assert claim is not None
    assert claim.path.name == "00000-1.json"
    assert Claims(tmp_path).take([0]) is None
    claim.release()
    assert files_of(tmp_path) == {}  # the dead one's, too


def test_an_earlier_life_of_our_pid_is_dead(tmp_path):
    """A container restarts with the same pid."""
    claimed(tmp_path, process=dataclasses.replace(this_process(), started="1"))
    claimed(tmp_path, process=this_process(), name="00001-0.json")  # of a build that ended
    assert Claims(tmp_path).take([1]) is not None
    assert Claims(tmp_path).take([0]) is not None


def test_the_living_are_left_alone(tmp_path):
    claimed(tmp_path, process=parent())
    claimed(tmp_path, process=dataclasses.replace(dead(), host="elsewhere"), name="00001-0.json")
    assert Claims(tmp_path).take([0, 1]) is None


@pytest.mark.parametrize("field", ["boot", "space"])
@pytest.mark.parametrize(("age", "taken"), [(EXPIRY - 60, False), (EXPIRY + 60, True)])
def test_containers_that_share_a_hosts_name_judge_each_other_by_age(tmp_path, field, age, taken):
    """Each sees other processes under the pids: the one that holds the claim is not to be seen."""
    claimed(tmp_path, process=dataclasses.replace(dead(), **{field: "7"}), age=age)
    assert (Claims(tmp_path).take([0]) is not None) == taken


def test_a_claim_of_an_older_version_only_ages(tmp_path):
    """It says host and pid; which namespace the pid is of is not known."""
    me = this_process()
    old = Process(host=me.host, pid=dead().pid)
    claimed(tmp_path, process=old, age=EXPIRY + 60)
    claimed(tmp_path, process=old, name="00001-0.json")
    claims = Claims(tmp_path)
    assert claims.take([0]) is not None
    assert (claims.take([1]) is None) == bool(me.space)


@pytest.mark.parametrize("clock", [-1e6, 0.0, 1e6])
@pytest.mark.parametrize(("age", "taken"), [(EXPIRY - 60, False), (EXPIRY + 60, True)])
def test_age_is_judged_by_the_file_system_whatever_the_hosts_clock_says(
    tmp_path, monkeypatch, clock, age, taken
):
    claimed(tmp_path, age=age)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + clock)
    assert (Claims(tmp_path).take([0]) is not None) == taken


@pytest.mark.parametrize("skew", [-1e6, 1e6])
@pytest.mark.parametrize(("age", "taken"), [(EXPIRY - 60, False), (EXPIRY + 60, True)])
def test_a_file_system_with_another_clock(tmp_path, monkeypatch, skew, age, taken):
    """All that it writes, the probe included, carries its own time."""
    claimed(tmp_path, age=age - skew)
    real = claims_module.publish

    def publish(path, data):
        done = real(path, data)
        there = path.stat().st_mtime + skew
        os.utime(path, (there, there))
        return done

    monkeypatch.setattr(claims_module, "publish", publish)
    assert (Claims(tmp_path).take([0]) is not None) == taken


IN_2099 = -73 * 365.25 * 24 * 3600.0
"""An age."""


class Clock:
    """This process's own, for the module of claims."""

    def __init__(self, monkeypatch):
        self.now, self.slept = 0.0, 0.0
        monkeypatch.setattr(claims_module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(claims_module.time, "sleep", self.sleep)

    def sleep(self, seconds):
        self.now += seconds
        self.slept += seconds


def test_a_claim_from_the_future_is_dead_when_it_was_seen_unchanged_for_long_enough(
    tmp_path, monkeypatch
):
    clock, path = Clock(monkeypatch), claimed(tmp_path, age=IN_2099)
    claims = Claims(tmp_path)
    assert claims.take([0]) is None
    clock.now += EXPIRY - 1
    assert claims.take([0]) is None
    later = path.stat().st_mtime + 5
    os.utime(path, (later, later))  # it lives, whatever its clock
    clock.now += 2
    assert claims.take([0]) is None
    clock.now += EXPIRY + 1
    assert Claims(tmp_path).take([0]) is None, "who looks for the first time knows nothing"
    claim = claims.take([0])
    assert claim is not None
    assert claim.path.name == "00000-1.json"


def test_a_renewal_brings_a_claim_from_the_future_to_the_present(tmp_path, monkeypatch):
    clock, path = Clock(monkeypatch), claimed(tmp_path, age=IN_2099)
    claims = Claims(tmp_path)
    assert claims.take([0]) is None
    os.utime(path)
    clock.now += 2 * EXPIRY
    assert claims.take([0]) is None


def test_only_who_plans_takes_a_claim_from_the_future_for_a_builder(tmp_path):
    claimed(tmp_path, age=IN_2099)
    assert at_work(tmp_path, unsure=True)
    assert not at_work(tmp_path)
    claimed(tmp_path, name="00001-0.json")
    assert at_work(tmp_path)


def test_a_repair_watches_claims_from_the_future_and_goes_on(built, tmp_path, monkeypatch):
    store = Path(shutil.copytree(built, tmp_path / "store"))
    (store / "manifest.json").unlink()
    clock = Clock(monkeypatch)
    claimed(store, age=IN_2099)
    claimed(store, age=IN_2099, name="00001-0.json")
    notices = Notices()
    assert repair_store(store, reporter=notices).whole
    assert EXPIRY < clock.slept < EXPIRY + 20
    assert notices.lines == [
        "waiting for up to 300 s to see whether process 1 of elsewhere, who holds shard 0, is at work: the time of "
        "00000-0.json lies in the future"
    ]
    assert verify_store(store).problems == []


def test_a_repair_refuses_a_builder_that_renews_a_claim_from_the_future(
    built, tmp_path, monkeypatch
):
    store = Path(shutil.copytree(built, tmp_path / "store"))
    (store / "manifest.json").unlink()
    clock, path = Clock(monkeypatch), claimed(store, age=IN_2099)

    def renewed(seconds):
        clock.now += seconds
        if clock.now > 100:
            os.utime(path)

    monkeypatch.setattr(claims_module.time, "sleep", renewed)
    with pytest.raises(StoreError, match=r"a builder is at work on it \(process 1 of elsewhere"):
        repair_store(store)
    assert clock.now < 120
    assert not (store / "manifest.json").exists()


def test_the_highest_generation_is_in_force(tmp_path):
    claimed(tmp_path, age=EXPIRY + 1)
    claimed(tmp_path, age=EXPIRY + 1, name="00000-1.json")
    path = claimed(tmp_path, name="00000-10.json")
    assert Claims(tmp_path).take([0]) is None
    os.utime(path, (0, 0))
    claim = Claims(tmp_path).take([0])
    assert claim is not None
    assert claim.path.name == "00000-11.json"
    claim.release()
    assert files_of(tmp_path) == {}


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b'{"host": 1}'])
def test_a_claim_that_cannot_be_read_only_ages(tmp_path, content):
    path = claimed(tmp_path)
    path.write_bytes(content)
    assert Claims(tmp_path).take([0]) is None
    os.utime(path, (0, 0))
    assert Claims(tmp_path).take([0]) is not None


def test_renewal(tmp_path, monkeypatch):
    claim = Claims(tmp_path).take([0])
    assert claim is not None
    os.utime(claim.path, (0, 0))
    claim.renew()
    assert claim.path.stat().st_mtime == 0  # not at every call
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + RENEWAL)
    claim.renew()
    assert time.time() - claim.path.stat().st_mtime < 60
    claim.path.unlink()
    monkeypatch.setattr(time, "monotonic", lambda: real() + 3 * RENEWAL)
    claim.renew()  # lost: the work goes on, and the commit decides
    claim.release()
    assert files_of(tmp_path) == {}


# -- the end --------------------------------------------------------------------------------------


def test_clearing_removes_claims_and_what_the_dead_left(tmp_path):
    clear_claims(tmp_path)
    claimed(tmp_path)
    claimed(tmp_path, name="00012-3.json")
    (tmp_path / "claims" / f".tmp-{dead()}-0a1b2c3d-now").touch()
    clear_claims(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_clearing_leaves_a_living_builders_file(tmp_path):
    claimed(tmp_path)
    (tmp_path / "claims" / f".tmp-{parent()}-0a1b2c3d-now").touch()
    clear_claims(tmp_path)
    assert len(files_of(tmp_path)) == 1


def test_a_folder_that_is_removed_under_our_hands_leaves_nothing_to_take(tmp_path, monkeypatch):
    def publish(path, _data):
        e = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        raise StoreError(f"{path}: gone") from e

    monkeypatch.setattr(claims_module, "publish", publish)
    assert Claims(tmp_path).take([0]) is None


def test_a_full_disk_says_so(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="the disk is full"):
        Claims(tmp_path).take([0])


def test_verify_reports_a_claim_in_a_finished_store(store):
    path = claimed(store)
    assert verify_store(store).problems == [
        f"{path}: no record of the store names it; look at it, and move it to where it belongs"
    ]


def test_repair_removes_claims_once_all_shards_are_there(store):
    path = claimed(store, age=EXPIRY + 1)
    shard = next((store / "data").iterdir())
    assert [a.file for a in repair_store(store, dry_run=True).actions] == ["claims/00000-0.json"]
    assert path.exists()
    whole = shard.read_bytes()
    shard.unlink()
    found = repair_store(store)
    assert found.rebuild == [f"data/{shard.name}"]
    assert found.problems == []
    assert path.exists()  # whoever makes the shard takes over from it
    shard.write_bytes(whole)
    assert repair_store(store).whole
    assert not (store / "claims").exists()
    assert verify_store(store).problems == []
