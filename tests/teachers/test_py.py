"""`py:`: the same model behind a callable gives the same targets as `hf:`."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from softlabels.builder.build import build
from softlabels.builder.config import BuildConfig
from softlabels.errors import ConfigError, TeacherError
from softlabels.store.reader import open_store
from softlabels.teachers import TeacherOptions, open_teacher
from tests.teachers.test_hf import PACKAGE, needs_teacher
from tests.teachers.tiny import VOCAB, log_probs, rows_of, write_model, write_texts

TOLERANCE = 1e-4
"""Nats of a log-probability, between a callable and `hf` on the same float32 weights: rounding of the sums."""

SOURCE = """
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({folder!r}, dtype=torch.float32).eval()
calls = []


def logits(input_ids, attention_mask):
    calls.append(tuple(input_ids.shape))
    with torch.no_grad():
        return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


def as_array(input_ids, attention_mask):
    return logits(input_ids, attention_mask).numpy()


as_array.tokenizer = {folder!r}
as_array.weights_sha256 = "0" * 64
as_array.parameters = 7
number = 3


def narrow(input_ids, attention_mask):
    return logits(input_ids, attention_mask)[:, -1]


def whole_numbers(input_ids, attention_mask):
    return logits(input_ids, attention_mask).long()


def failing(input_ids, attention_mask):
    raise RuntimeError("out of order")


def text(input_ids, attention_mask):
    return "logits"


def shrinking(input_ids, attention_mask):
    return logits(input_ids, attention_mask)[:, : 2]


def bad_digest(input_ids, attention_mask):
    return logits(input_ids, attention_mask)


