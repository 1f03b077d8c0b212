"""A run trains on what was verified, says so in run.json, and goes on with no less."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from softlabels.errors import ConfigError, IntegrityError, RunError
from softlabels.format.manifest import MANIFEST, load_manifest
from softlabels.store.signing import sign_store
from tests.fakes import Notices, build_tiny, write_corpus
from tests.store.keys import write_pair
from tests.store.made_up import reseal
from tests.students import llama
from trainers.run.config import RunConfig
from trainers.run.setup import train

pytest.importorskip("model_signing", reason="needs the extra `sign`")

LLAMA = llama(intermediate_size=8)


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    private, _ = write_pair(folder, "maker")
    for name in ("a", "b"):
        corpus = write_corpus(folder / f"{name}-text", documents=2, repeat=1 + (name == "b"))
        build_tiny(folder / name, corpus, limit_rows=6 + (name == "b"), shard_rows=3)
        sign_store(folder / name, private, release=f"maker/{name}@1")
    (folder / "student.json").write_text(json.dumps(LLAMA))
    return folder


def config_of(ground: Path, **changes) -> RunConfig:
    values = {
        "store": str(ground / "a"),
        "student": f"hf-config:{ground / 'student.json'}",
        "steps": 1,
        "batch_size": 2,
        "dtype": "float32",
        "key": str(ground / "maker.pem"),
    }
    return RunConfig(**(values | changes))


def test_a_run_trains_on_what_was_verified(ground, tmp_path):
    digest = load_manifest(ground / "a").content_digest
    config = config_of(ground, digest=(digest[:16],), release=("maker/a@1",))
    told = Notices()
    train(config, tmp_path / "run", reporter=told)
    (found,) = json.loads((tmp_path / "run" / "run.json").read_text())["trust"]
    assert found["digest"] == digest
    assert found["demanded_digest"] == digest[:16]
    assert (found["release"], found["demanded_release"]) == ("maker/a@1", "maker/a@1")
    assert len(found["key_sha256"]) == 64
    assert any("signed by the key, as maker/a@1" in n for n in told.lines)

    less = replace(config, key=None, digest=(), release=())
    with pytest.raises(RunError, match="was begun with --key"):
        train(less, tmp_path / "run", resume=True)
    with pytest.raises(RunError, match="was begun with --digest"):
        train(replace(config, digest=()), tmp_path / "run", resume=True)
    train(config, tmp_path / "run", resume=True)


def test_an_altered_store_is_not_trained_on(ground, tmp_path):
    import shutil

    store = Path(shutil.copytree(ground / "a", tmp_path / "a"))
    reseal(store / MANIFEST, identity__licence="MIT")
    with pytest.raises(IntegrityError, match="is no signature of this"):
        train(config_of(ground, store=str(store)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_of_several_stores_each_is_checked_against_its_own(ground, tmp_path):
    both = (str(ground / "a"), str(ground / "b"))
    ours = [load_manifest(ground / n).content_digest for n in "ab"]
    with pytest.raises(IntegrityError, match="demanded was"):
        train(config_of(ground, store=both, digest=tuple(ours[::-1])), tmp_path / "run")
    with pytest.raises(IntegrityError, match="another store of the same maker"):
        train(config_of(ground, store=both, release=("maker/a", "maker/a")), tmp_path / "run")
    with pytest.raises(ConfigError, match="--digest: 1 given for 2 stores"):
        config_of(ground, store=both, digest=tuple(ours[:1]))
    train(config_of(ground, store=both, digest=tuple(ours)), tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["trust"]
    assert [r["digest"] for r in recorded] == ours
