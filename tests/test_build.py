"""The builder: exact, resumable, and it loses nothing."""

import contextlib
import ctypes
import hashlib
import multiprocessing
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from softlabels.builder.build import build, load_teacher
from softlabels.builder.teach import draw_uniforms
from softlabels.core import durable
from softlabels.corpora import open_corpora
from softlabels.corpora.packing import pack
from softlabels.errors import ConfigError, CorpusError, NonFiniteError, PlanError, StoreError
from softlabels.estimators import native
from softlabels.format.manifest import load_manifest
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.fakes import ByteTokenizer, Notices, TinyTeacher, build_tiny, config_of, write_corpus


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")


def files_of(store: Path) -> dict[str, str]:
    return {
        p.relative_to(store).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(store.rglob("*"))
        if p.is_file()
    }


def data_of(store: Path) -> dict[str, str]:
    return {n: d for n, d in files_of(store).items() if n.startswith("data/")}


@pytest.mark.parametrize("values", ["float16", "float32"])
def test_every_stored_position_equals_the_dense_teacher(corpus, tmp_path, values):
    teacher = TinyTeacher()
    build_tiny(
        tmp_path / "s", corpus, teacher=teacher, temperature=(2.0, 1.0, 4.0), k=9, values=values
    )
    store = open_store(tmp_path / "s")
    bound = store.manifest.identity.encoding
    rows = [r for _, r in pack(open_corpora([corpus]), ByteTokenizer(), seq_len=64, vocab_size=300)]
    assert len(rows) == len(store)
    for stored, row in zip(store, rows, strict=True):
        np.testing.assert_array_equal(stored.row.input_ids, row.input_ids)
        z = teacher.dense(row).double()
        t = stored.targets
        ids = torch.from_numpy(t.ids.copy()).long()
        assert torch.equal(ids.sort(1).values, z.topk(9, 1).indices.sort(1).values)
        for temperature in (1.0, 2.0, 4.0):
            p = torch.softmax(z / temperature, 1)
            # |error of a log-probability|: of its own value, of the largest, and of the log-odds.
            largest = float(torch.log_softmax(z, 1).gather(1, ids).abs().max()) + 20
            slack = 3 * (bound.relative_error * largest + bound.absolute_error) + 2e-5
            found = torch.from_numpy(t.log_probs(temperature)).double()
            assert float((found - p.gather(1, ids).log()).abs().max()) <= slack
            tail = p.scatter(1, ids, 0.0).sum(1)
            odds = torch.from_numpy(t.tail(temperature)).double()
            torch.testing.assert_close(odds, tail, rtol=slack, atol=1e-12)


def test_a_sampled_store_repeats_itself_and_follows_its_seed(corpus, tmp_path):
    kw = {"estimator": "sampled", "k": 6}
    build_tiny(tmp_path / "a", corpus, **kw)
    build_tiny(tmp_path / "b", corpus, **kw)
    build_tiny(tmp_path / "c", corpus, **kw, seed=1)
    assert data_of(tmp_path / "a") == data_of(tmp_path / "b")
    assert (
        load_manifest(tmp_path / "a").content_digest == load_manifest(tmp_path / "b").content_digest
    )
    assert data_of(tmp_path / "a") != data_of(tmp_path / "c")


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"estimator": "topk", "k": 9}, {9}),
        ({"estimator": "topp", "k": 9, "top_p": 0.6, "min_k": 2}, set(range(2, 10))),
        ({"estimator": "sampled", "k": 9}, {9}),
        ({"estimator": "rs", "k": 9}, set(range(1, 10))),
        ({"estimator": "dense", "k": 300}, {300}),
    ],
)
def test_every_estimator_makes_a_store_that_reads_back(corpus, tmp_path, changes, kept):
    build_tiny(tmp_path / "s", corpus, limit_rows=6, **changes)
    assert verify_store(tmp_path / "s").problems == []
    store = open_store(tmp_path / "s")
    found = set()
    for stored in store:
        t = stored.targets
        found |= set(t.kept.sum(1).tolist())
        np.testing.assert_allclose(t.probs(1.0).sum(1) + t.tail(1.0), 1.0, rtol=1e-5)
    assert found <= kept
    assert len(found) == len(kept) or len(found) > 3
    before = data_of(tmp_path / "s")
    build_tiny(tmp_path / "again", corpus, limit_rows=6, **changes)
    assert data_of(tmp_path / "again") == before


