"""append: a new generation that shares the old one's shards."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from softlabels.algebra.append import append
from softlabels.algebra.merge import merge
from softlabels.builder.config import AppendConfig
from softlabels.errors import CorpusError, IntegrityError, NonFiniteError, PairingError, PlanError
from softlabels.format.encoding import dictionary_of
from softlabels.store.reader import open_store
from softlabels.store.verify import verify_store
from tests.algebra.compare import content, same
from tests.algebra.test_merge import KINDS
from tests.fakes import TEXT, TinyTeacher, build_tiny
from tests.store.made_up import files_of


@pytest.fixture
def texts(tmp_path):
    """Documents that share no row: the old ones end where a build over all begins a row."""
    for folder, numbers in (("all", range(5)), ("old", range(3)), ("new", range(3, 5))):
        (tmp_path / folder).mkdir()
        for i in numbers:
            text = (f"Chapter {i}. " + TEXT)[: 40 + 64 * (i + 1)]
            (tmp_path / folder / f"{i}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def new(folder, **changes):
    return AppendConfig(
        **({"teacher": "fake:tiny", "corpus": (f"text:{folder}/new/*.txt",)} | changes)
    )


def grow(folder, **changes):
    kind = {"temperature": (1.0, 2.0), "shard_rows": 3, "licence": "MIT"} | changes
    build_tiny(folder / "g0", f"text:{folder}/old/*.txt", **kind)
    before = files_of(folder / "g0")
    manifest = append(folder / "g0", new(folder), folder / "g1", teacher=TinyTeacher())
    assert files_of(folder / "g0") == before
    return manifest


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_a_build_of_all_documents_would_be(texts, kind):
    manifest = grow(texts, **KINDS[kind])
    assert verify_store(texts / "g1").problems == []
    changes = {"temperature": (1.0, 2.0), "licence": "MIT"} | KINDS[kind]
    whole = build_tiny(texts / "whole", f"text:{texts}/all/*.txt", **changes)
    same(content(texts / "g1"), content(texts / "whole"))
    a, b = manifest.identity.corpus, whole.identity.corpus
    assert (a.fingerprint, a.rows, a.positions, a.tokens, a.documents) == (
        (b.fingerprint, b.rows, b.positions, b.tokens, b.documents)
    )
    assert manifest.statistics.kept_ids == whole.statistics.kept_ids
    np.testing.assert_allclose(manifest.statistics.kept_mass, whole.statistics.kept_mass)


def test_old_shards_are_shared_and_older_readers_read_it(texts):
    manifest = grow(texts)
    old = open_store(texts / "g0").manifest
    assert manifest.shards[: len(old.shards)] == old.shards
    assert manifest.identity.encoding.profile == "open"
    for shard in manifest.shards:
        links = (texts / "g1" / shard.name).stat().st_nlink
        assert links == (2 if shard in old.shards else 1)
    names = [s.name for s in manifest.shards]
    assert names == sorted(names)
    assert manifest.provenance.sources[0].content_digest == old.content_digest


def test_generations_follow_each_other(texts):
    grow(texts)
    second = append(texts / "g1", new(texts), texts / "g2", teacher=TinyTeacher())
    assert second.provenance.parameters == {"generation": "2"}
    assert verify_store(texts / "g2").problems == []
    merged = merge([texts / "g2", texts / "g0"], texts / "m")
    third = append(texts / "m", new(texts), texts / "g3", teacher=TinyTeacher())
    assert third.identity.encoding.profile == "open-parts"
    assert third.shards[: len(merged.shards)] == merged.shards
    assert verify_store(texts / "g3").problems == []


def test_a_crash_leaves_the_old_generation_and_a_second_run_finishes(texts):
    build_tiny(texts / "g0", f"text:{texts}/old/*.txt", shard_rows=2)
    teacher = TinyTeacher()
    teacher.poison = (200, float("nan"))
    with pytest.raises(NonFiniteError):
        append(texts / "g0", new(texts), texts / "g1", teacher=teacher)
    assert not (texts / "g1/manifest.json").exists()
    made = len(list((texts / "g1/data").iterdir()))
    assert made > len(open_store(texts / "g0").manifest.shards)  # some of the new are done
    append(texts / "g0", new(texts), texts / "g1", teacher=TinyTeacher())
    assert verify_store(texts / "g1").problems == []
    append(texts / "g0", new(texts), texts / "clean", teacher=TinyTeacher())
    assert open_store(texts / "g1").digest == open_store(texts / "clean").digest


def test_what_cannot_be_appended_to_or_with_is_refused(texts):
    build_tiny(texts / "g0", f"text:{texts}/old/*.txt")
    for teacher, what in (
        (TinyTeacher(seed=1), "weights_sha256"),
        (TinyTeacher(salt="x"), "tokenizer sha256"),
    ):
        with pytest.raises(PairingError, match=what):
            append(texts / "g0", new(texts), texts / "g1", teacher=teacher)
    with pytest.raises(PlanError, match="is the source itself"):
        append(texts / "g0", new(texts), texts / "g0", teacher=TinyTeacher())
    with pytest.raises(CorpusError):
        append(
            texts / "g0", new(texts, corpus=("text:/none/*",)), texts / "g1", teacher=TinyTeacher()
        )
    assert not (texts / "g1").exists()
    append(texts / "g0", new(texts), texts / "g1", teacher=TinyTeacher())
    with pytest.raises(PlanError, match="corpus"):
        append(texts / "g0", new(texts, limit_rows=1), texts / "g1", teacher=TinyTeacher())


def test_a_damaged_generation_is_refused_before_anything_is_written(texts):
    build_tiny(texts / "g0", f"text:{texts}/old/*.txt")
    shard = next((texts / "g0/data").iterdir())
    shard.write_bytes(shard.read_bytes()[:-9] + bytes(9))
    with pytest.raises(IntegrityError):
        append(texts / "g0", new(texts), texts / "g1", teacher=TinyTeacher())
    assert not (texts / "g1").exists()


def test_without_its_plan_a_store_still_grows(texts):
    build_tiny(texts / "g0", f"text:{texts}/old/*.txt", shard_rows=3)
    shutil.copytree(texts / "g0", texts / "copy")
    (texts / "copy/plan.json").unlink()
    append(texts / "copy", new(texts), texts / "g1", teacher=TinyTeacher())
    assert verify_store(texts / "g1").problems == []


def test_new_shards_use_the_dictionary_of_the_store(texts, tmp_path):
    from tests.fixtures.make import _dictionary

    (tmp_path / "dictionary").write_bytes(_dictionary())
    changes = {"profile": "packed", "dictionary": str(tmp_path / "dictionary")}
    manifest = grow(texts, **changes)
    assert verify_store(texts / "g1").problems == []
    (name,) = (n for n in manifest.files if n.startswith("dictionaries/"))
    sha256 = manifest.files[name].sha256
    for shard in manifest.shards:
        path = texts / "g1" / shard.name
        assert dictionary_of(path.read_bytes(), manifest.identity, where=str(path)) == sha256
