"""`softtrain run --follow`: a student learns from a store that is being made what it would from the finished one."""

import hashlib
import json
import math
import os
import pickle
import shutil
import signal
import threading
import time
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from softlabels.core.records import canonical, seal
from softlabels.errors import (
    ConfigError,
    IntegrityError,
    PairingError,
    RunError,
    UnfinishedError,
    UnreadableError,
)
from softlabels.format import pages
from softlabels.format.encoding import dictionary_of
from softlabels.format.manifest import Commit, Manifest, content_digest, load_manifest
from softlabels.making import dictionary
from softlabels.making.claims import Claims
from softlabels.making.commit import commit_path
from softlabels.making.plan import read_plan
from softlabels.store import follow, waiting
from softlabels.store.builders import Builders
from softlabels.store.follow import FollowedStore, follow_store
from softlabels.store.of_plan import plan_digest
from softlabels.store.reader import open_store
from softlabels.store.waiting import Wait, WaitEnded, Work
from tests.fakes import Notices, TinyTeacher, build_tiny
from tests.students import evaluate_run, llama
from trainers import SoftTargetDataset, SoftTargetStream
from trainers.data import order
from trainers.data.chain import Chain
from trainers.data.order import CorpusOrder
from trainers.run.config import RunConfig
from trainers.run.finished import open_finished, provenance
from trainers.run.setup import train
from trainers.trackers import Tracked

KINDS = {
    "open": {},
    "zarr": {"container": "zarr"},
    "packed": {"profile": "packed", "values": "nat8"},
    "dictionary": {"profile": "packed", "container": "zarr", "k": 8},
    "sampled": {"estimator": "sampled", "k": 3},
    "paged": {},
}
ROWS = 3
HOW = {"shard_rows": ROWS, "limit_rows": 66}
STEPS = 22
WORDS = "the cat sat on a mat and saw what a dog had put there"


def words(folder: Path) -> str:
    """A text in which there is something to learn."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    text = " ".join(rng.choice(WORDS.split(), 2000))
    (folder / "words.txt").write_text(text)
    return f"text:{folder}/words.txt"


@pytest.fixture(autouse=True)
def small_and_fast():
    """A corpus of few rows is to have several blocks; waits are short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "SLICE_ROWS", 2)
        patch.setattr(waiting, "LONGEST_PAUSE", 0.05)
        patch.setattr(waiting, "PATIENCE", 15.0)
        patch.setattr(waiting, "FIRST_PAUSE", 0.01)
        patch.setattr(waiting, "SAID_AFTER", 0.1)
        patch.setattr(waiting, "LOOK", 0.1)
        patch.setattr(follow, "WITHDRAWAL", 0.2)
        yield


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("follow")
    corpus = words(folder / "corpus")
    for name, changes in KINDS.items():
        with pytest.MonkeyPatch.context() as patch:
            if name == "paged":
                patch.setattr(pages, "PAGED_ABOVE", 4)
                patch.setattr(pages, "PAGE_SHARDS", 7)
            if name == "dictionary":
                patch.setattr(dictionary, "POSITIONS", 1_000)
            build_tiny(folder / name, corpus, **HOW, **changes)
    files = [folder / "dictionary" / s.name for s in read_plan(folder / "dictionary").shards]
    identity = load_manifest(folder / "dictionary").identity
    assert any(dictionary_of(f.read_bytes(), identity, where="here") for f in files)
    (folder / "student.json").write_text(json.dumps(llama()))
    train(config_of(folder, folder / "open", steps=1), folder / "first")  # timers count waits alone
    return folder


