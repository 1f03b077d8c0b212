"""Two people and an S3 server: build, sign, push; look, pull a tenth, check who signed, train; append, pull."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from softlabels.format.manifest import MANIFEST, load_manifest
from softlabels.format.part import PART
from tests.fakes import write_corpus
from tests.store.made_up import reseal
from tests.store.s3 import Proxy, s3_server
from tests.store.test_signing import write_pair
from tests.students import LLAMA
from tests.teachers.tiny import write_model
from tests.trainers.test_remote_training import Person

pytestmark = pytest.mark.slow

ADDRESS = "s3://bucket/shared"
TEACHER = ("--teacher", "hf:teacher")
BUILD = (
    *("build", *TEACHER, "--corpus", "text:text/*.txt", "--estimator", "topk", "--k", "8"),
    *("--seq-len", "24", "--shard-rows", "2", "--limit-rows", "60", "--licence", "CC-BY-4.0"),
    *("--dtype", "float32", "--out", "store"),
)
STUDENT = ("--student", "hf-config:student.json")
TRAIN = ("run", "--batch-size", "2", "--steps", "3")


@pytest.fixture
def people(tmp_path):
    with s3_server() as url, Proxy(url) as wire_a, Proxy(url) as wire_b:
        a, b = Person(tmp_path / "a", wire_a), Person(tmp_path / "b", wire_b)
        write_model(a.home / "teacher")
        write_corpus(a.home / "text", documents=8)
        write_corpus(a.home / "more", documents=1)
        (b.home / "student.json").write_text(json.dumps(LLAMA | {"vocab_size": 416}))
        private, public = write_pair(a.home, "maker")
        shutil.copy(public, b.home / "maker.pem")
        assert private.name == "maker.key"
        yield a, b


def test_a_store_made_by_one_is_trusted_and_trained_on_by_another(people):
    a, b = people
    a.run("softlabels", *BUILD)
    a.run("softlabels", "sign", "store", "--key", "maker.key")
    assert "30 of 30 shards" in a.run("softlabels", "push", "store", ADDRESS)

    card = b.run("softlabels", "inspect", ADDRESS)
    assert "CC-BY-4.0" in card
    assert "60 rows" in card
    assert b.proxy.gets("/data/") == []

    pulled = b.run("softlabels", "pull", ADDRESS, "tenth", "--share", "0.1", "--key", "maker.pem")
    which = ("--key", "maker.pem", "--digest", re.search("digest ([0-9a-f]{64})", pulled)[1])
    assert len(b.proxy.gets("/data/")) == 3
    assert (b.home / "tenth" / PART).exists()
    assert "signed by the key" in b.run("softlabels", "verify", "tenth", *which)
    b.run("trainers", *TRAIN, *STUDENT, "--store", "tenth", *which, "--out", "run")

    b.run("softlabels", "pull", ADDRESS, "store")
    had = len(b.proxy.gets("/data/"))
    grow = ("--corpus", "text:more/*.txt", "--limit-rows", "2", "--out", "grown")
    a.run("softlabels", "append", "store", *TEACHER, *grow)
    a.run("softlabels", "sign", "grown", "--key", "maker.key")
    assert "1 of 31 shards" in a.run("softlabels", "push", "grown", ADDRESS)
    b.run("softlabels", "pull", ADDRESS, "store")
    assert len(b.proxy.gets("/data/")) - had == 1
    said = b.run("softlabels", "verify", "store", "--key", "maker.pem")
    assert "signed by the key" in said
    assert "62 rows" in said
    b.run("trainers", *TRAIN, "--store", "store", "--init", "run", "--out", "next")


@pytest.mark.parametrize("what", ["shard", "figure", "signature", "order"])
def test_what_somebody_altered_on_the_way_is_found_before_training(people, what):
    a, b = people
    a.run("softlabels", *BUILD)
    a.run("softlabels", "sign", "store", "--key", "maker.key")
    a.run("softlabels", "push", "store", ADDRESS)
    b.run("softlabels", "pull", ADDRESS, "store")
    store: Path = b.home / "store"
    manifest = store / MANIFEST
    if what == "shard":
        path = store / load_manifest(store).shards[7].name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif what == "figure":
        reseal(manifest, cost__seconds=0.5)
    elif what == "order":
        first, second, *others = json.loads(manifest.read_bytes())["shards"]
        reseal(manifest, shards=[second, first, *others])
    else:
        path = store / "manifest.json.sig"
        path.write_text(re.sub('"sig": ?"..', '"sig": "AA', path.read_text()))
    said = b.run("softlabels", "verify", "store", "--key", "maker.pem", exit_code=1)
    assert "error: " in said