@pytest.mark.parametrize(
    "changes", [{"estimator": "topp"}, {"estimator": "topk", "top_p": 0.5}, {"min_k": 3}]
)
def test_flags_of_another_estimator_are_refused(corpus, changes):
    with pytest.raises(ConfigError, match=r"--(top-p|min-k).* --estimator topp"):
        config_of(corpus, **changes)


def test_where_the_files_lie_is_not_part_of_a_store(tmp_path):
    """Two people's equal builds have one digest, and no path of theirs is in what they share."""
    found = []
    for person in ("ann", "bob"):
        corpus = write_corpus(tmp_path / person / "books")
        found.append(build_tiny(tmp_path / person / "store", corpus))
        record = (tmp_path / person / "store" / "manifest.json").read_text()
        assert str(tmp_path) not in record
    assert found[0].content_digest == found[1].content_digest
    assert found[0].identity.corpus.specs == ["text:*.txt"]


def test_uniforms_are_pinned():
    np.testing.assert_array_equal(draw_uniforms(7, 3, 2), PINNED_UNIFORMS)


# A sampled store can be redone only while these stay the same.
PINNED_UNIFORMS = [0.4821286018761155, 0.7241355726248441]


def test_batch_size_does_not_change_what_is_stored(corpus, tmp_path):
    build_tiny(tmp_path / "a", corpus, batch_tokens=1)
    build_tiny(tmp_path / "b", corpus, batch_tokens=4096)
    assert data_of(tmp_path / "a") == data_of(tmp_path / "b")


def _build_in_child(out: Path, corpus: str, start: "multiprocessing.synchronize.Event") -> None:
    torch.set_num_threads(1)
    start.set()
    build_tiny(out, corpus)


@pytest.mark.slow
def test_kill_minus_9_at_20_random_moments(tmp_path):
    torch.set_num_threads(1)  # a forked child must not wait for threads that it does not have
    corpus = write_corpus(tmp_path / "corpus", documents=4, repeat=6)
    build_tiny(tmp_path / "whole", corpus)
    begin = time.monotonic()  # the first may load whatever is loaded late
    build_tiny(tmp_path / "timed", corpus)
    duration = time.monotonic() - begin
    out = tmp_path / "killed"
    rng = random.Random(1)
    context = multiprocessing.get_context("fork")
    killed = 0
    for attempt in range(200):  # noqa: B007
        started = context.Event()
        child = context.Process(target=_build_in_child, args=(out, corpus, started))
        child.start()
        started.wait()
        if killed < 20:
            # Late enough to make progress now and then, early enough to be cut in every phase.
            time.sleep(rng.uniform(0, 0.35) * duration)
            child.kill()
        child.join()
        killed += child.exitcode == -9
        if child.exitcode == 0:
            break
    if killed < 20:  # it finished early: cut fresh builds until 20 moments were tried
        while killed < 20:
            other = tmp_path / f"fresh-{killed}"
            started = context.Event()
            child = context.Process(target=_build_in_child, args=(other, corpus, started))
            child.start()
            started.wait()
            time.sleep(rng.uniform(0, 0.9) * duration)
            child.kill()
            child.join()
            killed += 1
            build_tiny(other, corpus)
            assert data_of(other) == data_of(tmp_path / "whole")
            assert verify_store(other).problems == []
    assert killed >= 20
    assert attempt > 1, "the first child was never cut"
    assert data_of(out) == data_of(tmp_path / "whole")
    assert sorted(files_of(out)) == sorted(files_of(tmp_path / "whole"))  # no leftovers
    assert verify_store(out).problems == []


STEPS = ["write", "fsync", "read", "link", "sync"]


