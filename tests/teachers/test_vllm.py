"""`vllm:`: its seams, on stand-ins for vLLM's objects that are filled with what a real tiny model says.

The two shapes of lists have the fields of its `Logprob` and `FlatLogprobs` (vLLM 0.11); a pooler is called as its model
runners call one (vLLM 0.32). vLLM itself runs in `test_real_vllm.py`.
"""

from __future__ import annotations

import os
import sys
import types
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
import torch

from softlabels.builder.build import build
from softlabels.builder.config import MeasureConfig, StatesConfig
from softlabels.builder.measure import measure
from softlabels.builder.states import write_states
from softlabels.capture.request import Wanted
from softlabels.capture.vllm_pooler import VARIABLE, register
from softlabels.capture.vllm_pooler import PoolerSelects as Selects
from softlabels.core.rows import Row
from softlabels.errors import ConfigError, MissingExtraError, NonFiniteError, TeacherError
from softlabels.store.reader import open_store
from softlabels.teachers import TeacherOptions, open_teacher, vllm_states
from softlabels.teachers.ensemble import open_teachers
from tests.teachers.same_targets import check_same_targets
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

    step = 10
    """Tokens of a pooling engine's step: documents are cut."""
    poison: ClassVar[int | None] = None
    """Index of a prompt with a bad logit."""
    wrong: ClassVar[str] = ""

    def __init__(self, *, model: str, **settings) -> None:
        if Engine.wrong == "start":
            raise ValueError("No available memory for the cache blocks.\nand more")
        Engine.made = settings
        self.hf = open_teacher(f"hf:{model}", TeacherOptions(dtype="float32"))
        if settings.get("convert") == "embed":
            assert settings["pooler_config"].task == "token_embed"
        elif settings.get("runner") == "pooling":
            wanted = Wanted.parse(os.environ[VARIABLE])
            assert wanted is not None
            assert sys.modules["vllm"].ModelRegistry.models[wanted.architecture] != "vLLM's own"
            self.selects = Selects(self.compute_logits, wanted, wanted.job())
            n = types.SimpleNamespace(extra_kwargs=None)  # vLLM's profile of its memory
            profile = self.selects.parts(torch.zeros(7, 32), metadata([n], [Held()], [7], [7], [7]))
            assert len(profile[0]) == 7

    def compute_logits(self, hidden):
        logits = self.hf.to_logits(hidden)
        return torch.where(hidden[:, :1] == 777.0, torch.nan, logits)

    def hidden(self, ids):
        body = self.hf.model.base_model
        return body(input_ids=torch.tensor([ids])).last_hidden_state[0].detach()

    def states(self, ids):
        data = self.hidden(ids)
        outputs = types.SimpleNamespace(data=data[:-1] if Engine.wrong == "short" else data)
        said_ids = ids[::-1] if Engine.wrong == "ids" else ids
        return types.SimpleNamespace(prompt_token_ids=said_ids, outputs=outputs)

    def encode(self, prompts, parameters, *, pooling_task, use_tqdm):
        """Two requests at a time, in pieces; the third begins once more, as after a preemption."""
        if pooling_task == "token_embed":
            assert parameters.task == pooling_task
            assert parameters.use_activation is False
            said = [self.states(p["prompt_token_ids"]) for p in prompts]
            if Engine.wrong == "put off" and len(said) > 1:
                data = said[1].outputs.data
                said[1].outputs.data = torch.cat([data[:5], data])
            return said
        assert all(p.task == pooling_task for p in parameters)
        out = []
        for i, (prompt, params) in enumerate(zip(prompts, parameters, strict=True)):
            ids = prompt["prompt_token_ids"]
            hidden = self.hidden(ids)
            if i == Engine.poison:
                hidden[len(ids) - 2] = 777.0
            state, said = Held(), None
            starts = list(range(0, len(ids), self.step))
            for begin in [*([0, self.step] if i == 2 and len(starts) > 2 else []), *starts]:
                piece = hidden[begin : begin + self.step]
                other = types.SimpleNamespace(extra_kwargs=None)
                (said, _) = self.selects.parts(
                    torch.cat([piece, piece[:1]]),
                    metadata(
                        [params, other],
                        [state, Held()],
                        [len(piece), 1],
                        [begin + len(piece), 1],
                        [len(ids), 1],
                    ),
                )
            data = said[:-1] if Engine.wrong == "short" else said
            said_ids = ids[::-1] if Engine.wrong == "ids" else ids
            outputs = types.SimpleNamespace(data=data)
            out.append(types.SimpleNamespace(prompt_token_ids=said_ids, outputs=outputs))
        return out

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


class Held:
    """vLLM's state of a request."""

    def __init__(self) -> None:
        self.hidden_states_cache: list = []


