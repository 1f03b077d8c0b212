"""`vllm:`: the adapter, on objects of both of vLLM's shapes, filled with what a real tiny model says.

vLLM itself needs a GPU and is not installed here: the two shapes below have the fields of its `Logprob` and
`FlatLogprobs` (vLLM 0.11), and the engine is a stand-in that answers with them. What vLLM computes is not tested.
"""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest

from softlabels.builder.build import build
from softlabels.core.rows import Row
from softlabels.errors import ConfigError, MissingExtraError, TeacherError
from softlabels.teachers import TeacherOptions, open_teacher
from tests.teachers.test_openai import check_equal, config_of
from tests.teachers.tiny import VOCAB, log_probs, write_model, write_texts


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class FlatLogprobs:
    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int | None] = field(default_factory=list)
    decoded_tokens: list[str | None] = field(default_factory=list)

    def add(self, entries: list[tuple[int, Logprob]]) -> None:
        self.start_indices.append(len(self.logprobs))
        for i, e in entries:
            self.token_ids.append(i)
            self.logprobs.append(e.logprob)
            self.ranks.append(e.rank)
            self.decoded_tokens.append(e.decoded_token)
        self.end_indices.append(len(self.logprobs))


class Engine:
    """Answers as vLLM's `LLM.generate` does, in one of its two shapes."""

    flat = False
    made: ClassVar[dict] = {}
    lost = False

    def __init__(self, *, model: str, **settings) -> None:
        Engine.made = settings
        self.hf = open_teacher(f"hf:{model}", TeacherOptions(dtype="float32"))

    def generate(self, prompts, parameters, *, use_tqdm):
        return [self.answer(p["prompt_token_ids"], parameters.prompt_logprobs) for p in prompts]

    def answer(self, ids, k):
        assert k <= Engine.made["max_logprobs"]
        row = Row(
            input_ids=np.array(ids, np.int32),
            segment_lengths=np.array([len(ids)], np.int32),
            documents=np.zeros(1, np.int64),
            label_mask=np.arange(len(ids)) < len(ids) - 1,
        )
        logp = log_probs(self.hf.logits([row])).astype(np.float32)
        shapes: list = [None]
        flat = FlatLogprobs()
        flat.add([])
        for t in range(len(ids) - 1):
            order = np.argsort(-logp[t], kind="stable").tolist()
            label = ids[t + 1]
            entries = [
                (label, order.index(label) + 1),
                *((i, r + 1) for r, i in enumerate(order[:k])),
            ]
            said = [(i, Logprob(float(logp[t, i]), rank)) for i, rank in entries]
            shapes.append(dict(said))
            flat.add(said)
        said = None if self.lost else flat if self.flat else shapes
        return types.SimpleNamespace(prompt_token_ids=ids, prompt_logprobs=said)


class SamplingParams:
    def __init__(self, **values) -> None:
        assert values["max_tokens"] == 1, "vLLM generates at least one token"
        self.prompt_logprobs = values["prompt_logprobs"]


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    write_model(folder / "model")
    write_texts(folder / "corpus")
    return folder


@pytest.fixture
def vllm(monkeypatch):
    module = types.SimpleNamespace(LLM=Engine, SamplingParams=SamplingParams, __version__="0.11.0")
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


@pytest.mark.parametrize("flat", [False, True])
def test_both_shapes_give_the_targets_of_hf(ground, vllm, tmp_path, monkeypatch, flat):
    monkeypatch.setattr(Engine, "flat", flat)
    hf = open_teacher(f"hf:{ground}/model", TeacherOptions(dtype="float32"))
    build(config_of(ground, "hf:x"), tmp_path / "hf", teacher=hf)
    manifest = build(config_of(ground, f"vllm:{ground}/model?gpu_memory=0.5"), tmp_path / "vllm")
    check_equal(tmp_path / "hf", tmp_path / "vllm")
    assert Engine.made["max_logprobs"] == 6
    assert Engine.made["gpu_memory_utilization"] == 0.5
    assert Engine.made["enable_prefix_caching"] is False
    record = manifest.identity.teacher
    assert (record.spec, record.engine, record.vocab_size) == ("vllm:model", "vllm 0.11.0", VOCAB)
    assert record.weights_sha256 == hf.record.weights_sha256


def test_what_it_cannot_promise_is_refused(ground, vllm, tmp_path):
    spec = f"vllm:{ground}/model"
    for changes in ({"estimator": "sampled"}, {"temperature": (1.0, 4.0)}):
        with pytest.raises(ConfigError, match="vllm:model lists the log-probabilities"):
            build(config_of(ground, spec, **changes), tmp_path / "s")
    with pytest.raises(TeacherError, match="no logits to give"):
        open_teacher(spec, TeacherOptions()).logits([])


def test_an_answer_without_log_probabilities_is_refused(ground, vllm, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "lost", True)
    with pytest.raises(TeacherError, match="gave no log-probabilities of the prompt"):
        build(config_of(ground, f"vllm:{ground}/model"), tmp_path / "s")


def test_mistakes_are_refused(ground, vllm, tmp_path, monkeypatch):
    for spec in (f"vllm:{ground}/model?gpu_memory=2", f"vllm:{ground}/model?k=3"):
        with pytest.raises(ConfigError, match="expected vllm:PATH"):
            open_teacher(spec, TeacherOptions())
    with pytest.raises(TeacherError, match="no such folder"):
        open_teacher(f"vllm:{tmp_path}/none", TeacherOptions())
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"\[vllm\]'"):
        open_teacher(f"vllm:{ground}/model", TeacherOptions())
