"""Training from an address: the same student, little fetched, a network that fails, and two people with a server."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from softlabels.core.progress import Silent
from softlabels.errors import RemoteError
from softlabels.format.manifest import MANIFEST, load_manifest
from softlabels.format.part import PART
from softlabels.store.reader import open_store
from softlabels.store.remote.cache import CacheOptions
from softlabels.store.remote.client import Client
from softlabels.store.verify import verify_store
from tests.fakes import build_tiny, write_corpus
from tests.store.made_up import reseal
from tests.store.s3 import Proxy, environment, s3_server, upload
from tests.students import LLAMA
from tests.trainers.test_loop import config_of
from trainers.data.dataset import SoftTargetDataset
from trainers.data.stream import SoftTargetStream
from trainers.run.setup import train

ROOT = Path(__file__).parents[2]
OPTIONS = {"batch_size": 2, "block_shards": 2, "order": "store", "lanes": 1}
"""Two shards at a time, one block after the other."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """A store of 40 shards with a licence, and a student. Read only."""
    folder = tmp_path_factory.mktemp("remote")
    corpus = write_corpus(folder / "text", documents=10)
    build_tiny(folder / "store", corpus, shard_rows=2, limit_rows=80, licence="CC-BY-4.0")
    (folder / "student.json").write_text(json.dumps(LLAMA))
    assert len(load_manifest(folder / "store").shards) == 40
    return folder


@pytest.fixture(scope="module")
def server():
    with s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def url(ground, server) -> str:
    return upload(ground / "store", server, "train")


@pytest.fixture
def proxy(server, tmp_path, monkeypatch):
    with Proxy(server) as proxy:
        for name, value in environment(proxy.url, tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        yield proxy


def rows_of(stream, count: int) -> list[tuple[int, ...]]:
    batches = iter(stream)
    found = [next(batches).rows for _ in range(count)]
    batches.close()
    return found


@pytest.mark.slow
def test_the_same_student_as_from_the_folder(ground, url, proxy, tmp_path):
    config = {"steps": 8, "student": f"hf-config:{ground / 'student.json'}"}
    cache = {"cache": str(tmp_path / "own"), "cache_gib": 1.0}
    far = train(config_of(ground, store=url, **cache, **config), tmp_path / "far")
    near = train(config_of(ground, **config), tmp_path / "near")
    a, b = (load_file(p / "model.safetensors") for p in (far, near))
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[n], b[n]) for n in a)
    assert (far / "tokenizer.json").exists()
    assert any((tmp_path / "own").iterdir())
    assert not (tmp_path / "cache").exists()
    # and it goes on from the folder where it was broken off at the address
    resumed = train(config_of(ground, **config), tmp_path / "far", resume=True)
    assert resumed == far


def test_only_what_comes_next_is_fetched(url, proxy):
    rows = rows_of(SoftTargetStream(url, **OPTIONS), 2)
    assert len(rows) == 2
    assert 2 <= len(proxy.gets("/data/")) <= 10  # the block of two at hand, and two more blocks


@pytest.mark.parametrize("prefetch", [0, 2])
def test_the_same_order_with_and_without_looking_ahead(ground, url, proxy, prefetch):
    options = {"batch_size": 4, "block_shards": 4, "seed": 3, "prefetch": prefetch}
    far = rows_of(SoftTargetStream(url, **options), 30)
    assert far == rows_of(SoftTargetStream(ground / "store", **options), 30)
    assert len(proxy.gets("/data/")) == 40  # 120 rows, from 40 shards of 2: none twice


def test_a_cache_smaller_than_the_store(ground, url, proxy, tmp_path, monkeypatch):
    size = load_manifest(ground / "store").data_bytes
    monkeypatch.setenv("SOFTLABELS_CACHE_GIB", repr(size / 2 / 2**30))
    options = {"batch_size": 4, "block_shards": 2}
    far = rows_of(SoftTargetStream(url, **options), 40)
    assert far == rows_of(SoftTargetStream(ground / "store", **options), 40)
    kept = sum(p.stat().st_size for p in (tmp_path / "cache").iterdir())
    assert 0 < kept <= size / 2


def test_the_network_is_away_for_a_while(ground, url, proxy):
    stream = SoftTargetStream(url, **OPTIONS)
    batches = iter(stream)
    found = [next(batches).rows]
    proxy.cut()
    timer = threading.Timer(1.5, proxy.mend)
    timer.start()
    found += [next(batches).rows for _ in range(39)]
    batches.close()
    timer.join()
    assert found == rows_of(SoftTargetStream(ground / "store", **OPTIONS), 40)


@pytest.mark.slow
def test_the_network_is_away_for_20_seconds_and_training_goes_on(ground, url, proxy, tmp_path):
    options = {"steps": 150, "student": f"hf-config:{ground / 'student.json'}", "accumulate": 1}
    began = threading.Event()

    class Reporter(Silent):
        def advance(self, amount, note=None):
            began.set()

    def outage():
        began.wait(60)
        proxy.cut()
        time.sleep(20)
        proxy.mend()

    thread = threading.Thread(target=outage)
    thread.start()
    config = config_of(ground, store=url, cache=str(tmp_path / "c"), **options)
    far = train(config, tmp_path / "far", reporter=Reporter())
    thread.join()
    near = train(config_of(ground, **options), tmp_path / "near")
    a, b = (load_file(p / "model.safetensors") for p in (far, near))
    assert all(np.array_equal(a[n], b[n]) for n in a)


def test_away_for_good_names_the_shard(ground, url, proxy, tmp_path, monkeypatch):
    monkeypatch.setitem(Client.__init__.__kwdefaults__, "patience", 0.5)
    stream = SoftTargetStream(open_store(url, cache=CacheOptions(gib=0)), batch_size=2)
    batches = iter(stream)
    next(batches)
    proxy.cut()
    with pytest.raises(
        RemoteError, match=r"s3://bucket/train/data/train-\S+: nothing came for 0.5"
    ):
        list(islice(batches, 40))
    batches.close()


def test_closing_does_not_wait_for_the_network(url, proxy):
    batches = iter(SoftTargetStream(url, **OPTIONS))
    next(batches)
    proxy.cut()
    time.sleep(0.3)
    start = time.perf_counter()
    batches.close()
    assert time.perf_counter() - start < 20


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # as in test_topology
def test_spawned_workers_share_the_cache(ground, url, proxy):
    from torch.utils.data import DataLoader

    options = {"batch_size": 4, "block_shards": 4}
    dataset = SoftTargetDataset(url, **options)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    batches = iter(loader)
    found = [next(batches).rows for _ in range(20)]
    assert found == rows_of(SoftTargetStream(ground / "store", **options), 20)
    del batches, loader
    gets = proxy.gets("/data/")
    # What one worker gives up, for it is past it, the other may be the first to need.
    assert len(gets) < 1.2 * len(set(gets))


# -- two people -------------------------------------------------------------------------------------


def earlier(store: Path, count: int, out: Path) -> Path:
    """What a store was before its last shards were appended: the first `count` of them."""
    shutil.copytree(store, out)
    whole = open_store(store)
    for i, shard in list(enumerate(whole.manifest.shards))[count:]:
        (out / shard.name).unlink()
        (out / f"commits/{i:05d}.json").unlink()
    shards = [whole.read_shard(i) for i in range(count)]
    digests = hashlib.sha256(b"".join(r.digest() for s in shards for r in s.rows))
    corpus = {
        "rows": sum(len(s.rows) for s in shards),
        "positions": sum(s.targets.n for s in shards),
        "tokens": sum(len(r.input_ids) for s in shards for r in s.rows),
        "fingerprint": digests.hexdigest(),
    }
    raw = json.loads((store / MANIFEST).read_bytes())
    changes = {f"identity__corpus__{n}": v for n, v in corpus.items()}
    reseal(out / MANIFEST, **changes, shards=raw["shards"][:count])
    assert verify_store(out).problems == []
    return out


class Person:
    """Somebody with a home, a cache and a command line of their own."""

    def __init__(self, home: Path, proxy: Proxy) -> None:
        self.home, self.proxy = home, proxy
        home.mkdir()
        self._environment = {
            **{n: v for n, v in os.environ.items() if n in ("PATH", "OMP_NUM_THREADS", "LANG")},
            **environment(proxy.url, home / "cache"),
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
        }

    def run(self, tool: str, *arguments: str, exit_code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", tool, *arguments],
            cwd=self.home,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == exit_code, done.stderr
        return done.stdout + done.stderr


@pytest.mark.slow
def test_two_people_share_a_store_that_grows(ground, server, tmp_path):
    with Proxy(server) as wire_a, Proxy(server) as wire_b:
        a, b = Person(tmp_path / "a", wire_a), Person(tmp_path / "b", wire_b)
        store = earlier(ground / "store", 30, a.home / "store")
        address = "s3://bucket/shared"
        assert "30 of 30 shards" in a.run("softlabels", "push", "store", address)

        shown = b.run("softlabels", "inspect", address)
        assert "CC-BY-4.0" in shown
        assert "60 rows" in shown
        assert wire_b.gets("/data/") == []

        b.run("softlabels", "pull", address, "store", "--share", "0.1")
        assert len(wire_b.gets("/data/")) == 3
        assert (b.home / "store" / MANIFEST).read_bytes() == (store / MANIFEST).read_bytes()
        assert (b.home / "store" / "README.md").read_text().startswith("---")
        assert "6 rows" in b.run("softlabels", "verify", "store")
        shutil.copy(ground / "student.json", b.home)
        training = [
            "run",
            "--student",
            "hf-config:student.json",
            "--steps",
            "3",
            "--batch-size",
            "2",
        ]
        b.run("trainers", *training, "--store", "store", "--out", "run")

        shutil.rmtree(store)
        shutil.copytree(ground / "store", store)  # it grew by ten shards
        before = len([r for r in wire_a.requests if r.startswith("PUT") and "/data/" in r])
        assert "10 of 40 shards" in a.run("softlabels", "push", "store", address)
        puts = [r for r in wire_a.requests if r.startswith("PUT") and "/data/" in r]
        assert len(puts) - before == 10

        had = len(wire_b.gets("/data/"))
        b.run("softlabels", "pull", address, "store")
        new = wire_b.gets("/data/")[had:]
        assert len(new) == 40 - 3
        assert not (b.home / "store" / PART).exists()
        had = len(wire_b.gets("/data/"))
        b.run("softlabels", "pull", address, "store")
        assert len(wire_b.gets("/data/")) == had
        assert "80 rows" in b.run("softlabels", "verify", "store")
        b.run("trainers", *training, "--store", address, "--out", "run2")

        shard = next((b.home / "store" / "data").iterdir())
        data = bytearray(shard.read_bytes())
        data[40] ^= 1
        shard.write_bytes(data)
        assert shard.name in b.run(
            "trainers", *training, "--store", "store", "--out", "run3", "--steps", "60", exit_code=1
        )


def test_a_whole_store_that_grew_costs_its_new_shards(ground, server, tmp_path):
    with Proxy(server) as wire:
        a, b = Person(tmp_path / "a", wire), Person(tmp_path / "b", wire)
        earlier(ground / "store", 38, a.home / "store")
        a.run("softlabels", "push", "store", "s3://bucket/grown")
        b.run("softlabels", "pull", "s3://bucket/grown", "store")
        had = len(wire.gets("/data/"))
        a.run("softlabels", "push", str(ground / "store"), "s3://bucket/grown")
        had = len(wire.gets("/data/"))
        b.run("softlabels", "pull", "s3://bucket/grown", "store")
        assert len(wire.gets("/data/")) - had == 2
        assert "whole" in b.run("softlabels", "verify", "store")
