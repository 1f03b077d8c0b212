"""The dictionary of a packed store: when it is trained, by whom, whether it pays, and what uses it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from softlabels.builder.build import build
from softlabels.builder.dry_run import dry_run
from softlabels.codecs.codebook import Codebook
from softlabels.errors import ConfigError, IntegrityError, PlanError
from softlabels.format.dictionaries import DICTIONARY
from softlabels.format.encoding import dictionary_of
from softlabels.making import dictionary as made
from softlabels.making.plan import read_plan
from softlabels.making.repair import repair_store
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.fakes import TinyTeacher, build_tiny, config_of
from tests.store.made_up import files_of

WORDS = "the cat sat on a mat and then it ran to see what a dog had put in the red box by noon"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """40,000 bytes of words in a random order."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text(" ".join(rng.choice(WORDS.split(), 10_000)))
    return f"text:{path}"


@pytest.fixture
def small(monkeypatch):
    """Dictionaries from 2,000 positions on."""
    monkeypatch.setattr(made, "POSITIONS", 2_000)


HOW = {"estimator": "topk", "k": 8, "profile": "packed", "seq_len": 128, "shard_rows": 8}


def used(store):
    """The dictionary of each shard."""
    opened = open_store(store)
    identity = opened.manifest.identity
    names = [s.name for s in opened.manifest.shards]
    return [dictionary_of((store / n).read_bytes(), identity, where=n) for n in names]


def same_targets(one, two):
    for a, b in zip(open_store(one), open_store(two), strict=True):
        np.testing.assert_array_equal(a.targets.ids, b.targets.ids)
        np.testing.assert_array_equal(a.targets.gaps, b.targets.gaps)
        np.testing.assert_array_equal(a.targets.log_odds, b.targets.log_odds)


def test_it_is_trained_on_the_first_shards_and_used_by_the_others(corpus, small, tmp_path):
    with_it = build_tiny(tmp_path / "with", corpus, **HOW)
    without = build_tiny(tmp_path / "without", corpus, **HOW, dictionary="none")
    first = with_it.identity.encoding.dictionary_shards
    assert first == 2  # of 8 * 127 positions
    assert without.identity.encoding.dictionary_shards is None
    digest = with_it.files[DICTIONARY].sha256
    assert used(tmp_path / "with") == [None] * first + [digest] * (len(with_it.shards) - first)
    assert used(tmp_path / "without") == [None] * len(without.shards)
    assert DICTIONARY not in without.files
    saved = [a.bytes - b.bytes for a, b in zip(without.shards, with_it.shards, strict=True)]
    assert saved[:first] == [0] * first
    assert sum(saved) > with_it.files[DICTIONARY].bytes
    for name in ("with", "without"):
        assert verify_store(tmp_path / name).problems == []
    # Codes decide the order of equal values only: the targets are the same sets.
    for a, b in zip(open_store(tmp_path / "with"), open_store(tmp_path / "without"), strict=True):
        np.testing.assert_array_equal(np.sort(a.targets.ids, 1), np.sort(b.targets.ids, 1))
        np.testing.assert_array_equal(a.targets.gaps, b.targets.gaps)


def test_where_it_does_not_pay_an_empty_one_is_published(corpus, small, tmp_path):
    store = tmp_path / "store"
    manifest = build_tiny(store, corpus, **(HOW | {"k": 1}), limit_rows=32)
    assert manifest.identity.encoding.dictionary_shards == 2
    data = (store / DICTIONARY).read_bytes()
    assert len(Codebook.from_bytes(data, vocab_size=300, where="d").order) == 0
    assert len(data) < 200
    assert used(store) == [None] * 4
    assert verify_store(store).problems == []


def test_a_small_corpus_has_none(corpus, tmp_path):
    manifest = build_tiny(tmp_path / "store", corpus, **HOW)
    assert manifest.identity.encoding.dictionary_shards is None
    assert not (tmp_path / "store" / "dictionaries").exists()


def test_a_build_that_was_cut_off_anywhere_ends_with_the_same_bytes(corpus, small, tmp_path):
    whole = tmp_path / "whole"
    build_tiny(whole, corpus, **HOW)

    class Dies(TinyTeacher):
        def __init__(self, after):
            super().__init__()
            self.left = after

        def logits(self, rows):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            yield from super().logits(rows)

    shards = len(open_store(whole).manifest.shards)
    store = tmp_path / "store"
    for after in (1, 2, 3):  # before, at and after the first shards
        with pytest.raises(KeyboardInterrupt):
            build(config_of(corpus, **HOW, batch_tokens=2048), store, teacher=Dies(after))
    build_tiny(store, corpus, **HOW)
    a, b = files_of(whole), files_of(store)
    data = [n for n in a if n.startswith(("data/", "dictionaries/", "tokenizer/"))]
    assert len(data) == shards + 2
    assert {n: a[n] for n in data} == {n: b[n] for n in data}


