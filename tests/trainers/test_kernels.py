"""Which kernels a student's body runs on. Liger itself needs a GPU: a stand-in shows what it would be asked."""

import json
import sys
from types import ModuleType

import pytest
import torch

from softlabels.errors import ConfigError, MissingExtraError
from tests.fakes import build_tiny, write_corpus
from tests.students import llama
from trainers.run.config import RunConfig
from trainers.run.kernels import apply_kernels
from trainers.run.setup import train
from trainers.students import make_student

pytest.importorskip("transformers", reason="needs the extra hf")

CUDA = torch.device("cuda")
LLAMA = llama(layers=2, width=16)


@pytest.fixture
def student_file(tmp_path):
    (tmp_path / "student.json").write_text(json.dumps(LLAMA))
    return tmp_path / "student.json"


def attention(spec):
    return make_student(spec, seed=0).model.config._attn_implementation


def test_every_kind_of_student_has_sdpa_attention(student_file, tmp_path):
    assert attention(f"hf-config:{student_file}") == "sdpa"
    make_student(f"hf-config:{student_file}", seed=0).save(tmp_path / "model")
    assert attention(f"hf:{tmp_path / 'model'}") == "sdpa"
    assert attention(f"layers-of:{tmp_path / 'model'}?keep=1") == "sdpa"
    (tmp_path / "eager.json").write_text(json.dumps(LLAMA | {"attn_implementation": "eager"}))
    assert attention(f"hf-config:{tmp_path / 'eager.json'}") == "eager"


def test_a_model_without_sdpa_runs_eagerly(tmp_path, monkeypatch):
    from transformers.models.gptj.modeling_gptj import GPTJPreTrainedModel

    monkeypatch.setattr(
        GPTJPreTrainedModel, "_supports_sdpa", False, raising=False
    )  # some day it has
    (tmp_path / "gptj.json").write_text(
        json.dumps(
            {"model_type": "gptj", "vocab_size": 300, "n_embd": 16, "n_head": 2, "n_layer": 1}
            | {"rotary_dim": 4, "n_positions": 64}
        )
    )
    assert attention(f"hf-config:{tmp_path / 'gptj.json'}") == "eager"


def test_liger_is_refused_where_it_cannot_run(student_file, tmp_path, monkeypatch):
    student = make_student(f"hf-config:{student_file}", seed=0)
    with pytest.raises(ConfigError, match="they run on CUDA, this run is on cpu"):
        apply_kernels("liger", student, torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(MissingExtraError, match=r"\[liger\]'"):
        apply_kernels("liger", student, CUDA)
    build_tiny(tmp_path / "store", write_corpus(tmp_path / "corpus", documents=1, repeat=1))
    run = {"store": str(tmp_path / "store"), "student": f"hf-config:{student_file}", "steps": 1}
    with pytest.raises(ConfigError, match="CUDA"):
        train(RunConfig(**run, kernels="liger", device="cpu"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="--kernels 'fast'"):
        RunConfig(**run, kernels="fast")
    for name in ("torch", "liger"):
        assert RunConfig(**run, kernels=name).kernels == name


def test_liger_is_asked_for_the_body_alone(student_file, monkeypatch):
    asked = []
    package, inside = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    patch = ModuleType("liger_kernel.transformers.monkey_patch")
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}
    patch._apply_liger_kernel_to_instance = lambda **kwargs: asked.append(kwargs)
    inside.monkey_patch = patch
    for module in (package, inside, patch):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    student = make_student(f"hf-config:{student_file}", seed=0)
    apply_kernels("torch", student, CUDA)
    assert asked == []
    apply_kernels("liger", student, CUDA)
    assert asked == [
        {"model": student.model, "cross_entropy": False, "fused_linear_cross_entropy": False}
    ]
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {"gemma": None}
    with pytest.raises(ConfigError, match="none for a model of type 'llama'"):
        apply_kernels("liger", student, CUDA)