class Died(BaseException):
    """Stands for the process dying: nothing catches it."""


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", range(0, 22, 3))
def test_death_at_every_step_of_every_publication(corpus, tmp_path, monkeypatch, step, after):
    """Raise at the n-th occurrence of each system call that publishing makes, then build again."""
    build_tiny(tmp_path / "whole", corpus)
    calls = 0

    def dying(real):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == after + 1:
                raise Died
            return real(*args, **kwargs)

        return call

    out = tmp_path / "out"
    with monkeypatch.context() as m:
        if step == "fsync":
            m.setattr(durable.os, "fsync", dying(durable.os.fsync))
        elif step == "link":
            m.setattr(durable.os, "link", dying(durable.os.link))
        elif step == "sync":
            m.setattr(durable, "sync_folder", dying(durable.sync_folder))
        elif step == "read":
            m.setattr(durable.Path, "read_bytes", dying(durable.Path.read_bytes))
        else:
            m.setattr(durable, "token_hex", dying(durable.token_hex))
        with contextlib.suppress(Died):  # where it happens fewer times than `after`, nothing dies
            build_tiny(out, corpus)
    build_tiny(out, corpus)
    assert data_of(out) == data_of(tmp_path / "whole")
    assert verify_store(out).problems == []


def test_an_interrupted_build_keeps_its_finished_shards(corpus, tmp_path):
    teacher = TinyTeacher()
    teacher.poison = (1000, float("nan"))
    with pytest.raises(NonFiniteError):
        build_tiny(tmp_path / "s", corpus, teacher=teacher)
    done = data_of(tmp_path / "s")
    assert len(done) >= 1
    teacher.poison = None
    build_tiny(tmp_path / "s", corpus, teacher=teacher)
    assert done.items() <= data_of(tmp_path / "s").items()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_logit_names_row_and_token_and_stores_nothing_of_the_shard(corpus, tmp_path, value):
    teacher = TinyTeacher()
    teacher.poison = (70, value)  # 63 positions in row 0: row 1, position 7
    with pytest.raises(
        NonFiniteError, match=r"logit (nan|inf) at row 1, token 7 .*--dtype float32"
    ):
        build_tiny(tmp_path / "s", corpus, teacher=teacher)
    assert not (tmp_path / "s" / "data").exists()
    assert not (tmp_path / "s" / "manifest.json").exists()


def test_a_committed_shard_that_was_damaged_is_built_again(corpus, tmp_path):
    build_tiny(tmp_path / "s", corpus)
    whole = data_of(tmp_path / "s")
    (tmp_path / "s" / "manifest.json").unlink()
    shard = sorted((tmp_path / "s" / "data").iterdir())[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    notices = []

    class Reporter:
        def notice(self, message):
            notices.append(message)

        def stage(self, *a):
            pass

        def advance(self, amount, note=None):
            pass

    build(config_of(corpus), tmp_path / "s", teacher=TinyTeacher(), reporter=Reporter())
    assert any("making shard 1 again" in n for n in notices)
    assert data_of(tmp_path / "s") == whole
    assert verify_store(tmp_path / "s").problems == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": 6}, "targets k = 5"),
        ({"temperature": (1.0, 2.0)}, "temperatures"),
        ({"seq_len": 32}, "seq_len = 64"),
        ({"values": "float32"}, "values = 'float16'"),
        ({"shard_rows": 4}, "shard_rows = 8"),
        ({"limit_rows": 3}, "limit_rows = None"),
        ({"estimator": "sampled"}, "estimator = 'topk'"),
        ({"licence": "MIT"}, "licence"),
    ],
)
def test_another_job_in_the_same_folder_is_refused(corpus, tmp_path, changes, words):
    build_tiny(tmp_path / "s", corpus)
    before = files_of(tmp_path / "s")
    with pytest.raises(PlanError, match=words):
        build_tiny(tmp_path / "s", corpus, **changes)
    assert files_of(tmp_path / "s") == before


def test_another_teacher_or_tokenizer_is_refused(corpus, tmp_path):
    build_tiny(tmp_path / "s", corpus)
    with pytest.raises(PlanError, match="weights_sha256"):
        build_tiny(tmp_path / "s", corpus, teacher=TinyTeacher(seed=1))
    with pytest.raises(PlanError, match="tokenizer sha256"):
        build_tiny(tmp_path / "s", corpus, teacher=TinyTeacher(salt="x"))


