"""`--order corpus`: stores of one corpus give the same rows at each step, whatever they keep of them."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabels.errors import ConfigError, RunError
from softlabels.store.reader import open_store
from tests.fakes import Notices, TinyTeacher, build_tiny, write_corpus
from tests.students import llama
from tests.trainers import topology
from tests.trainers.topology import Topology
from trainers import MixedStream, SoftTargetStream
from trainers.data import order
from trainers.data.blocks import BlockReader
from trainers.data.order import CorpusOrder, slice_rows
from trainers.run.config import RunConfig
from trainers.run.setup import train

STEPS = 10
OPTIONS = {"batch_size": 8, "seed": 5, "block_shards": 2, "order": "corpus"}
TOPOLOGIES = [Topology(1, -1), Topology(2, -1), Topology(4, 0), Topology(1, 1)]


@pytest.fixture(scope="module", autouse=True)
def small_slices():
    """The corpus of a test has few rows, and is to have several slices; what is compared is their inputs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "SLICE_ROWS", 4)
        patch.setattr(topology, "digest", inputs_digest)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One corpus: other teachers, estimators, codecs, containers, and shards that slices straddle."""
    folder = tmp_path_factory.mktemp("corpus-order")
    corpus = write_corpus(folder / "corpus")
    build_tiny(folder / "topk", corpus, shard_rows=4)
    packed = {"profile": "packed", "container": "zarr", "values": "nat8"}
    build_tiny(
        folder / "sampled",
        corpus,
        estimator="sampled",
        k=3,
        shard_rows=7,
        teacher=TinyTeacher(seed=1),
        **packed,
    )
    build_tiny(folder / "some", corpus, shard_rows=100, positions="random:0.5", temperature=(1, 2))
    (folder / "student.json").write_text(json.dumps(llama()))
    return folder


def inputs_digest(slices):
    """Of a global batch without its targets: which rows, what they hold, in which order."""
    h = hashlib.sha256(repr(sum((b.rows for b in slices), ())).encode())
    for b in slices:
        h.update(b.inputs["input_ids"].reshape(-1)[b.flat_positions].numpy().tobytes())
    for b in slices:
        h.update(b.labels.numpy().tobytes())
    return h.hexdigest()


@pytest.fixture(scope="module")
def expected(folders):
    found, state = topology.run(folders / "topk", Topology(1, -1), STEPS, **OPTIONS)
    assert len(set(found)) == STEPS
    assert json.loads(state)["order"] == "corpus"
    return found


@pytest.mark.parametrize(
    ("name", "place"),
    [("topk", 1), ("sampled", 0), ("sampled", 3), ("some", 2), ("some", 1)],
)
def test_stores_of_one_corpus_give_the_same_rows_on_any_topology_and_after_a_resume(
    folders, expected, name, place
):
    """By digest; the state of one topology is gone on from on the next, in the middle of a block."""
    first, second = TOPOLOGIES[place], TOPOLOGIES[place - 1]
    begun, state = topology.run(folders / name, first, 4, **OPTIONS)
    rest, _ = topology.run(folders / name, second, STEPS - 4, state, **OPTIONS)
    assert begun + rest == expected


def test_by_store_they_do_not(folders, expected):
    options = OPTIONS | {"order": "store"}
    orders = [topology.run(folders / n, Topology(1, -1), 4, **options)[0] for n in ("topk", "some")]
    assert len({*orders[0], *orders[1], *expected[:4]}) == 12


def test_another_corpus_or_seed_comes_in_another_order(folders, tmp_path):
    build_tiny(tmp_path / "other", write_corpus(tmp_path / "c", documents=4), shard_rows=4)
    rows = [
        SoftTargetStream(path, **OPTIONS | {"seed": seed}).batch_at(0).rows
        for path, seed in ((folders / "topk", 5), (folders / "topk", 6), (tmp_path / "other", 5))
    ]
    assert len(set(rows)) == 3


def test_states_are_of_one_order(folders):
    by = {o: SoftTargetStream(folders / "topk", **OPTIONS | {"order": o}) for o in order.ORDERS}
    assert "order" not in by["store"].state_dict()  # as states were before there was another
    for mine, other in (("store", "corpus"), ("corpus", "store")):
        with pytest.raises(RunError, match="the saved stream has order = "):
            by[mine].load_state_dict(by[other].state_dict())
    with pytest.raises(ConfigError, match="--order 'length': expected one of corpus, plan, store"):
        SoftTargetStream(folders / "topk", batch_size=8, order="length")


def test_teachers_of_one_corpus_in_a_mixture_do_not_bring_the_same_rows_at_once(folders, tmp_path):
    """Each has an order of its own, which does not depend on what it keeps either."""
    corpus = write_corpus(tmp_path / "corpus")
    build_tiny(tmp_path / "b", corpus, shard_rows=3, k=3, teacher=TinyTeacher(seed=1))
    build_tiny(tmp_path / "c", corpus, shard_rows=9, k=3, teacher=TinyTeacher(seed=2))
    streams = [
        MixedStream([(folders / "topk", 1), (tmp_path / "b", 1)], **OPTIONS),
        MixedStream([(tmp_path / "c", 1), (tmp_path / "b", 1)], **OPTIONS),
    ]
    batches = [[s.batch_at(8 * i) for i in range(6)] for s in streams]
    assert [b.rows for b in batches[0]] == [b.rows for b in batches[1]]
    twice = sum(n > 1 for b in batches[0] for n in Counter(b.rows).values())
    assert twice <= 8, "of 24 rows of each store"


# -- the order --------------------------------------------------------------------------------------

sizes = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@given(sizes, sizes, st.integers(1, 3), st.integers(0, 200), st.integers(1, 60))
def test_shards_do_not_matter_and_those_of_a_block_hold_its_rows(one, other, block, place, count):
    rows = sum(one)
    while sum(other) < rows:
        other = other + other
    ends = np.minimum(np.cumsum(other), rows)
    held = [int(n) for n in np.diff(ends, prepend=0) if n]
    a, b = (CorpusOrder(s, 7 * rows, "f", 3, block_slices=block) for s in (one, held))
    assert a.take(place, count).tolist() == b.take(place, count).tolist()
    shard_of = np.repeat(np.arange(len(one)), one)
    for piece in a.pieces(place, count):
        named = a.shards_of(piece.block).tolist()
        assert len(named) == len(set(named))
        whole = a._rows_of(piece.block)
        assert set(shard_of[whole].tolist()) == set(named)


def test_the_order_is_pinned():
    """It must not change with a version, or no run could be resumed."""
    found = CorpusOrder([6, 6, 3], 150, "fingerprint", 7, block_slices=2)
    assert found.take(0, 15).tolist() == PINNED


PINNED = [2, 10, 3, 0, 9, 11, 1, 8, 12, 5, 6, 14, 4, 7, 13]


def test_a_slice_is_as_large_as_memory_and_the_order_allow(monkeypatch):
    monkeypatch.setattr(order, "SLICE_ROWS", 256)
    assert slice_rows(10_000, 10_000) == 256  # of one position each
    assert slice_rows(10_000, 10_000 * 1024) == 256
    assert slice_rows(10_000, 10_000 * 1025) == 128
    assert slice_rows(3, 3 * 10**7) == 1
    billion = slice_rows(2 * 10**9, 10**12)
    assert -(-2 * 10**9 // billion) <= order.SLICES


def test_shards_no_larger_than_a_slice_are_decoded_once_an_epoch(folders, tmp_path):
    """Aligned with slices, as those of the default size are."""
    build_tiny(tmp_path / "store", write_corpus(tmp_path / "corpus"), shard_rows=2)
    store = open_store(tmp_path / "store")
    read: list[int] = []
    decode = store.read_shard
    store.read_shard = lambda index, **more: read.append(index) or decode(index, **more)
    stream = SoftTargetStream(store, batch_size=4, lanes=1, block_shards=1, prefetch=0)
    assert isinstance(stream._reader, BlockReader)
    for i in range(len(store) // 4):
        stream.batch_at(4 * i)
    assert len(read) == len(set(read)) >= len(store.manifest.shards) - 1


# -- runs -------------------------------------------------------------------------------------------


def config_of(folders: Path, **changes) -> RunConfig:
    values = {
        "store": str(folders / "topk"),
        "student": f"hf-config:{folders / 'student.json'}",
        "steps": 3,
        "batch_size": 4,
        "log_every": 1,
        "checkpoint_every": 3,
        "dtype": "float32",
        "threads": 1,
    }
    return RunConfig(**(values | changes))


def record(run: Path):
    return json.loads((run / "run.json").read_text())


def test_new_runs_take_the_order_of_the_corpus_and_resume_with_it_alone(folders, tmp_path):
    config = config_of(folders, alpha=0.0)
    train(config, tmp_path / "run")
    assert record(tmp_path / "run")["config"]["order"] == "corpus"
    with pytest.raises(RunError, match="begun with order = 'corpus', this has 'store'"):
        train(config_of(folders, alpha=0.0, order="store"), tmp_path / "run", resume=True)
    train(config_of(folders, alpha=0.0, steps=5), tmp_path / "run", resume=True)
    # Labels alone: on another store of the corpus the very same run.
    train(config_of(folders, alpha=0.0, store=str(folders / "sampled")), tmp_path / "other")
    one, other = ((tmp_path / r / "metrics.jsonl").read_text() for r in ("run", "other"))
    losses = [[json.loads(x)["loss"] for x in t.splitlines()][:3] for t in (one, other)]
    assert losses[0] == losses[1]


def test_a_run_of_before_goes_on_with_its_own_order(folders, tmp_path):
    """Neither run.json nor the stream's state says one: it was that of the store."""
    run = tmp_path / "run"
    train(config_of(folders, order="store", steps=6), run)
    whole = (run / "metrics.jsonl").read_text()
    for folder in ("checkpoints/step-00000006", "student"):
        shutil.rmtree(run / folder)
    facts = record(run)
    del facts["config"]["order"]
    (run / "run.json").write_text(json.dumps(facts))
    told = Notices()
    train(config_of(folders, steps=6), run, resume=True, reporter=told)
    assert any("resuming after step 3" in line for line in told.lines)
    again = (run / "metrics.jsonl").read_text()
    losses = [[json.loads(x)["loss"] for x in text.splitlines()] for text in (whole, again)]
    assert losses[0] == losses[1]
    with pytest.raises(RunError, match="begun with order = 'store', this has 'corpus'"):
        train(config_of(folders, steps=6, order="corpus"), run, resume=True)
