"""`softlabels build --engine ray`: actors that are killed, a driver that begins again: the store of a plain build."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from softlabels.builder import on_ray
from softlabels.builder.build import build
from softlabels.builder.on_ray import build_on_ray
from softlabels.core.progress import Silent
from softlabels.errors import ConfigError, MissingExtraError, PlanError
from softlabels.format.manifest import load_manifest
from softlabels.store.verify import verify_store
from tests.fakes import TinyTeacher, build_tiny, config_of, write_corpus
from tests.store.s3 import environment, s3_server

CHANGES = {"shard_rows": 1, "seq_len": 24, "batch_tokens": 64}


class Halting(TinyTeacher):
    """Stops after the first shards, until a file says that it may go on."""

    def __init__(self, store: Path) -> None:
        super().__init__()
        self.store = store

    def logits(self, rows):
        while _recorded(self.store) >= 10 and not (self.store.parent / "on").exists():
            time.sleep(0.05)
        yield from super().logits(rows)


def work(config, out):
    """What an actor does; tells whom to kill."""
    with (Path(out).parent / "pids").open("a") as f:
        f.write(f"{os.getpid()}\n")
    return build(config, out, teacher=Halting(Path(out)))


def _recorded(store: Path) -> int:
    return len(list(store.glob("commits/*.json")))


def test_without_ray_a_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        MissingExtraError, match=r"--engine ray needs Ray, which is not installed: pip install"
    ):
        build_on_ray(config_of("text:x"), tmp_path / "s", report=Silent())
    with pytest.raises(ConfigError, match="--builders 0: expected 1 or more"):
        build_on_ray(config_of("text:x"), tmp_path / "s", report=Silent(), builders=0)


def _driver(store: Path, corpus: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.test_on_ray", str(store), corpus])


def _pids(folder: Path, count: int) -> list[int]:
    """Builders that have begun, when there are so many."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = (folder / "pids").read_text().split() if (folder / "pids").exists() else []
        if len(found) >= count:
            return [int(pid) for pid in found]
        time.sleep(0.1)
    raise AssertionError(f"{count} builders did not begin")


@pytest.mark.slow
def test_two_actors_one_killed_twice_and_a_driver_that_begins_again(tmp_path):
    pytest.importorskip("ray", reason="needs the extra `ray`")
    corpus, store = write_corpus(tmp_path), tmp_path / "store"
    driver = _driver(store, corpus)
    for number in range(2):  # whoever began last
        pid = _pids(tmp_path, 2 + number)[-1]
        while _recorded(store) < 1:
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
    _pids(tmp_path, 4)
    driver.kill()
    driver.wait()
    (tmp_path / "on").touch()
    assert not (store / "manifest.json").exists()
    assert _driver(store, corpus).wait() == 0
    assert verify_store(store).problems == []
    plain = build_tiny(tmp_path / "plain", corpus, **CHANGES)
    assert load_manifest(store).content_digest == plain.content_digest


@pytest.mark.slow
def test_an_error_of_a_builder_is_the_builds(tmp_path):
    ray = pytest.importorskip("ray", reason="needs the extra `ray`")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "notes.txt").write_text("mine")
    try:
        with pytest.raises(PlanError, match="not empty and not a store"):
            build_on_ray(
                config_of(write_corpus(tmp_path)), tmp_path / "store", report=Silent(), work=work
            )
    finally:
        ray.shutdown()


def plain(config, out):
    """What an actor does."""
    return build(config, out, teacher=TinyTeacher())


class Heard(Silent):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.total, self.done = 0, 0

    def stage(self, name, total, unit, done=0):
        assert (name, unit) == ("build", "shards")
        self.total = total

    def advance(self, amount, note=None):
        self.done += amount


@pytest.mark.slow
def test_progress_is_told_of_a_bucket_too(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="needs the extra `ray`")
    monkeypatch.setattr(on_ray, "LOOK_IN_BUCKET", 0.2)
    heard = Heard()
    with s3_server() as url:
        for name, value in environment(url, tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        config = config_of(write_corpus(tmp_path), **CHANGES)
        try:
            made = build_on_ray(config, "s3://bucket/store", report=heard, builders=2, work=plain)
        finally:
            ray.shutdown()
    assert heard.total == heard.done == len(made.shards) > 20
    assert (
        made.content_digest
        == build_tiny(tmp_path / "plain", write_corpus(tmp_path), **CHANGES).content_digest
    )


if __name__ == "__main__":
    build_on_ray(
        config_of(sys.argv[2], **CHANGES), Path(sys.argv[1]), report=Silent(), builders=2, work=work
    )
