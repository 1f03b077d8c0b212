"""`softlabels.integrations.ray.read_store`: what `softlabels.scan` gives, a block a shard, in Ray's own tasks."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import polars as pl
import pytest

import softlabels
from softlabels.errors import ConfigError, MissingExtraError, PairingError
from softlabels.format.manifest import load_manifest
from tests.blocks import blocks_in
from tests.fakes import build_tiny, write_corpus
from tests.store.s3 import environment, s3_server, upload

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*deprecated:DeprecationWarning",  # Ray's settings, which its own code sets
    "ignore::ResourceWarning",  # pipes of Ray's processes
    "ignore::pytest.PytestUnraisableExceptionWarning",  # the same, when they are collected
)
PAGE = Path(__file__).parents[1] / "docs" / "read-with.md"


def test_without_ray_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "softlabels.integrations.ray", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"needs Ray Data, which is not installed: pip in"):
        importlib.import_module("softlabels.integrations.ray")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    corpus = write_corpus(folder / "corpus")
    build_tiny(
        folder / "store",
        corpus,
        limit_rows=20,
        shard_rows=4,
        temperature=(1.0, 2.0),
        position_summary=True,
    )
    return folder / "store"


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    """Ray on this host, beside a service that speaks S3, whose bucket its processes see."""
    found = pytest.importorskip("ray", reason="needs the extra `ray`")
    with s3_server() as url, pytest.MonkeyPatch.context() as m:
        for name, value in environment(url, tmp_path_factory.mktemp("cache")).items():
            m.setenv(name, value)
        m.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        found.init(num_cpus=2, logging_level="ERROR", log_to_driver=False, include_dashboard=False)
        found.data.DataContext.get_current().execution_options.preserve_order = True
        found.data.DataContext.get_current().enable_progress_bars = False
        yield url
        found.shutdown()


def table(dataset) -> pl.DataFrame:
    frames = [pl.from_arrow(found) for found in dataset.iter_batches(batch_format="pyarrow")]
    return pl.concat(frames)


@pytest.mark.slow
def test_it_is_what_scan_gives_a_block_a_shard(ray, store):
    from softlabels.integrations.ray import read_store

    found, shards = read_store(store), load_manifest(store).shards
    assert found.count() == sum(s.positions for s in shards), "told without reading"
    assert found.columns() == softlabels.scan(store).collect_schema().names()
    assert found.size_bytes() == pytest.approx(
        softlabels.scan(store).collect().estimated_size(), rel=0.3
    )
    blocks = found.materialize()
    assert blocks.num_blocks() == len(shards) == 5
    assert [
        b.num_rows for bundle in blocks.iter_internal_ref_bundles() for b in bundle.metadata
    ] == [s.positions for s in shards]
    assert table(found).equals(softlabels.scan(store).collect())


@pytest.mark.slow
def test_columns_a_temperature_and_an_address(ray, store):
    from softlabels.integrations.ray import read_store

    address = upload(store, ray, "read")
    asked = ["ids", "tail", "row"]
    found = table(read_store(address, columns=asked, temperature=2.0))
    assert found.equals(softlabels.scan(store, temperature=2.0).select(asked).collect())
    with pytest.raises(
        ConfigError, match=r"columns: 'text' is none that .* has; expected some of row"
    ):
        read_store(store, columns=["text"])
    with pytest.raises(PairingError):
        read_store(store, temperature=3.0)


@pytest.mark.slow
def test_paths_mean_the_same_to_processes_that_work_elsewhere(ray, store, tmp_path, monkeypatch):
    from softlabels.integrations.ray import read_store
    from softlabels.store.remote.cache import CacheOptions

    size = load_manifest(store).identity.teacher.vocab_size
    work = tmp_path / "why?"
    work.mkdir()
    monkeypatch.chdir(work)
    Path("new.json").write_text(json.dumps([*range(size - 9), *[-1] * 9]), encoding="utf-8")
    Path("here").symlink_to(store)
    for name in ("vocab", "view"):
        view, how = "map:new.json?size=9999", {name: "map:new.json?size=9999"}
        found = table(read_store("here", columns=["ids", "logp"], **how))
        wanted = softlabels.scan(store, vocab=view).select("ids", "logp").collect()
        assert found.equals(wanted)
    address = upload(store, ray, "elsewhere")
    read_store(address, columns=["ids"], cache=CacheOptions(folder="kept")).materialize()
    assert any((work / "kept").iterdir())


@pytest.mark.slow
def test_a_shard_that_rotted_is_an_error_that_names_it(ray, store, tmp_path):
    from softlabels.integrations.ray import read_store

    corpus = write_corpus(tmp_path / "corpus")
    build_tiny(tmp_path / "store", corpus, limit_rows=8, shard_rows=4)
    shard = tmp_path / "store" / load_manifest(tmp_path / "store").shards[1].name
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(Exception, match=shard.name):
        read_store(tmp_path / "store").materialize()


@pytest.mark.slow
def test_the_block_of_the_page(ray, store):
    (block,) = (
        b for b in blocks_in(PAGE.read_text(encoding="utf-8"), PAGE.name) if b.heading == "Ray Data"
    )
    names = {"STORE": str(store)}
    exec(compile(block.text, str(block), "exec"), names)
    hard = softlabels.scan(store).filter(pl.col("entropy") > 2)
    assert names["hard"].count() == len(hard.collect()) > 0
