"""What may take a shard away: proven damage, by whoever holds the shard, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path

import pytest

from softlabels.core.records import read_record
from softlabels.errors import IntegrityError, StoreError, UnreadableError
from softlabels.format.manifest import Commit, load_manifest
from softlabels.making import claims as claims_module
from softlabels.making import finish as finish_module
from softlabels.making.builder import Builder
from softlabels.making.claims import Claims
from softlabels.making.commit import commit_path
from softlabels.making.finish import finish
from softlabels.making.plan import load_plan
from softlabels.making.quarantine import quarantined
from softlabels.making.repair import repair_store
from softlabels.store.verify import verify_store
from tests.fakes import Steps, TinyTeacher, build_tiny
from tests.store.made_up import files_of

JOB = {"limit_rows": 8, "shard_rows": 3, "temperature": (1.0, 2.0)}
"""Of the fixture `built`."""
SHARD = "data/train-00001-of-00003.parquet"


def build(store: Path, corpus: str, **options):
    return build_tiny(store, corpus, **{**JOB, **options})


@pytest.fixture
def unfinished(store):
    """A store whose builder died before the manifest."""
    (store / "manifest.json").unlink()
    (store / "README.md").unlink()
    return store


# -- what cannot be read --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SHARD, "commits/00001.json"])
@pytest.mark.parametrize(
    "code",
    [errno.ESTALE, errno.EACCES, errno.EIO, errno.ENOMEM, errno.EMFILE],
    ids=errno.errorcode.get,
)
def test_a_read_that_fails_is_no_reason_to_withdraw(unfinished, corpus, monkeypatch, name, code):
    before = files_of(unfinished)
    read = Path.read_bytes
    monkeypatch.setattr("softlabels.core.records.STALE_PAUSES", (0.0, 0.0))

    def failing(self):
        if self == unfinished / name:
            raise OSError(code, os.strerror(code))
        return read(self)

    for run in (lambda: build(unfinished, corpus), lambda: repair_store(unfinished)):
        with monkeypatch.context() as m:
            m.setattr(Path, "read_bytes", failing)
            with pytest.raises(UnreadableError, match="does not mean that it is damaged"):
                run()
        assert files_of(unfinished) == before
    build(unfinished, corpus)
    assert files_of(unfinished).items() >= before.items()
    assert verify_store(unfinished).problems == []


def test_a_file_that_a_network_file_system_lost_sight_of_is_opened_again(
    unfinished, corpus, monkeypatch
):
    before = files_of(unfinished)
    read, failed = Path.read_bytes, list[Path]()

    def stale(self):
        if self == unfinished / SHARD and not failed:
            failed.append(self)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", stale)
    build(unfinished, corpus)
    assert failed
    assert files_of(unfinished).items() >= before.items()


# -- a builder that stood still -------------------------------------------------------------------


class Stalled(Exception):
    pass


def damage(store: Path) -> bytes:
    """Of one shard; returns what it was."""
    whole = (store / SHARD).read_bytes()
    (store / SHARD).unlink()
    (store / SHARD).write_bytes(whole[:-1])
    return whole


@pytest.mark.parametrize("then", ["mended", "finished"])
def test_a_builder_that_stood_still_leaves_what_another_made_meanwhile(
    unfinished, corpus, monkeypatch, then
):
    """It has seen damage, loses its claim, and wakes up when the shard is good, or the whole store done."""
    damage(unfinished)
    taking = Builder._may_withdraw
    stood = []

    def stand_still(self, claim, shard, seen):
        if not stood:
            stood.append(claim.path)
            os.utime(claim.path, (0, 0))  # not renewed for long
            with monkeypatch.context() as m:
                m.setattr(claims_module, "LIVING", set())
                build(unfinished, corpus)
            if then == "mended":
                (unfinished / "manifest.json").unlink()
        return taking(self, claim, shard, seen)

    monkeypatch.setattr(Builder, "_may_withdraw", stand_still)
    build(unfinished, corpus)
    assert stood
    assert len(quarantined(unfinished)) == 1  # the damaged one, moved by the other
    assert verify_store(unfinished).problems == []


def test_a_claim_that_was_taken_over_is_not_in_force(tmp_path):
    mine = Claims(tmp_path).take([0])
    assert mine is not None
    assert mine.in_force()
    os.utime(mine.path, (0, 0))
    theirs = Claims(tmp_path).take([0])
    assert theirs is not None
    assert not mine.in_force()
    assert theirs.in_force()
    theirs.release()
    again = Claims(tmp_path).take([0])  # generation 0, as mine was
    assert again is not None
    assert again.path == mine.path
    assert not mine.in_force()
    mine.release()
    assert again.in_force()


def test_without_its_claim_a_builder_does_not_withdraw(unfinished, corpus, monkeypatch):
    """Damage that is still there is left to whoever holds the shard."""
    damage(unfinished)
    before = files_of(unfinished)

    def wait(_self, _left):
        raise Stalled

    monkeypatch.setattr(claims_module.Claim, "in_force", lambda _self: False)
    monkeypatch.setattr(Builder, "_wait", wait)
    with pytest.raises(Stalled):
        build(unfinished, corpus)
    after = {n: d for n, d in files_of(unfinished).items() if not n.startswith("claims/")}
    assert after == before


# -- repair beside builders -----------------------------------------------------------------------


def test_repair_refuses_while_a_builder_lives_and_says_who(unfinished):
    (unfinished / SHARD).unlink()
    before = files_of(unfinished)
    claims = Claims(unfinished)
    claim = claims.take([1])
    assert claim is not None
    with pytest.raises(
        StoreError, match=rf"process {os.getpid()} of \S+ holds shard 1.*let it end"
    ):
        repair_store(unfinished)
    assert repair_store(unfinished, dry_run=True).rebuild == [SHARD]
    claim.release()
    assert files_of(unfinished) == before
    assert repair_store(unfinished).rebuild == [SHARD]


def test_repair_leaves_what_was_committed_since_it_looked(unfinished, corpus):
    """A builder begins and ends while the shards are looked at."""
    (unfinished / SHARD).unlink()
    (unfinished / "commits/00001.json").unlink()

    class Meanwhile(Steps):
        def advance(self, amount, note=None):
            super().advance(amount, note)
            if self.done == self.total:
                build(unfinished, corpus)

    repair_store(unfinished, reporter=Meanwhile())
    assert (unfinished / SHARD).exists()
    assert (unfinished / "commits/00001.json").exists()
    build(unfinished, corpus)
    assert verify_store(unfinished).problems == []


# -- the manifest names what is there -------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "between"])
def test_no_manifest_is_published_of_a_shard_that_is_gone(unfinished, monkeypatch, when):
    plan = load_plan(unfinished)
    assert plan is not None
    commits = [read_record(commit_path(unfinished, s), Commit) for s in plan.shards]
    if when == "before":
        (unfinished / SHARD).unlink()
    else:
        publish = finish_module.publish

        def late(path, data):
            (unfinished / SHARD).unlink(missing_ok=True)
            return publish(path, data)

        monkeypatch.setattr(finish_module, "publish", late)
    with pytest.raises(IntegrityError, match=r"train-00001.*missing \(1 of 3 shards"):
        finish(unfinished, plan, commits)
    assert not (unfinished / "manifest.json").exists()


class Counting(TinyTeacher):
    """Counts the rows that it is shown."""

    rows = 0

    def logits(self, rows):
        self.rows += len(rows)
        yield from super().logits(rows)


@pytest.mark.parametrize("how", ["missing", "torn"])
def test_a_build_of_a_finished_store_looks_for_its_shards_and_mends_it(built, store, corpus, how):
    if how == "missing":
        (store / SHARD).unlink()
    else:
        damage(store)
    teacher = Counting()
    build(store, corpus, teacher=teacher)
    assert teacher.rows == 3
    assert verify_store(store).problems == []
    assert load_manifest(store).content_digest == load_manifest(built).content_digest


def test_builders_and_repairs_at_once_end_with_a_whole_store(unfinished, corpus):
    """Repair may refuse, and a build may say that its store was changed; neither takes what is good."""
    for i in range(3):
        (unfinished / f"commits/{i:05d}.json").unlink()
    (unfinished / SHARD).unlink()
    stop, said = threading.Event(), list[StoreError]()

    def repairing():
        while not stop.is_set():
            try:
                repair_store(unfinished)
            except StoreError as e:
                said.append(e)

    worker = threading.Thread(target=repairing)
    worker.start()
    try:
        for _ in range(3):
            with contextlib.suppress(IntegrityError):
                build(unfinished, corpus)
    finally:
        stop.set()
        worker.join()
    build(unfinished, corpus)
    assert all("a builder is at work" in str(e) for e in said)
    assert quarantined(unfinished) == []
    assert verify_store(unfinished).problems == []