def test_a_corpus_that_changed_since_the_plan_is_found(corpus, tmp_path):
    teacher = TinyTeacher()
    teacher.poison = (1000, float("nan"))
    with pytest.raises(NonFiniteError):
        build_tiny(tmp_path / "s", corpus, teacher=teacher)
    last = sorted((tmp_path / "corpus").iterdir())[-1]
    last.write_text(last.read_text() + "More.")
    with pytest.raises(CorpusError, match="the corpus changed"):
        build_tiny(tmp_path / "s", corpus)


def test_a_build_reads_its_corpus_twice_however_many_shards(corpus, tmp_path):
    """Once to plan, once to teach: not once for each shard."""
    encoded = []

    class Counting(ByteTokenizer):
        def encode(self, text):
            encoded.append(text)
            return super().encode(text)

    teacher = TinyTeacher()
    teacher.tokenizer = Counting()
    manifest = build_tiny(tmp_path / "s", corpus, teacher=teacher, shard_rows=2)
    assert len(manifest.shards) > 10
    assert len(encoded) == 2 * manifest.identity.corpus.documents


def test_a_finished_store_is_left_alone(corpus, tmp_path):
    build_tiny(tmp_path / "s", corpus)
    before = files_of(tmp_path / "s")
    build_tiny(tmp_path / "s", corpus)
    assert files_of(tmp_path / "s") == before


def test_a_folder_of_something_else_is_refused(corpus, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("all my work")
    with pytest.raises(PlanError, match=r"thesis\.tex"):
        build_tiny(tmp_path / "s", corpus)
    assert (tmp_path / "s" / "thesis.tex").read_text() == "all my work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(PlanError, match="not a folder"):
        build_tiny(tmp_path / "file", corpus)


def test_a_full_disk_says_so_and_the_rest_is_built_later(corpus, tmp_path, monkeypatch):
    import errno

    real = durable.os.fsync
    calls = 0

    def full(handle):
        nonlocal calls
        calls += 1
        if calls > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(StoreError, match=r"disk is full.*same command again"):
        build_tiny(tmp_path / "s", corpus)
    monkeypatch.undo()
    build_tiny(tmp_path / "s", corpus)
    assert verify_store(tmp_path / "s").problems == []


def test_a_corpus_of_nothing_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("  \n")
    with pytest.raises(CorpusError, match=r"a\.txt: the text is empty.*--skip-empty"):
        build_tiny(tmp_path / "s", f"text:{tmp_path}/*.txt")
    with pytest.raises(CorpusError, match="no document"):
        build_tiny(tmp_path / "s", f"text:{tmp_path}/*.txt", skip_empty=True)


def test_more_ids_than_the_vocabulary_is_refused(corpus, tmp_path):
    with pytest.raises(ConfigError, match="only 300 ids"):
        build_tiny(tmp_path / "s", corpus, k=301)


def test_the_teacher_s_own_loss_is_recorded(corpus, tmp_path):
    teacher = TinyTeacher()
    manifest = build_tiny(tmp_path / "s", corpus, teacher=teacher)
    expected = sum(
        float(
            torch.nn.functional.cross_entropy(
                teacher.dense(s.row).double(),
                torch.from_numpy(s.row.labels).long(),
                reduction="sum",
            )
        )
        for s in open_store(tmp_path / "s")
    )
    assert manifest.statistics.teacher_nll == pytest.approx(expected, rel=1e-5)


def test_where_no_c_is_compiled_the_build_says_that_torch_selects(corpus, tmp_path, monkeypatch):
    reason = "there is no C compiler (cc)"
    for fewest, built, said in (
        (1, native.Native(None, reason), [reason]),
        (301, native.Native(None, reason), []),  # for so few ids nothing is compiled
        (1, native.Native(ctypes.CDLL(None), ""), []),
    ):
        monkeypatch.setattr(native, "FEWEST_IDS", fewest)
        monkeypatch.setattr(native, "built", lambda built=built: built)
        notices = Notices()
        load_teacher(config_of(corpus), None, notices, given=TinyTeacher())
        assert [line.partition("C: ")[2] for line in notices.lines] == said
