"""The thread that writes one shard while the teacher is at the next."""

import threading
import time

import pytest
import torch

from softlabels.builder.build import build
from softlabels.errors import NonFiniteError, StoreError
from softlabels.format.manifest import load_manifest
from softlabels.making.builder import Builder
from softlabels.making.claims import Claims, claim_files
from softlabels.making.writer import Writer
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.fakes import TinyTeacher, build_tiny, config_of, write_corpus


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")


def test_the_teacher_is_at_the_next_shard_while_one_is_written(corpus, tmp_path, monkeypatch):
    """The first shard's writing waits until the teacher was asked for a row of the second."""
    second = threading.Event()
    overlapped, in_hand = [], []
    real = Builder._write

    class Watched(TinyTeacher):
        def logits(self, rows):
            if self.seen > 8 * 63 - 1:  # rows of 64 tokens have 63 positions, a shard 8 rows
                second.set()
            yield from super().logits(rows)

    def write(builder, shard, *rest):
        in_hand.append(len(claim_files(tmp_path / "s")))
        if shard.index == 0:
            overlapped.append(second.wait(timeout=30))
        return real(builder, shard, *rest)

    monkeypatch.setattr(Builder, "_write", write)
    build_tiny(tmp_path / "s", corpus, teacher=Watched())
    assert overlapped == [True]
    assert max(in_hand) <= 2
    assert verify_store(tmp_path / "s").problems == []
    assert not (tmp_path / "s" / "claims").exists()


def test_at_most_two_shards_exist_however_slow_the_disk(corpus, tmp_path, monkeypatch):
    taught, written, most = [0], [0], [0]
    teach, write = Builder._make, Builder._write

    def counting_teach(*args):
        most[0] = max(most[0], taught[0] + 1 - written[0])
        found = teach(*args)
        taught[0] += 1
        return found

    def slow_write(*args):
        time.sleep(0.05)
        found = write(*args)
        written[0] += 1
        return found

    monkeypatch.setattr(Builder, "_make", counting_teach)
    monkeypatch.setattr(Builder, "_write", slow_write)
    build_tiny(tmp_path / "s", corpus, shard_rows=2)
    assert taught == written
    assert taught[0] > 10
    assert most == [2]


def test_an_error_of_the_writer_stops_the_teacher_in_the_midst_of_a_shard(
    corpus, tmp_path, monkeypatch
):
    begun, failed = threading.Event(), threading.Event()

    def fail(*_):
        begun.wait(timeout=30)
        failed.set()
        raise StoreError("the disk is full")

    class Waits(TinyTeacher):
        rows = 0

        def logits(self, rows):
            if self.seen >= 8 * 63:
                begun.set()
                failed.wait(timeout=30)
                time.sleep(0.1)
            self.rows += len(rows)
            yield from super().logits(rows)

    monkeypatch.setattr(Builder, "_write", fail)
    teacher = Waits()
    with pytest.raises(StoreError, match="disk is full"):
        build_tiny(tmp_path / "s", corpus, teacher=teacher, batch_tokens=64)
    assert teacher.rows == 9  # one shard and one row
    assert claim_files(tmp_path / "s") == []


def test_an_error_of_the_teacher_waits_for_the_shard_that_is_written(corpus, tmp_path, monkeypatch):
    real = Builder._write

    def slow(*args):
        time.sleep(0.3)
        return real(*args)

    monkeypatch.setattr(Builder, "_write", slow)
    teacher = TinyTeacher()
    teacher.poison = (8 * 63 + 5, float("nan"))
    with pytest.raises(NonFiniteError):
        build_tiny(tmp_path / "s", corpus, teacher=teacher)
    assert [p.name for p in (tmp_path / "s" / "commits").iterdir()] == ["00000.json"]
    assert claim_files(tmp_path / "s") == []


def test_of_two_errors_the_teacher_s_is_raised_and_the_writer_s_is_told(
    corpus, tmp_path, monkeypatch
):
    notices = []

    class Reporter:
        def notice(self, message):
            notices.append(message)

        def stage(self, *_):
            pass

        def advance(self, amount, note=None):
            pass

    def slow_failure(*_):
        time.sleep(0.3)
        raise StoreError("the disk is full")

    monkeypatch.setattr(Builder, "_write", slow_failure)
    teacher = TinyTeacher()
    teacher.poison = (8 * 63 + 5, float("nan"))
    with pytest.raises(NonFiniteError):
        build(config_of(corpus), tmp_path / "s", teacher=teacher, reporter=Reporter())
    assert notices == ["while this build was ending, another error: the disk is full"]


def test_claims_are_renewed_while_there_is_nothing_to_do_but_wait(tmp_path, monkeypatch):
    monkeypatch.setattr("softlabels.making.writer.LOOK", 0.01)
    claims = Claims(tmp_path)
    renewed = []
    writing, waiting = claims.take([0]), claims.take([1])
    assert writing is not None
    assert waiting is not None
    monkeypatch.setattr(type(writing), "renew", lambda self: renewed.append(self.index))
    go = threading.Event()
    with Writer(print) as writer:
        writer.start(writing, lambda: go.wait(30) and "the record")
        threading.Timer(0.2, go.set).start()
        assert writer.index == 0
        assert writer.finish(waiting) == (0, "the record")
        assert writer.index is None
        assert writer.finish() is None
    assert set(renewed) == {0, 1}
    assert [p.name for p in claim_files(tmp_path)] == ["00001-0.json"]


def test_the_same_store_as_ever(corpus, tmp_path):
    """Overlapping changes no byte: shards are the same one at a time, as a store of one shard shows."""
    build_tiny(tmp_path / "many", corpus, shard_rows=3)
    build_tiny(tmp_path / "one", corpus, shard_rows=10_000)
    many, one = list(open_store(tmp_path / "many")), list(open_store(tmp_path / "one"))
    assert len(load_manifest(tmp_path / "one").shards) == 1
    for a, b in zip(many, one, strict=True):
        assert (a.targets.ids == b.targets.ids).all()
        assert torch.equal(
            torch.from_numpy(a.targets.gaps.copy()), torch.from_numpy(b.targets.gaps.copy())
        )
