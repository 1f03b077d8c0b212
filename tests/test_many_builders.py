"""Any number of builders on one plan: the work is shared, and who dies loses only what it held."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import threading
import time
from pathlib import Path

import pytest
import torch

from softlabels.builder import build as build_module
from softlabels.builder.build import build
from softlabels.builder.plan import plan_build
from softlabels.core.progress import Silent
from softlabels.corpora import open_corpora
from softlabels.errors import CorpusError, PlanError
from softlabels.making import builder as builder_module
from softlabels.making.claims import Claims
from softlabels.making.job import begin
from softlabels.making.plan import check_folder
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.fakes import TinyTeacher, build_tiny, config_of, write_corpus
from tests.store.made_up import files_of

FORK = multiprocessing.get_context("fork")
CHANGES = {"shard_rows": 2, "batch_tokens": 64}  # a row a batch, two a shard


class Logged(TinyTeacher):
    """Takes its time for each batch, and notes the batch where all builders can see it."""

    def __init__(self, pause: float, log: Path) -> None:
        super().__init__()
        self.pause, self.log = pause, log

    def logits(self, rows):
        time.sleep(self.pause)
        handle = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, f"{os.getpid()} {rows[0].digest().hex()}\n".encode())
        os.close(handle)
        yield from super().logits(rows)


def run_builder(out: Path, corpus: str, pause: float, log: Path, start=None) -> None:
    torch.set_num_threads(1)
    if start is not None:
        start.wait()
    build_tiny(out, corpus, teacher=Logged(pause, log), **CHANGES)


def builder(*args):
    child = FORK.Process(target=run_builder, args=args)
    child.start()
    return child


@pytest.fixture
def corpus(tmp_path) -> str:
    """Text in which no row occurs twice."""
    torch.set_num_threads(1)  # a forked child must not wait for threads that it does not have
    folder = tmp_path / "corpus"
    folder.mkdir()
    rng = random.Random(0)
    for i in range(6):
        text = " ".join(f"{rng.randrange(10**6)}" for _ in range(90))
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    return f"text:{folder}/*.txt"


@pytest.fixture
def whole(tmp_path, corpus) -> dict[str, bytes]:
    """The files of a store that one builder made."""
    build_tiny(tmp_path / "whole", corpus, **CHANGES)
    return files_of(tmp_path / "whole")


def check_equal(out: Path, whole: dict[str, bytes]) -> None:
    files = files_of(out)
    assert sorted(files) == sorted(whole)  # every shard once, nothing missing, nothing left over
    timed = ("commits/", "README.md", "manifest.json")  # these tell how long it took
    for name, content in whole.items():
        assert name.startswith(timed) or files[name] == content, name
    assert not (out / "claims").exists()
    assert verify_store(out).problems == []


def log_of(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_builders_that_start_at_once_share_the_work_and_do_nothing_twice(
    tmp_path, corpus, whole, attempt
):
    out, log, start = tmp_path / "out", tmp_path / "log", FORK.Barrier(4)
    crew = [builder(out, corpus, 0.1, log, start) for _ in range(4)]
    for child in crew:
        child.join()
    assert [c.exitcode for c in crew] == [0] * 4
    check_equal(out, whole)
    batches = [digest for _, digest in log_of(log)]
    assert len(batches) == len(set(batches)) == len(open_store(out))  # rows fill a batch each
    assert {pid for pid, _ in log_of(log)} == {str(child.pid) for child in crew}


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(5))
def test_two_builders_in_an_empty_folder_agree_on_the_plan(tmp_path, corpus, whole, attempt):
    out, start = tmp_path / "out", FORK.Barrier(2)
    out.mkdir()
    crew = [builder(out, corpus, 0.0, tmp_path / "log", start) for _ in range(2)]
    for child in crew:
        child.join()
    assert [c.exitcode for c in crew] == [0, 0]
    check_equal(out, whole)


@pytest.mark.slow
def test_builders_that_are_killed_and_come_back(tmp_path, corpus, whole):
    out, log = tmp_path / "out", tmp_path / "log"
    rng = random.Random(2)
    crew = [builder(out, corpus, 0.4, log) for _ in range(4)]
    kills = 0
    while not (out / "manifest.json").exists():
        time.sleep(rng.uniform(0.5, 1.2))
        slot = rng.randrange(4)
        crew[slot].kill()
        crew[slot].join()
        kills += crew[slot].exitcode == -9
        crew[slot] = builder(out, corpus, 0.4, log)
    for child in crew:
        child.join()
    assert [c.exitcode for c in crew] == [0] * 4
    assert kills >= 5
    check_equal(out, whole)
    batches = [digest for _, digest in log_of(log)]
    # Each death costs the two rows of a shard; of one in the moment that it is written, two more.
    assert len(batches) <= len(set(batches)) + 2 * kills + 2


@pytest.mark.slow
def test_a_builder_waits_for_what_others_hold_and_then_takes_it(tmp_path, corpus, whole):
    out = tmp_path / "out"
    plan_late(out, corpus)
    held = Claims(out).take([5])
    assert held is not None
    notices: list[str] = []

    class Reporter(Silent):
        def __init__(self) -> None:
            self.total = self.done = 0

        def notice(self, message: str) -> None:
            notices.append(message)
            if message.startswith("waiting"):
                assert not (out / "manifest.json").exists()
                held.release()

        def stage(self, name: str, total: int | None, unit: str) -> None:
            self.total, self.done = total or 0, 0

        def advance(self, amount: int, note: str | None = None) -> None:
            self.done += amount

    reporter = Reporter()
    build(config_of(corpus, **CHANGES), out, teacher=TinyTeacher(), reporter=reporter)
    assert notices == ["waiting: the shards that are left (1) are in other builders' hands"]
    assert reporter.done == reporter.total > 0
    check_equal(out, whole)


def test_a_finished_store_sheds_the_claim_of_a_builder_that_died_then(tmp_path, corpus, whole):
    out = tmp_path / "whole"
    assert Claims(out).take([0]) is not None
    build_tiny(out, corpus, **CHANGES)
    assert files_of(out) == whole
    assert not (out / "claims").exists()


# -- planning at the same time --------------------------------------------------------------------


def plan_late(out, corpus, **changes):
    """What a builder does whose folder had no plan when it looked."""
    config = config_of(corpus, **(CHANGES | changes))
    corpora = open_corpora(config.corpus)
    plan, files = plan_build(config, corpora, TinyTeacher(), Silent())
    return begin(out, plan, files, Silent())


def test_the_later_planner_of_the_same_job_uses_the_plan_in_force(tmp_path, corpus):
    first = plan_late(tmp_path / "out", corpus)
    assert plan_late(tmp_path / "out", corpus) == first


def test_the_later_planner_of_another_job_is_refused(tmp_path, corpus):
    plan_late(tmp_path / "out", corpus)
    with pytest.raises(PlanError, match="targets k = 5"):
        plan_late(tmp_path / "out", corpus, k=6)
    with pytest.raises(PlanError, match="from another corpus"):
        plan_late(tmp_path / "out", write_corpus(tmp_path / "other"))


def test_a_folder_in_which_another_builder_is_planning_is_not_foreign(tmp_path):
    (tmp_path / ".tmp-elsewhere-1-0a1b2c3d-plan.json").touch()
    for name in ("tokenizer", "claims", "data", "commits"):
        (tmp_path / name).mkdir()
    check_folder(tmp_path)
    (tmp_path / "README.md").touch()
    with pytest.raises(PlanError, match=r"README\.md"):
        check_folder(tmp_path)
    (tmp_path / "plan.json").touch()  # published since the builder looked for it
    check_folder(tmp_path)


def test_of_builders_that_start_at_once_one_plans_and_the_others_wait(
    tmp_path, corpus, monkeypatch
):
    """The second comes while the first reads the corpus; a reader that renews nothing would be taken over from."""
    planned, notices = [], []
    original = build_module.plan_build

    class Noted(Silent):
        def notice(self, message):
            notices.append(message)

    def plan(config, corpora, teacher, report, planned_before=None):
        if planned_before is None:
            planned.append(threading.current_thread().name)
            other.start()
            while not notices:
                time.sleep(0.01)
        return original(config, corpora, teacher, report, planned_before)

    def work(report):
        build(
            config_of(corpus, **CHANGES), tmp_path / "out", teacher=TinyTeacher(), reporter=report
        )

    monkeypatch.setattr(build_module, "plan_build", plan)
    other = threading.Thread(target=work, args=(Noted(),), name="other")
    work(Silent())
    other.join()
    assert planned == [threading.current_thread().name]
    assert notices[0] == "waiting: another builder plans the shards"
    assert verify_store(tmp_path / "out").problems == []


def test_a_dead_planner_is_taken_over_from(tmp_path, corpus):
    claim = Claims(tmp_path / "out").take([0])
    assert claim is not None
    dead = json.loads(claim.path.read_text()) | {"pid": 2**22 + 1}
    claim.path.write_text(json.dumps(dead))
    build_tiny(tmp_path / "out", corpus, **CHANGES)
    assert verify_store(tmp_path / "out").problems == []


def test_planning_that_comes_to_nothing_leaves_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    short = {"seq_len": 8, "skip_empty": True}
    (tmp_path / "empty/a.txt").write_text(" ", encoding="utf-8")
    with pytest.raises(CorpusError, match="holds no document"):
        build_tiny(tmp_path / "out", f"text:{tmp_path}/empty/*.txt", **short)
    assert not (tmp_path / "out").exists()


def test_a_claim_in_a_foreign_folder_is_not_a_builders(tmp_path):
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims/00000-0.json").write_text('{"mine": true}', encoding="utf-8")
    with pytest.raises(PlanError, match="00000-0"):
        check_folder(tmp_path)


# -- joining ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("joins", [True, False])
def test_a_joiner_reads_no_shard_of_others_and_who_is_alone_reads_them_at_the_end(
    tmp_path, corpus, monkeypatch, joins
):
    out = tmp_path / "out"
    build_tiny(out, corpus, **CHANGES)
    shards = sorted((out / "data").iterdir())
    for path in (out / "manifest.json", out / "commits" / f"{len(shards) - 1:05d}.json"):
        path.unlink()
    shards[-1].unlink()
    read, original = [], Path.read_bytes

    def read_bytes(self):
        read.append(self)
        return original(self)

    class Noting(TinyTeacher):
        def logits(self, rows):
            read.append(out / "taught")
            yield from super().logits(rows)

    with monkeypatch.context() as m:
        m.setattr(builder_module, "at_work", lambda _store: joins)
        m.setattr(Path, "read_bytes", read_bytes)
        build_tiny(out, corpus, teacher=Noting(), **CHANGES)
    before = read[: read.index(out / "taught")]
    assert [p.name for p in before if p.parent == out] == ["plan.json"]
    assert not [p for p in before if p.parent.name in ("data", "commits")], "names alone"
    seen = {p for p in read if p.parent.name == "data" and not p.name.startswith(".tmp-")}
    assert seen == (set() if joins else set(shards[:-1]))
    assert verify_store(out).problems == []
