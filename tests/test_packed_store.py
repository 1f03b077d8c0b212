"""A packed store from end to end: built, verified, mended, resumed and trained from, for every estimator."""

from __future__ import annotations

import json
import multiprocessing
import time

import numpy as np
import pytest

from softlabels.format.manifest import load_manifest
from softlabels.making.repair import repair_store
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.fakes import TinyTeacher, build_tiny
from tests.fixtures.make import DOCUMENTS
from tests.store.made_up import files_of, held_by
from tests.students import LLAMA
from trainers.run.config import RunConfig
from trainers.run.setup import train

KINDS = {
    "topk": {"estimator": "topk", "temperature": (1.0, 2.0)},
    "topp": {"estimator": "topp", "k": 40, "top_p": 0.9, "temperature": (0.5, 1.0)},
    "dense": {"estimator": "dense", "k": 300},
    "sampled": {"estimator": "sampled", "k": 8, "temperature": (2.0,)},
    "rs": {"estimator": "rs", "k": 12},
}
estimators = pytest.mark.parametrize("kind", KINDS)
SMALL = {"limit_rows": 6, "shard_rows": 2, "seq_len": 32, "profile": "packed"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    """Texts and chats; several documents in a row."""
    path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    path.write_text("".join(json.dumps(d) + "\n" for d in DOCUMENTS), encoding="utf-8")
    return f"jsonl:{path}"


def sorted_by_id(t):
    ids = np.where(t.kept, t.ids, np.int64(2**31))
    order = np.argsort(ids, axis=1, kind="stable")
    return ids, order


@estimators
@pytest.mark.parametrize("values", ["nat8", "nat16", "nat32", "nat64", "float16", "float32", None])
def test_a_packed_store_holds_what_an_open_one_does(tmp_path, corpus, kind, values):
    build_tiny(tmp_path / "packed", corpus, values=values, **KINDS[kind], **SMALL)
    build_tiny(
        tmp_path / "open", corpus, values="float32", **KINDS[kind], **(SMALL | {"profile": "open"})
    )
    assert verify_store(tmp_path / "packed").problems == []
    assert repair_store(tmp_path / "packed").actions == []
    coded, plain = open_store(tmp_path / "packed"), open_store(tmp_path / "open")
    encoding = coded.manifest.identity.encoding
    default = {"sampled": "nat8", "rs": "counts"}.get(kind, "nat16")
    assert (encoding.profile, encoding.values) == ("packed", values or default)
    assert coded.manifest.statistics == plain.manifest.statistics
    for a, b in zip(plain, coded, strict=True):
        assert a.row.digest() == b.row.digest()
        np.testing.assert_array_equal(a.row.documents, b.row.documents)
        if a.targets.n == 0:
            assert b.targets.n == 0
            continue
        (ids, order), (ids_back, order_back) = sorted_by_id(a.targets), sorted_by_id(b.targets)
        ids = np.take_along_axis(ids, order, 1)
        ids_back = np.take_along_axis(ids_back, order_back, 1)
        k = b.targets.k
        np.testing.assert_array_equal(ids[:, :k], ids_back)
        assert (ids[:, k:] == 2**31).all()
        t = 1.0 if 1.0 in a.targets.temperatures else 2.0
        logp = np.take_along_axis(a.targets.log_probs(t), order, 1)[:, :k]
        back = np.take_along_axis(b.targets.log_probs(t), order_back, 1)
        kept = np.isfinite(back)
        reach = np.abs(logp[kept]).max()
        bound = 3 * encoding.relative_error * reach + encoding.absolute_error
        assert np.abs(logp[kept] - back[kept]).max() <= bound + 1e-4
        for t in a.targets.temperatures:
            total = b.targets.probs(t).sum(1) + b.targets.tail(t)
            np.testing.assert_allclose(total, 1, atol=1e-5)


def test_a_packed_store_is_smaller(tmp_path):
    """Of text that does not repeat itself: repeats are what zstd is for, and packed streams are not."""
    letters = np.random.default_rng(0).integers(97, 123, 6000).astype(np.uint8)
    (tmp_path / "text.txt").write_bytes(letters.tobytes())
    sizes = {}
    for profile in ("open", "packed"):
        corpus = f"text:{tmp_path}/text.txt"
        build_tiny(tmp_path / profile, corpus, k=12, shard_rows=64, profile=profile)
        sizes[profile] = load_manifest(tmp_path / profile).data_bytes
    assert sizes["packed"] < 0.75 * sizes["open"], sizes


@estimators
def test_a_damaged_packed_store_is_mended(tmp_path, corpus, kind):
    store = tmp_path / "store"
    build_tiny(store, corpus, **KINDS[kind], **SMALL)
    whole = files_of(store)
    name = load_manifest(store).shards[1].name
    data = whole[name]
    (store / name).write_bytes(
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    )
    (store / "commits/00002.json").unlink()  # its shard is adopted
    assert len(verify_store(store).problems) == 2
    assert repair_store(store).rebuild == [name]
    build_tiny(store, corpus, **KINDS[kind], **SMALL)
    assert verify_store(store).problems == []
    now = held_by(store)
    assert now.keys() == whole.keys()
    assert {n: d for n, d in now.items() if n.startswith("data/")} == {
        n: d for n, d in whole.items() if n.startswith("data/")
    }


class Slow(TinyTeacher):
    def logits(self, rows):
        time.sleep(0.2)
        yield from super().logits(rows)


def _build(store, corpus, kind):
    build_tiny(store, corpus, teacher=Slow(), **KINDS[kind], **SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["topp", "sampled"])
def test_killed_and_resumed_gives_the_same_bytes(tmp_path, corpus, kind):
    build_tiny(tmp_path / "whole", corpus, **KINDS[kind], **SMALL)
    store = tmp_path / "killed"
    child = multiprocessing.get_context("spawn").Process(target=_build, args=(store, corpus, kind))
    child.start()
    deadline = time.monotonic() + 60
    while not (store / "commits" / "00000.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    child.join()
    assert child.exitcode == -9
    assert not (store / "manifest.json").exists()
    (store / "commits" / "00000.json").unlink()  # as if it had died between shard and record
    build_tiny(store, corpus, **KINDS[kind], **SMALL)
    assert verify_store(store).problems == []
    whole, now = files_of(tmp_path / "whole"), files_of(store)
    for name in whole:
        if name.startswith("data/"):
            assert now[name] == whole[name]
    assert load_manifest(store).content_digest == load_manifest(tmp_path / "whole").content_digest


@estimators
def test_students_are_trained_from_it(tmp_path, corpus, kind):
    (tmp_path / "student.json").write_text(json.dumps(LLAMA))
    losses = []
    for profile, values in (("open", "float32"), ("packed", "nat64")):
        store = tmp_path / profile
        build_tiny(store, corpus, **KINDS[kind], **(SMALL | {"profile": profile, "values": values}))
        config = RunConfig(
            store=str(store),
            student=f"hf-config:{tmp_path / 'student.json'}",
            steps=2,
            batch_size=4,
            log_every=1,
            temperature=KINDS[kind].get("temperature", (1.0,))[0],
            dtype="float32",
        )
        run = tmp_path / f"run-{profile}"
        train(config, run)
        lines = (run / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert len(losses[0]) == 2
    assert np.isfinite(losses).all()