def metadata(params, states, taken, ends, lengths):
    """As vLLM's `PoolingMetadata`, of requests side by side."""
    cursor = types.SimpleNamespace(
        num_scheduled_tokens_cpu=torch.tensor(taken),
        seq_lens_cpu=torch.tensor(ends),
        get_finished_mask=lambda: [e == n for e, n in zip(ends, lengths, strict=True)],
    )
    return types.SimpleNamespace(
        pooling_params=params, pooling_states=states, get_pooling_cursor=lambda: cursor
    )


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
    models = {"LlamaForCausalLM": "vLLM's own"}
    registry = types.SimpleNamespace(models=models, register_model=models.__setitem__)
    module = types.SimpleNamespace(
        LLM=Engine,
        SamplingParams=SamplingParams,
        PoolingParams=types.SimpleNamespace,
        ModelRegistry=registry,
        __version__="0.11.0",
    )
    platforms = types.SimpleNamespace(current_platform=types.SimpleNamespace(device_type="cpu"))
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    settings = types.SimpleNamespace(PoolerConfig=types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm.config", settings)
    return module


@pytest.mark.parametrize("flat", [False, True])
def test_both_shapes_give_the_targets_of_hf(ground, vllm, tmp_path, monkeypatch, flat):
    monkeypatch.setattr(Engine, "flat", flat)
    hf = open_teacher(f"hf:{ground}/model", TeacherOptions(dtype="float32"))
    build(config_of(ground, "hf:x"), tmp_path / "hf", teacher=hf)
    manifest = build(
        config_of(ground, f"vllm:{ground}/model?seam=list&gpu_memory=0.5"), tmp_path / "vllm"
    )
    check_equal(tmp_path / "hf", tmp_path / "vllm")
    assert Engine.made["max_logprobs"] == 6
    assert Engine.made["gpu_memory_utilization"] == 0.5
    assert Engine.made["enable_prefix_caching"] is False
    record = manifest.identity.teacher
    assert (record.spec, record.engine) == ("vllm:model?seam=list", "vllm 0.11.0")
    assert (record.device, record.vocab_size) == ("cpu", VOCAB)
    assert record.weights_sha256 == hf.record.weights_sha256


def test_what_it_cannot_promise_is_refused(ground, vllm, tmp_path):
    spec = f"vllm:{ground}/model?seam=list"
    for changes in ({"estimator": "sampled"}, {"temperature": (1.0, 4.0)}):
        with pytest.raises(ConfigError, match=r"vllm:model\?seam=list lists the log-probabilities"):
            build(config_of(ground, spec, **changes), tmp_path / "s")
    with pytest.raises(TeacherError, match="no logits to give"):
        open_teacher(spec, TeacherOptions()).logits([])


def test_an_answer_without_log_probabilities_is_refused(ground, vllm, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "lost", True)
    with pytest.raises(TeacherError, match="gave no log-probabilities of the prompt"):
        build(config_of(ground, f"vllm:{ground}/model?seam=list"), tmp_path / "s")


def test_mistakes_are_refused(ground, vllm, tmp_path, monkeypatch):
    for query in ("gpu_memory=2", "gpu_memory=x", "k=3", "tp=0", "max_len=0", "seam=none", "tp="):
        with pytest.raises(ConfigError, match="expected vllm:PATH"):
            open_teacher(f"vllm:{ground}/model?{query}", TeacherOptions())
    with pytest.raises(ConfigError, match="max_len is 999, the model reads 256 tokens at most"):
        open_teacher(f"vllm:{ground}/model?max_len=999", TeacherOptions())
    with pytest.raises(ConfigError, match="this vLLM runs on cpu"):
        open_teacher(f"vllm:{ground}/model", TeacherOptions(device="cuda"))
    with pytest.raises(TeacherError, match="no such folder"):
        open_teacher(f"vllm:{tmp_path}/none", TeacherOptions())
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"\[vllm\]'"):
        open_teacher(f"vllm:{ground}/model", TeacherOptions())


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": (1.0, 2.0, 4.0)},
        {"estimator": "topp", "top_p": 0.9, "positions": "entropy:0.5"},
        {"estimator": "sampled", "temperature": (2.0,), "position_summary": False},
        {"estimator": "rs", "k": 3},
    ],
)
def test_a_pooler_gives_the_targets_of_hf(ground, vllm, tmp_path, changes):
    build(config_of(ground, f"hf:{ground}/model", dtype="float32", **changes), tmp_path / "hf")
    spec = f"vllm:{ground}/model?tp=2&step_tokens=10&max_len=48"
    manifest = build(config_of(ground, spec, dtype="float32", **changes), tmp_path / "vllm")
    a, b = open_store(tmp_path / "hf"), open_store(tmp_path / "vllm")
    check_same_targets(a, b, summarised="position_summary" not in changes)
    if "position_summary" not in changes:
        nlls = [s.manifest.statistics.teacher_nll for s in (a, b)]
        assert nlls[0] == pytest.approx(nlls[1], rel=1e-5)
    record = manifest.identity.teacher
    assert (record.spec, record.device, record.dtype) == ("vllm:model", "cpu", "float32")
    made = {"tensor_parallel_size": 2, "max_model_len": 48, "max_num_batched_tokens": 10}
    assert made.items() <= Engine.made.items()
    assert Engine.made["hf_overrides"] == {"head_dtype": "float32"}
    assert VARIABLE not in os.environ
    assert vllm.ModelRegistry.models == {"LlamaForCausalLM": "vLLM's own"}