bad_digest.weights_sha256 = "abc"
"""


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("py")
    write_model(folder / "model")
    write_texts(folder / "corpus")
    (folder / "my_teacher_py.py").write_text(SOURCE.format(folder=str(folder / "model")))
    return folder


@pytest.fixture
def there(ground, monkeypatch):
    monkeypatch.chdir(ground)
    before = list(sys.path)
    yield ground
    assert sys.path == before


def load(name: str, folder: Path, **options) -> object:
    spec = f"py:my_teacher_py.{name}?tokenizer={folder / 'model'}"
    return open_teacher(spec, TeacherOptions(**options))


def test_it_agrees_with_hf_in_packed_and_cut_rows(there):
    hf = open_teacher("hf:model", TeacherOptions(dtype="float32"))
    py = load("logits", there)
    rows = rows_of(hf, f"text:{there}/corpus/*.txt")
    assert max(len(r.segment_lengths) for r in rows) > 1
    assert any(r.documents[0] == s.documents[-1] for s, r in pairwise(rows))
    a, b = log_probs(hf.logits(rows)), log_probs(py.logits(rows))
    assert a.shape == b.shape == (sum(len(r.positions) for r in rows), VOCAB)
    assert np.abs(a - b).max() < TOLERANCE


def test_the_budget_bounds_a_call_and_a_chunk(there):
    py = load("logits", there, head_bytes=60 * 4 * VOCAB)
    module = sys.modules["my_teacher_py"]
    rows = rows_of(py, f"text:{there}/corpus/*.txt")
    module.calls.clear()
    chunks = list(py.logits(rows))
    assert max(len(c) for c in chunks) <= 60
    assert len(module.calls) > 3
    assert all(b * s <= 60 or b == 1 for b, s in module.calls)


def test_stores_of_both_are_equal_within_rounding(there, tmp_path):
    for name, spec in (("hf", "hf:model"), ("py", "py:my_teacher_py.as_array")):
        config = BuildConfig(
            teacher=spec,
            corpus=(f"text:{there}/corpus/*.txt",),
            estimator="topk",
            k=6,
            temperature=(1.0, 2.0),
            seq_len=48,
            values="float32",
            dtype="float32",
        )
        build(config, tmp_path / name)
    a, b = open_store(tmp_path / "hf"), open_store(tmp_path / "py")
    for mine, theirs in zip(a, b, strict=True):
        assert (mine.targets.ids == theirs.targets.ids).all()
        for t in (1.0, 2.0):
            np.testing.assert_allclose(
                mine.targets.log_probs(t), theirs.targets.log_probs(t), atol=TOLERANCE
            )
            np.testing.assert_allclose(mine.targets.tail(t), theirs.targets.tail(t), rtol=TOLERANCE)
    nlls = [s.manifest.statistics.teacher_nll for s in (a, b)]
    assert nlls[0] == pytest.approx(nlls[1], rel=1e-5)


def test_the_record_says_what_can_be_known(there):
    notices: list[str] = []
    plain = load("logits", there, notice=notices.append)
    declared = open_teacher("py:my_teacher_py.as_array", TeacherOptions(notice=notices.append))
    assert plain.record.spec == "py:my_teacher_py.logits", "without folders"
    assert plain.record.name == "my_teacher_py.logits"
    assert plain.record.weights_sha256 != declared.record.weights_sha256
    assert (plain.record.parameters, declared.record.parameters) == (0, 7)
    assert len(notices) == 1
    assert "declares no weights_sha256" in notices[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "has no such attribute; expected a callable"),
        ("number", "is a int; expected a callable"),
        ("narrow", r"shape \[1, 416\] for ids \[1, 2\]; expected logits \[1, 2, V\]"),
        ("whole_numbers", "gave logits of torch.int64; expected floating point"),
        ("failing", r"failed on ids \[1, 2\]: RuntimeError: out of order"),
        ("text", "returned a str, expected logits"),
        ("bad_digest", "weights_sha256 is 'abc'; expected 64 hexadecimal digits"),
    ],
)
def test_a_callable_that_gives_no_logits_is_refused(there, name, words):
    with pytest.raises(TeacherError, match=words):
        load(name, there)


def test_logits_of_another_shape_are_refused_while_building(there):
    teacher = load("shrinking", there)
    with pytest.raises(TeacherError, match=r"gave logits of shape \[\d+, 2, 416\], expected"):
        list(teacher.logits(rows_of(teacher, f"text:{there}/corpus/*.txt")))


def test_other_mistakes_are_refused(there):
    with pytest.raises(ConfigError, match=r"expected py:MODULE\.FUNCTION"):
        open_teacher("py:my_teacher_py", TeacherOptions())
    with pytest.raises(ConfigError, match=r"expected py:MODULE\.FUNCTION"):
        open_teacher("py:my_teacher_py.logits?tokeniser=x", TeacherOptions())
    with pytest.raises(TeacherError, match="importing no_such_module failed"):
        open_teacher("py:no_such_module.f", TeacherOptions())
    with pytest.raises(TeacherError, match="has no tokenizer; give the folder"):
        open_teacher("py:my_teacher_py.logits", TeacherOptions())
    with pytest.raises(TeacherError, match="holds no tokenizer"):
        open_teacher("py:my_teacher_py.logits?tokenizer=corpus", TeacherOptions())
    with pytest.raises(ConfigError, match=r"--dtype bfloat16: .* gives float32"):
        load("logits", there, dtype="bfloat16")


@pytest.mark.parametrize(
    "spec", ["py:a.b", "onnx:a", "vllm:a", "sglang:a", "openai:http://h/v1?tokenizer=t"]
)
def test_another_domain_is_refused(spec):
    with pytest.raises(ConfigError, match="serves causal-lm only; use hf:PATH"):
        open_teacher(spec, TeacherOptions(domain="sequence-classification"))


class TestRealTeacher:
    pytestmark = needs_teacher

    def test_a_callable_around_the_real_teacher_gives_its_targets(self, tmp_path, monkeypatch):
        hf = open_teacher(f"hf:{Path(PACKAGE.origin).parent}", TeacherOptions(dtype="float32"))
        for name, data in hf.tokenizer.files().items():
            (tmp_path / name).write_bytes(data)
        (tmp_path / "smollm_py.py").write_text(
            "import torch\n\n"
            "@torch.no_grad()\n"
            "def logits(input_ids, attention_mask):\n"
            "    hidden = body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state\n"
            "    return hidden.float() @ weight.T\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        import smollm_py

        smollm_py.body, smollm_py.weight = hf.model.base_model, hf._product.weight
        py = open_teacher(f"py:smollm_py.logits?tokenizer={tmp_path}", TeacherOptions())
        assert py.tokenizer.record == hf.tokenizer.record
        (tmp_path / "t").mkdir()
        for i, text in enumerate(["Emma was handsome.", "It rained at Highbury, again."]):
            (tmp_path / "t" / f"{i}.txt").write_text(text)
        rows = rows_of(hf, f"text:{tmp_path}/t/*.txt")
        assert len(rows) == 1
        a, b = log_probs(hf.logits(rows)), log_probs(py.logits(rows))
        assert np.abs(a - b).max() < 2e-3