class Growing:
    """A store that comes into being as builders make one, out of a finished one."""

    def __init__(self, whole: Path, to: Path) -> None:
        self.whole, self.to, self.plan = whole, to, read_plan(whole)
        for name in (*self.plan.files, *(p.name for p in pages.pages_of(self.plan.shards))):
            self._copy(name)
        self._copy("plan.json")

    def _copy(self, name: str) -> None:
        (self.to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.whole / name, self.to / f"{name}.new")
        (self.to / f"{name}.new").rename(self.to / name)

    def add(self, *indices: int) -> None:
        for index in indices:
            if index >= (self.plan.identity.encoding.dictionary_shards or 0):
                for path in self.whole.glob("dictionaries/*"):
                    self._copy(path.relative_to(self.whole).as_posix())
            self._copy(self.plan.shards[index].name)
            self._copy(commit_path(Path(), self.plan.shards[index]).as_posix())

    def all(self) -> range:
        return range(len(self.plan.shards))

    def rest(self) -> list[int]:
        return [i for i in self.all() if not commit_path(self.to, self.plan.shards[i]).exists()]

    def finish(self) -> None:
        self.add(*self.rest())
        for path in self.whole.iterdir():
            if path.is_file() and path.name != "manifest.json":
                self._copy(path.name)
        for path in self.whole.glob("pages/*"):
            self._copy(path.relative_to(self.whole).as_posix())
        self._copy("manifest.json")

    def slowly(self, indices, pause: float = 0.03, *, finish: bool = False) -> threading.Thread:
        """Add shards meanwhile, each after a pause."""

        def work() -> None:
            for index in indices:
                time.sleep(pause)
                self.add(index)
            if finish:
                self.finish()

        thread = threading.Thread(target=work)
        thread.start()
        return thread


def config_of(ground: Path, place: Path | str, **changes) -> RunConfig:
    values = {
        "store": str(place),
        "student": f"hf-config:{ground / 'student.json'}",
        "steps": STEPS,
        "batch_size": 4,
        "lr": 1e-2,
        "log_every": 1,
        "checkpoint_every": 4,
        "dtype": "float32",
        "track": ("none",),
    }
    return RunConfig(**(values | changes))


def losses(run: Path) -> list[tuple[int, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [(r["step"], r["loss"]) for r in map(json.loads, lines)]


def facts(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "model.safetensors")


def same(a: Path, b: Path) -> None:
    assert losses(a) == losses(b)
    for name, tensor in weights(a).items():
        assert torch.equal(tensor, weights(b)[name]), name


def on_whole(ground: Path, run: Path, kind: str = "open", **changes) -> Path:
    """The run by plan on the finished store."""
    train(config_of(ground, ground / kind, order="plan", **changes), run)
    return run


# -- the same run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_followed_run_is_that_on_the_finished_store_to_the_bit(ground, tmp_path, kind):
    growing, notices = Growing(ground / kind, tmp_path / "store"), Notices()
    indices = list(growing.all())
    for i in range(0, len(indices) - 1, 2):  # builders are not in order
        indices[i : i + 2] = indices[i : i + 2][::-1]
    more = {"epochs": 1.6, "steps": RunConfig.steps}
    thread = growing.slowly(indices, finish=True)
    train(config_of(ground, growing.to, follow=True, **more), tmp_path / "run", reporter=notices)
    thread.join()
    assert max(growing.all()) > 16  # of 4 a block
    same(tmp_path / "run", on_whole(ground, tmp_path / "whole", kind, **more))
    found, whole = facts(tmp_path / "run"), facts(tmp_path / "whole")
    assert found["config"]["follow"]
    assert found["plan_digest"] == growing.plan.digest == whole["plan_digest"]
    assert found["store_digest"] == load_manifest(ground / kind).content_digest
    assert whole["store_digest"] == found["store_digest"]
    assert sum("waited" in line and "is finished by now" in line for line in notices.lines) == 1


def test_a_student_begins_when_the_first_block_is_there(ground, tmp_path):
    growing = Growing(ground / "open", tmp_path / "store")
    growing.add(*range(8))
    train(config_of(ground, growing.to, follow=True, steps=4), tmp_path / "run")
    on_whole(ground, tmp_path / "whole", steps=4)
    same(tmp_path / "run", tmp_path / "whole")
    assert facts(tmp_path / "run")["store_digest"] == growing.plan.digest


def test_a_finished_store_may_be_followed(ground, tmp_path):
    train(config_of(ground, ground / "open", follow=True), tmp_path / "run")
    same(tmp_path / "run", on_whole(ground, tmp_path / "whole"))
    assert type(follow_store(ground / "open", notice=print)) is not FollowedStore


def test_a_run_is_resumed_while_the_store_is_made_and_after(ground, tmp_path):
    growing, run = Growing(ground / "open", tmp_path / "store"), tmp_path / "run"
    config = config_of(ground, growing.to, follow=True)
    growing.add(*range(9))
    steps = []
    for more in (range(9, 12), range(12, 14)):
        interrupt = threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGINT))
        interrupt.start()  # while it waits
        with pytest.raises(KeyboardInterrupt):
            train(config, run, resume=bool(steps))
        steps.append(losses(run)[-1][0])
        growing.add(*more)
    assert facts(run)["store_digest"] == growing.plan.digest
    growing.finish()
    train(config_of(ground, growing.to), run, resume=True)  # without --follow
    assert steps[0] < steps[1] < STEPS
    same(run, on_whole(ground, tmp_path / "whole"))
    assert facts(run)["store_digest"] == load_manifest(growing.to).content_digest