@pytest.mark.parametrize("at_once", [65_536, 30])
def test_states_give_the_targets_of_hf_and_what_needs_logits(
    ground, vllm, tmp_path, monkeypatch, at_once
):
    monkeypatch.setattr(vllm_states, "AT_ONCE", at_once)
    build(config_of(ground, f"hf:{ground}/model", dtype="float32"), tmp_path / "hf")
    spec = f"vllm:{ground}/model?seam=states&max_len=48"
    manifest = build(config_of(ground, spec, dtype="float32"), tmp_path / "vllm")
    check_equal(tmp_path / "hf", tmp_path / "vllm")
    record = manifest.identity.teacher
    assert (record.spec, record.engine) == ("vllm:model?seam=states", "vllm 0.11.0")
    measured = measure(tmp_path / "vllm", MeasureConfig(teacher=spec), write=False)
    assert measured.temperatures[0].log_prob_error.largest < 1e-4
    write_states(tmp_path / "vllm", StatesConfig(teacher=spec), tmp_path / "states")
    hidden = config_of(ground, f"hidden:{tmp_path}/states?head={ground}/model")
    build(hidden, tmp_path / "hidden")
    check_equal(tmp_path / "hf", tmp_path / "hidden")


def test_a_document_whose_states_came_twice_is_asked_again(ground, vllm, tmp_path, monkeypatch):
    build(config_of(ground, f"hf:{ground}/model", dtype="float32"), tmp_path / "hf")
    monkeypatch.setattr(Engine, "wrong", "put off")
    config = config_of(ground, f"vllm:{ground}/model?seam=states", dtype="float32")
    build(config, tmp_path / "vllm")
    check_equal(tmp_path / "hf", tmp_path / "vllm")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("short", "gave states of"), ("ids", "answered for other ids"), ("start", "vLLM failed")],
)
def test_states_that_are_not_what_was_asked_for(
    ground, vllm, tmp_path, monkeypatch, wrong, message
):
    monkeypatch.setattr(Engine, "wrong", wrong)
    with pytest.raises(TeacherError, match=message):
        build(config_of(ground, f"vllm:{ground}/model?seam=states"), tmp_path / "s")


def test_a_row_longer_than_max_len_is_refused(ground, vllm, tmp_path):
    with pytest.raises(ConfigError, match=r"reads 40 at a time \(its context\)"):
        build(config_of(ground, f"vllm:{ground}/model?max_len=40"), tmp_path / "s")


def test_a_bad_logit_in_the_engine_names_row_and_token(ground, vllm, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "poison", 1)
    with pytest.raises(NonFiniteError, match=r"vllm:model: logit nan at row \d+, token \d+"):
        build(config_of(ground, f"vllm:{ground}/model"), tmp_path / "s")
    assert not (tmp_path / "s" / "data").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("start", "vLLM failed: No available memory for the cache blocks"),
        ("short", "positions of a document, was asked for"),
        ("ids", "answered for other ids"),
    ],
)
def test_an_engine_that_fails_is_a_sentence(ground, vllm, tmp_path, monkeypatch, wrong, message):
    monkeypatch.setattr(Engine, "wrong", wrong)
    with pytest.raises(TeacherError, match=message):
        build(config_of(ground, f"vllm:{ground}/model"), tmp_path / "s")


def test_a_pooler_gives_no_logits(ground, vllm):
    with pytest.raises(TeacherError, match=r"gives no logits.*vllm:PATH\?seam=states"):
        open_teacher(f"vllm:{ground}/model", TeacherOptions()).logits([])


def test_a_pooler_is_not_averaged(ground, vllm):
    specs = [f"vllm:{ground}/model", f"hf:{ground}/model"]
    with pytest.raises(ConfigError, match="an average needs its logits"):
        open_teachers(specs, "probs", TeacherOptions())


def test_the_plugin_does_nothing_unless_asked(vllm, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    register()
    assert vllm.ModelRegistry.models == {"LlamaForCausalLM": "vLLM's own"}


def test_a_rank_without_logits_takes_part_in_every_product(ground, vllm):
    """Even where the first rank meets a bad logit, or others would wait for ever."""
    calls: list[int] = []
    wanted = Wanted(
        architecture="x",
        estimator="softlabels.estimators.topk:TopK",
        fields={"k": 2, "temperatures": [1.0]},
        summarise=True,
        head_bytes=3 * 9 * 4,
        vocab_size=9,
    )

    def rank(logits_of):
        calls.clear()
        selects = Selects(logits_of, wanted, wanted.job())
        params = types.SimpleNamespace(extra_kwargs=None)
        (said,) = selects.parts(torch.zeros(8, 4), metadata([params], [Held()], [8], [8], [8]))
        return said, list(calls)

    def bad(hidden):
        calls.append(len(hidden))
        return torch.full((len(hidden), 9), torch.nan)

    said, first = rank(bad)
    assert bytes(said.tolist()).decode() == "0 nan"
    _, second = rank(lambda hidden: calls.append(len(hidden)))
    assert first == second == [3, 3, 2]
