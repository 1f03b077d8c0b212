"""Rows that a teacher cannot read are refused before it runs."""

from __future__ import annotations

import pytest

from softlabels.builder.build import build
from softlabels.builder.dry_run import dry_run
from softlabels.errors import ConfigError
from softlabels.teachers.ensemble import Ensemble
from tests.fakes import TinyTeacher, config_of, write_corpus


class Short(TinyTeacher):
    """Reads 48 tokens at a time, and must not be asked."""

    context = 48

    def logits(self, rows):
        raise AssertionError("the teacher ran")


@pytest.mark.parametrize("run", [build, dry_run])
def test_a_row_beyond_the_teacher_s_context(tmp_path, run):
    """Both numbers, the document, and the way out; nothing is written."""
    corpus = write_corpus(tmp_path / "corpus")
    with pytest.raises(ConfigError) as e:
        run(config_of(corpus, seq_len=64), tmp_path / "out", teacher=Short())
    said = "--seq-len: a row holds 64 tokens of document 0, and fake:tiny reads 48 at a time"
    assert str(e.value).startswith(said)
    assert "use --seq-len 48" in str(e.value)
    assert not (tmp_path / "out").exists()


def test_documents_that_share_a_row_are_measured_one_by_one(tmp_path):
    """Attention and positions do not cross between them, so the row may be longer than the context."""
    (tmp_path / "corpus").mkdir()
    for i in range(6):
        (tmp_path / "corpus" / f"{i}.txt").write_text("Twenty letters, more.", encoding="utf-8")
    teacher = TinyTeacher()
    teacher.context = 48
    manifest = build(
        config_of(f"text:{tmp_path}/corpus/*.txt", seq_len=64), tmp_path / "out", teacher=teacher
    )
    assert manifest.identity.corpus.rows == 3


def test_several_teachers_read_what_each_of_them_can():
    long, short, any_length = TinyTeacher(), TinyTeacher(), TinyTeacher()
    long.context, short.context = 128, 48
    assert Ensemble([long, any_length, short], [0.5, 0.25, 0.25], "probs").context == 48
    assert Ensemble([any_length, TinyTeacher()], [0.5, 0.5], "probs").context is None


@pytest.mark.slow
def test_the_context_of_a_model_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    from softlabels.teachers import TeacherOptions, open_teacher
    from softlabels.teachers.hf_source import context_of
    from tests.teachers.tiny import write_model

    model = write_model(tmp_path / "model")
    assert open_teacher(f"hf:{model}", TeacherOptions(device="cpu")).context == 256
    assert context_of(transformers.GPT2Config(n_positions=77)) == 77
    assert context_of(transformers.MambaConfig()) is None