def test_a_run_on_the_finished_store_goes_on_where_one_that_followed_was_killed(ground, tmp_path):
    growing, run = Growing(ground / "open", tmp_path / "store"), tmp_path / "run"
    growing.add(*range(9))
    config = config_of(ground, growing.to, follow=True)
    threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(KeyboardInterrupt):
        train(config, run)
    growing.finish()
    train(config, run, resume=True)  # with --follow
    same(run, on_whole(ground, tmp_path / "whole"))
    assert facts(run)["store_digest"] == load_manifest(growing.to).content_digest


def test_what_comes_after_knows_the_store_by_its_plan(ground, tmp_path):
    growing = Growing(ground / "open", tmp_path / "store")
    growing.add(*range(8))
    run = tmp_path / "run"
    train(config_of(ground, growing.to, follow=True, steps=4), run)
    assert evaluate_run(run, ground / "sampled").positions > 0
    growing.finish()
    finished = open_finished(run)
    (store,) = finished.training_stores()
    assert finished.was_trained_on(store)
    (growing.to / "plan.json").unlink()
    with pytest.raises(ConfigError, match=r"is the digest of a plan, .* with its plan\.json"):
        finished.training_stores()
    with pytest.raises(ConfigError, match="is the digest of a plan"):
        finished.training_stores((str(ground / "sampled"),))


# -- waiting ----------------------------------------------------------------------------------------------------------