def test_a_dictionary_can_be_given(corpus, small, tmp_path):
    build_tiny(tmp_path / "first", corpus, **HOW)
    digest = hashlib.sha256((tmp_path / "first" / DICTIONARY).read_bytes()).hexdigest()
    sizes = []
    for i, given in enumerate((tmp_path / "first", tmp_path / "first" / DICTIONARY)):
        store = tmp_path / f"store{i}"
        manifest = build_tiny(store, corpus, **HOW, limit_rows=20, dictionary=str(given))
        assert manifest.identity.encoding.dictionary_sha256 == digest
        assert manifest.files[DICTIONARY].sha256 == digest
        assert used(store) == [digest] * 3
        assert verify_store(store).problems == []
        sizes.append(manifest.data_bytes)
    none = build_tiny(tmp_path / "none", corpus, **HOW, limit_rows=20, dictionary="none")
    assert sizes[0] == sizes[1] < none.data_bytes
    estimate = dry_run(
        config_of(corpus, **HOW, limit_rows=20, dictionary=str(tmp_path / "first")),
        tmp_path / "dry",
        teacher=TinyTeacher(),
    )
    assert estimate.data_bytes < 1.1 * sizes[0]
    with pytest.raises(PlanError, match="encoding dictionary_sha256"):
        build_tiny(
            tmp_path / "none", corpus, **HOW, limit_rows=20, dictionary=str(tmp_path / "first")
        )
    with pytest.raises(PlanError, match="with a dictionary, this build has --dictionary none"):
        build_tiny(tmp_path / "store0", corpus, **HOW, limit_rows=20, dictionary="none")


def test_what_is_no_dictionary_is_refused(corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"--dictionary .*nowhere: no dictionary there"):
        build_tiny(tmp_path / "store", corpus, **HOW, dictionary=str(tmp_path / "nowhere"))
    (tmp_path / "text").write_text("not one")
    with pytest.raises(IntegrityError, match="does not begin like 'softlabels dictionary 1'"):
        build_tiny(tmp_path / "store", corpus, **HOW, dictionary=str(tmp_path / "text"))
    with pytest.raises(ConfigError, match="belongs to --profile packed"):
        config_of(corpus, dictionary=str(tmp_path / "text"))


def test_a_lost_dictionary_is_named_and_costs_no_shard(corpus, small, tmp_path):
    store = tmp_path / "store"
    build_tiny(store, corpus, **HOW)
    good = files_of(store)
    shutil.move(store / DICTIONARY, tmp_path / "aside")
    opened = open_store(store)
    opened.read_shard(0)
    with pytest.raises(IntegrityError, match=r"dictionaries/00000\.bin: missing"):
        opened.read_shard(5)
    assert any("dictionaries/00000.bin" in p for p in verify_store(store).problems)
    with pytest.raises(IntegrityError, match=r"holds no dictionary.*nothing was changed"):
        repair_store(store)
    shutil.move(tmp_path / "aside", store / DICTIONARY)
    assert files_of(store) == good
    raw = bytearray(good[DICTIONARY])
    raw[len(raw) // 2] ^= 1
    (store / DICTIONARY).write_bytes(raw)
    with pytest.raises(IntegrityError, match="sha256"):
        open_store(store).read_shard(5)
    with pytest.raises(IntegrityError, match="nothing was changed"):
        repair_store(store)


def test_repair_of_an_unfinished_store_knows_it(corpus, small, tmp_path):
    store = tmp_path / "store"
    build_tiny(store, corpus, **HOW)
    good = files_of(store)
    (store / "manifest.json").unlink()
    victim = read_plan(store).shards[4].name
    (store / victim).write_bytes(b"torn")
    found = repair_store(store)
    assert found.rebuild == [victim]
    assert found.problems == []
    build_tiny(store, corpus, **HOW)
    again = files_of(store)
    assert {n for n in good if good[n] != again[n]} <= {
        "commits/00004.json",
        "manifest.json",
        "README.md",
    }


@pytest.mark.slow
def test_several_builders_agree_on_one(corpus, tmp_path):
    script = f"""
import sys
from softlabels.making import dictionary
dictionary.POSITIONS = 2_000
from tests.fakes import build_tiny
build_tiny({str(tmp_path / "store")!r}, {corpus!r}, **{HOW!r})
"""
    builders = [
        subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[1])
        for _ in range(3)
    ]
    assert [b.wait(timeout=120) for b in builders] == [0, 0, 0]
    store = tmp_path / "store"
    assert verify_store(store).problems == []
    digest = open_store(store).manifest.files[DICTIONARY].sha256
    found = used(store)
    assert found[:2] == [None, None]
    assert set(found[2:]) == {digest}