def test_without_a_builder_a_run_is_saved_and_stops(ground, tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE", 0.5)
    growing, run, notices = (
        Growing(ground / "open", tmp_path / "store"),
        tmp_path / "run",
        Notices(),
    )
    growing.add(*range(9))
    config = config_of(ground, growing.to, follow=True, checkpoint_every=100)
    with pytest.raises(RunError, match=r"shard 9 of .*no builder was at work .*--resume") as caught:
        train(config, run, reporter=notices)
    assert isinstance(caught.value.__cause__, UnfinishedError)
    said = [line for line in notices.lines if "waiting for" in line]
    assert len(said) == 1
    assert f"no builder is at work, 9 of {len(growing.plan.shards)} shards are done" in said[0]
    assert any(line.startswith("saved after step 4") for line in notices.lines)
    growing.slowly(growing.rest())
    train(config, run, resume=True)
    same(run, on_whole(ground, tmp_path / "whole", checkpoint_every=100))


def test_a_builder_at_work_is_waited_for(ground, tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE", 0.4)
    growing, notices = Growing(ground / "open", tmp_path / "store"), Notices()
    growing.add(*range(9))
    claims = Claims(growing.to)
    claim = claims.take([9])
    thread = growing.slowly(growing.rest(), pause=0.0)
    thread.join()
    shutil.move(commit_path(growing.to, growing.plan.shards[9]), tmp_path / "record")
    later = threading.Timer(
        1.5, shutil.move, (tmp_path / "record", commit_path(growing.to, growing.plan.shards[9]))
    )
    later.start()
    train(config_of(ground, growing.to, follow=True), tmp_path / "run", reporter=notices)
    later.join()
    claim.release()
    assert any("1 builder is at work" in line for line in notices.lines)
    assert any("waited 1." in line for line in notices.lines)


def test_a_plan_is_waited_for_while_somebody_makes_it(ground, tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "PLAN_PATIENCE", 0.5)
    with pytest.raises(UnfinishedError, match=r"the plan of .*is the path wrong\?"):
        follow_store(tmp_path / "nothing", notice=print)
    store, notices = tmp_path / "store", Notices()
    claim = Claims(store).take([0])
    growing = threading.Timer(1.2, Growing, (ground / "open", store))
    growing.start()
    found = follow_store(store, notice=notices.notice)
    growing.join()
    claim.release()
    assert isinstance(found, FollowedStore)
    assert found.digest == plan_digest(found) == plan_digest(open_store(ground / "open"))
    assert "1 builder is at work on it" in notices.lines[0]


def test_progress_is_a_sign_of_life_and_lines_are_few(monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE", 0.3)
    made, lines = iter(range(100)), []
    wait = Wait(lambda: Work(False, next(made), "so"), way_out="go", notice=lines.append)
    begun = time.monotonic()
    wait.until(lambda: True if time.monotonic() > begun + 1 else None, "one")
    wait.until(lambda: True if time.monotonic() > begun + 1.5 else None, "two")
    assert lines == ["waiting for one: so"]
    assert 1.4 < wait.seconds < 2.5
    wait.end()
    with pytest.raises(WaitEnded):
        wait.until(lambda: None, "three")
    assert wait.until(lambda: 3, "four") == 3
    wait.go_on()
    still = Wait(lambda: Work(False, 5, "so"), way_out="go away", notice=lines.append)
    with pytest.raises(
        UnfinishedError, match=r"five: not there, .* in the last 0\.3 s .*; go away"
    ):
        still.until(lambda: None, "five")


# -- what is not believed ---------------------------------------------------------------------------------------------


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def made(ground, tmp_path) -> Growing:
    """All shards are recorded, and the store is not finished."""
    growing = Growing(ground / "open", tmp_path / "store")
    growing.add(*growing.all())
    return growing


def test_a_damaged_shard_is_found(ground, made, tmp_path):
    change(made.to / made.plan.shards[5].name)
    with pytest.raises(RunError, match=r"sha256 .*softlabels build` once more.* --resume"):
        train(config_of(ground, made.to, follow=True), tmp_path / "run")
    (made.to / made.plan.shards[5].name).unlink()
    with pytest.raises(RunError, match="missing"):
        train(config_of(ground, made.to, follow=True), tmp_path / "again")


def test_a_shard_that_is_withdrawn_is_waited_for(ground, made, tmp_path):
    notices = Notices()
    record = commit_path(made.to, made.plan.shards[9])
    change(made.to / made.plan.shards[9].name)
    threading.Timer(0.1, record.unlink).start()
    threading.Timer(0.8, made.add, (9,)).start()
    train(config_of(ground, made.to, follow=True), tmp_path / "run", reporter=notices)
    same(tmp_path / "run", on_whole(ground, tmp_path / "whole"))


def restated(record: Path, **changes) -> None:
    found = json.loads(record.read_bytes()) | changes
    record.write_bytes(canonical(seal(msgspec.convert(found, Commit))))


def test_records_are_of_this_plan_and_whole(ground, made, tmp_path):
    record = commit_path(made.to, made.plan.shards[2])
    for changes, said in (
        ({"plan_digest": "0" * 64}, "belongs to another plan or shard"),
        ({"index": 3}, "belongs to another plan or shard"),
        ({"rows": ROWS + 1}, rf"says {ROWS + 1} rows"),
    ):
        made.add(2)
        restated(record, **changes)
        with pytest.raises(RunError, match=said):
            train(config_of(ground, made.to, follow=True), tmp_path / str(changes))
    made.add(2)
    change(record)
    with pytest.raises(RunError, match="build the store again"):
        train(config_of(ground, made.to, follow=True), tmp_path / "run")
    store = follow_store(made.to, notice=print)
    with pytest.raises(IntegrityError):
        store.record(2)


def test_a_store_of_another_plan_is_refused(ground, made, tmp_path):
    run = tmp_path / "run"
    train(config_of(ground, made.to, follow=True, steps=6), run)
    with pytest.raises(RunError, match=r"was begun on store .* is the digest of a plan"):
        train(config_of(ground, ground / "sampled", follow=True, steps=9), run, resume=True)
    with pytest.raises(RunError, match=r"was begun on store .* is the digest of a plan"):
        train(config_of(ground, ground / "sampled", steps=9), run, resume=True)
    shutil.copytree(ground / "sampled", tmp_path / "mixed")
    shutil.copyfile(made.to / "plan.json", tmp_path / "mixed" / "plan.json")
    with pytest.raises(RunError, match=r"was begun on store .* is the digest of a plan"):
        train(config_of(ground, tmp_path / "mixed", steps=9), run, resume=True)


def test_a_shard_that_was_made_again_and_is_another_is_noticed(ground, made, tmp_path):
    """As a teacher makes one that does not give the same numbers twice."""
    other = tmp_path / "other"
    config = config_of(ground, made.to, follow=True, steps=6)
    train(config, tmp_path / "run")
    build_tiny(other, f"text:{ground}/corpus/words.txt", teacher=TinyTeacher(seed=5), **HOW)
    name = made.plan.shards[1].name
    shutil.copyfile(other / name, made.to / name)
    theirs = json.loads(commit_path(other, made.plan.shards[1]).read_bytes())
    changes = {n: theirs[n] for n in ("sha256", "bytes", "statistics")}
    restated(commit_path(made.to, made.plan.shards[1]), **changes)
    longer = config_of(ground, made.to, follow=True, steps=9)
    with pytest.raises(RunError, match="made again and is not the same"):
        train(longer, tmp_path / "run", resume=True)


def test_a_store_whose_learnt_shards_are_others_when_it_is_finished(ground, tmp_path, monkeypatch):
    growing, notices = Growing(ground / "open", tmp_path / "store"), Notices()
    growing.add(*growing.all())
    monkeypatch.setattr(FollowedStore, "reopened", lambda self: open_store(ground / "sampled"))
    train(config_of(ground, growing.to, follow=True), tmp_path / "run", reporter=notices)
    assert any("the run cannot be repeated from it" in line for line in notices.lines)
    assert facts(tmp_path / "run")["store_digest"] == growing.plan.digest


def test_a_plan_that_contradicts_itself(ground, made, tmp_path):
    plan = made.plan
    shards = [*plan.shards[:-1]]
    broken = seal(msgspec.structs.replace(plan, shards=shards))
    (made.to / "plan.json").write_bytes(canonical(broken))
    with pytest.raises(OSError, match=r"its shards hold \d+ rows, the corpus record says"):
        follow_store(made.to, notice=print)


# -- what does not go together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"order": "corpus"}, "--order"),
        ({"order": "store"}, "--order"),
        ({"lanes": 2}, "--lanes"),
        ({"store": ("a", "b")}, "--store"),
        ({"key": "k.pem"}, "--key"),
        ({"digest": ("0" * 64,)}, "--digest"),
    ],
)
def test_settings_that_do_not_go_with_following(ground, changes, said):
    with pytest.raises(ConfigError, match=f"--follow: does not go with this {said}"):
        config_of(ground, ground / "open", follow=True, **changes)


def test_lanes_do_not_go_with_the_order_by_plan(ground):
    with pytest.raises(ConfigError, match="leave --lanes out"):
        config_of(ground, ground / "open", order="plan", lanes=2)
    with pytest.raises(ConfigError, match="leave --lanes out"):
        SoftTargetStream(ground / "open", batch_size=4, order="plan", lanes=4)


def test_an_address_a_short_context_and_a_run_in_another_order(ground, made, tmp_path):
    with pytest.raises(ConfigError, match="is an address"):
        train(config_of(ground, "s3://bucket/store", follow=True), tmp_path / "run")
    (tmp_path / "short.json").write_text(json.dumps(llama(max_position_embeddings=32)))
    short = config_of(ground, made.to, follow=True, student=f"hf-config:{tmp_path / 'short.json'}")
    with pytest.raises(PairingError, match="begin without --follow when the store is finished"):
        train(short, tmp_path / "run")
    train(config_of(ground, ground / "open", steps=2), tmp_path / "corpus")
    with pytest.raises(ConfigError, match="was begun with --order corpus"):
        train(
            config_of(ground, ground / "open", steps=4, follow=True),
            tmp_path / "corpus",
            resume=True,
        )
    with pytest.raises(OSError, match="is followed, and this needs the finished store"):
        assert isinstance(follow_store(made.to, notice=print).manifest, Manifest)


def test_a_first_shard_without_labels_needs_alpha_1(ground, made, tmp_path):
    record = commit_path(made.to, made.plan.shards[0])
    said = json.loads(record.read_bytes())["statistics"]
    restated(record, statistics=said | {"labelled": 0})
    with pytest.raises(PairingError, match=r"none of its rows has a label.*is its first shard"):
        train(config_of(ground, made.to, follow=True), tmp_path / "run")
    train(config_of(ground, made.to, follow=True, alpha=1.0, steps=1), tmp_path / "run")


# -- the order --------------------------------------------------------------------------------------------------------


def test_the_order_by_plan_goes_forward_once_and_then_is_the_corpus_order():
    plan, corpus = (
        CorpusOrder([7] * 11, 77 * 9, "f" * 64, 3, block_slices=4, forward=forward)
        for forward in (True, False)
    )
    first = plan.take(0, 77)
    assert sorted(first.tolist()) == list(range(77))
    for begin in range(0, 77, 8):  # blocks of 4 slices of 2 rows
        block = first[begin : begin + 8]
        assert sorted(block.tolist()) == list(range(begin, min(begin + 8, 77)))
    assert first.tolist() != list(range(77))
    np.testing.assert_array_equal(plan.take(77, 160), corpus.take(77, 160))
    needed = [plan.begun_by(n) for n in (0, 1, 8, 9, 76, 77, 78, 10**6)]
    assert needed == [0, 2, 2, 3, 11, 11, 11, 11]
    for offset in range(1, 77):
        rows = plan.take(0, offset)
        assert plan.begun_by(offset) > rows.max() // 7


def test_a_state_says_what_was_learnt_from(ground):
    stream = SoftTargetStream(ground / "open", batch_size=4, order="plan")
    batches = iter(stream)
    for _ in range(4):
        next(batches)
    batches.close()
    state = stream.state_dict()
    assert state["learnt"]["shards"] == 6
    assert "store" not in state
    again = SoftTargetStream(ground / "open", batch_size=4, order="plan")
    again.load_state_dict(state)
    assert again.state_dict() == state
    said, nothing = state["learnt"], hashlib.sha256().hexdigest()
    for learnt in (
        None,
        {},
        {"shards": 8, "sha256": "0"},
        {"shards": 10**9, "sha256": "0" * 64},
        {"shards": 0, "sha256": nothing},
        {"shards": 0.9, "sha256": nothing},
        {"shards": math.inf, "sha256": nothing},
        said | {"shards": 6.0},
    ):
        with pytest.raises(RunError, match=r"says learnt|learnt from"):
            again.load_state_dict(state | {"learnt": learnt})
    assert again.state_dict() == state
    with pytest.raises(RunError, match="learnt from"):
        SoftTargetStream(ground / "sampled", batch_size=4, order="plan").load_state_dict(state)
    with pytest.raises(RunError):
        SoftTargetStream(ground / "open", batch_size=4, order="corpus").load_state_dict(state)


def test_a_refused_state_changes_nothing(ground):
    stream = SoftTargetStream(ground / "open", batch_size=4, order="plan")
    state = stream.state_at(16)
    other = SoftTargetStream(ground / "sampled", batch_size=4)
    before = other.state_dict()
    with pytest.raises(RunError, match="learnt from"):
        other.load_state_dict(state)
    assert other.state_dict() == before


@pytest.mark.parametrize("elsewhere", [False, True])
def test_states_of_a_dataset_name_the_shards_that_were_learnt_from(ground, elsewhere):
    dataset = SoftTargetDataset(ground / "open", batch_size=4, order="plan")
    if elsewhere:
        dataset = pickle.loads(pickle.dumps(dataset))
    stream = SoftTargetStream(ground / "open", batch_size=4, order="plan")
    for batch in islice(dataset, 5):
        state = dataset.state_dict(after=batch)
        assert state == stream.state_at(batch.offset + 4)
    assert state["learnt"]["shards"] > 0
    dataset.load_state_dict(state)
    assert next(iter(dataset)).offset == 20
    with pytest.raises(RunError, match="learnt from"):
        SoftTargetDataset(ground / "sampled", batch_size=4, order="plan").load_state_dict(state)


def test_shards_are_counted_once_whatever_fails(ground, monkeypatch):
    store = open_store(ground / "open")
    expected, chain, record = Chain(store).digest(9), Chain(store), store.record

    def fails(index):
        if index == 5:
            raise UnreadableError("not now")
        return record(index)

    monkeypatch.setattr(store, "record", fails)
    with pytest.raises(UnreadableError):
        chain.digest(9)
    monkeypatch.setattr(store, "record", record)
    assert chain.digest(9) == expected


def test_a_resume_that_is_refused_does_not_rename_the_run(ground, made, tmp_path):
    """A teacher that does not give the same numbers twice made the finished store of the same plan."""
    run = tmp_path / "run"
    train(config_of(ground, made.to, follow=True, steps=6), run)
    other = tmp_path / "other"
    shutil.copytree(ground / "open", other)
    manifest = json.loads((other / "manifest.json").read_bytes())
    manifest["shards"][1]["sha256"] = "1" * 64
    whole = msgspec.convert(manifest, Manifest)
    digest = content_digest(manifest["identity"], whole.shards)
    whole = msgspec.structs.replace(whole, content_digest=digest)
    (other / "manifest.json").write_bytes(canonical(seal(whole)))
    before = facts(run)
    with pytest.raises(RunError, match="made again and is not the same"):
        train(config_of(ground, other, order="plan", steps=9), run, resume=True)
    assert facts(run) == before
    made.finish()
    train(config_of(ground, made.to, order="plan", steps=9), run, resume=True)
    assert facts(run)["store_digest"] == load_manifest(ground / "open").content_digest


# -- patience ---------------------------------------------------------------------------------------------------------


def test_a_wait_ends_by_a_look_that_found_nobody_however_slow_looks_are(monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE", 0.3)
    looks = []

    def look() -> Work:
        looks.append(time.monotonic())
        time.sleep(0.2)  # so that the next is due after ten times as long
        return Work(len(looks) < 4, 0, "so")

    wait = Wait(look, way_out="go", notice=lambda line: None)
    with pytest.raises(UnfinishedError, match="loads its teacher does not show"):
        wait.until(lambda: None, "one")
    assert len(looks) == 4
    looks.clear()
    assert (
        wait.until(lambda: "there" if len(looks) == 4 else None, "what came meanwhile") == "there"
    )


def test_a_teacher_that_is_loaded_is_waited_for(tmp_path, monkeypatch):
    assert follow.PLAN_PATIENCE >= 3600
    monkeypatch.setattr(follow, "PLAN_PATIENCE", 0.5)
    notices = Notices()
    with pytest.raises(UnfinishedError, match="loads its teacher"):
        follow_store(tmp_path / "nothing", notice=notices.notice)
    assert "or it still loads its teacher" in notices.lines[0]


def test_a_claim_from_the_future_is_no_sign_of_a_builder_unless_it_changes(
    ground, tmp_path, monkeypatch
):
    """As of a store that was unpacked from another clock's archive, whose builders are dead."""
    monkeypatch.setattr(waiting, "PATIENCE", 0.6)
    growing = Growing(ground / "open", tmp_path / "store")
    growing.add(*range(9))
    claim = Claims(growing.to).take([9])
    ahead = time.time() + 7200
    os.utime(claim.path, (ahead, ahead))
    here = Builders(growing.to)
    assert here().alive  # this process
    holder = json.loads(claim.path.read_bytes()) | {"host": "elsewhere", "boot": "another"}
    claim.path.write_bytes(json.dumps(holder).encode())
    os.utime(claim.path, (ahead, ahead))
    assert Builders(growing.to)().text.startswith("no builder is at work")
    with pytest.raises(UnfinishedError, match="shard 9 of"):
        follow_store(growing.to, notice=print).record(9)
    done = threading.Event()

    def renew() -> None:
        times = iter(range(10**6))
        while not done.wait(0.05):
            os.utime(claim.path, (ahead, ahead + next(times)))

    renewing = threading.Thread(target=renew)
    renewing.start()
    later = threading.Timer(2.0, growing.add, (9,))
    later.start()
    assert follow_store(growing.to, notice=print).record(9).rows == ROWS
    done.set()
    renewing.join()


def test_a_record_that_cannot_be_read_now_is_waited_for(ground, made, tmp_path, monkeypatch):
    look, failures = follow.committed, iter(range(3))

    def fails(store, plan, shard, **how):
        if shard.index == 9 and next(failures, None) is not None:
            raise UnreadableError("00009.json: Input/output error")
        return look(store, plan, shard, **how)

    monkeypatch.setattr(follow, "committed", fails)
    notices = Notices()
    train(config_of(ground, made.to, follow=True), tmp_path / "run", reporter=notices)
    assert any("trying again" in line for line in notices.lines)
    same(tmp_path / "run", on_whole(ground, tmp_path / "whole"))
    monkeypatch.setattr(waiting, "PATIENCE", 0.3)
    failures = iter(range(10**6))
    with pytest.raises(UnreadableError, match="Input/output error"):
        follow_store(made.to, notice=print).record(9)


def test_steps_before_a_damaged_shard_are_saved(ground, made, tmp_path):
    whole, run, notices = ground / "open", tmp_path / "run", Notices()
    change(made.to / made.plan.shards[9].name)
    config = config_of(ground, made.to, follow=True, checkpoint_every=100)
    with pytest.raises(RunError, match=r"sha256 .* --resume"):
        train(config, run, reporter=notices)
    assert any(line.startswith("saved after step 5") for line in notices.lines)
    shutil.copyfile(whole / made.plan.shards[9].name, made.to / made.plan.shards[9].name)
    train(config, run, resume=True)
    same(run, on_whole(ground, tmp_path / "whole", checkpoint_every=100))


# -- what others are told ---------------------------------------------------------------------------------------------


def test_the_training_rows_are_no_held_out_rows(ground, made, tmp_path):
    for kind in ("open", "sampled"):  # the same text, by another estimator too
        config = config_of(ground, made.to, follow=True, heldout=str(ground / kind))
        with pytest.raises(RunError, match="is the very store that is trained on"):
            train(config, tmp_path / "run")


@pytest.mark.parametrize("damaged", [False, True])
def test_a_plan_that_a_finished_store_does_not_need_is_none(ground, tmp_path, damaged):
    store, notices = tmp_path / "store", Notices()
    shutil.copytree(ground / "open", store)
    shutil.copyfile(ground / "sampled" / "plan.json", store / "plan.json")
    if damaged:
        change(store / "plan.json")
    config = config_of(ground, store, order="plan")
    train(config, tmp_path / "run", reporter=notices)
    same(tmp_path / "run", on_whole(ground, tmp_path / "whole"))
    assert facts(tmp_path / "run")["plan_digest"] is None
    assert sum("goes on as without plan.json" in line for line in notices.lines) == 1


def test_others_are_told_the_content_where_it_is_known_and_else_the_plan(ground, made, tmp_path):
    run = tmp_path / "run"
    train(config_of(ground, made.to, follow=True, steps=4), run)
    recorded, plan = facts(run), made.plan.digest
    assert provenance(run, follow_store(made.to, notice=print))["plan_digest"] == plan
    assert Tracked(run=run, step=4, facts=recorded).settings["plan_digest"] == plan
    assert "store_digest" not in provenance(run, open_store(ground / "sampled"))
    made.finish()
    content = load_manifest(made.to).content_digest
    found = provenance(run, open_store(made.to))
    assert (found["store_digest"], found.get("plan_digest")) == (content, None)
    finished = open_finished(run)
    assert finished.named_store(finished.training_stores()) == {"store_digest": content}
    assert finished.named_store() == {"plan_digest": plan}
    train(config_of(ground, made.to, order="plan", steps=4), run, resume=True)
    assert Tracked(run=run, step=4, facts=facts(run)).settings["store_digest"] == content
