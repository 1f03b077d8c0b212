"""`sglang:`: its hook, on stand-ins for SGLang's objects (0.5.23) that are filled with what a real tiny model says.

SGLang asks for CUDA, so it was never run. The stand-ins do what its source does where the hook depends on it: sampling
parameters pass through msgpack, a batch has them only if a logit processor is named, prompts come in chunks, and what
is given out is taken when a prompt's last chunk is done.
"""

from __future__ import annotations

import os
import sys
import types
from enum import Enum
from typing import Any, ClassVar

import msgspec
import pytest
import torch

from softlabels.builder.build import build
from softlabels.capture import sglang_hook
from softlabels.capture.sglang_hook import TARGET, VARIABLE, register
from softlabels.errors import ConfigError, MissingExtraError, NonFiniteError, TeacherError
from softlabels.store.reader import open_store
from softlabels.teachers import TeacherOptions, open_teacher
from tests.teachers.same_targets import check_same_targets
from tests.teachers.test_openai import config_of
from tests.teachers.tiny import write_model, write_texts

NAMED = "a processor that changes nothing"


class Mode(Enum):
    EXTEND = 1
    DECODE = 2

    def is_extend(self) -> bool:
        return self is Mode.EXTEND


class Registry:
    """`sglang.srt.plugins.hook_registry.HookRegistry`."""

    hooks: ClassVar[dict] = {}

    @classmethod
    def register(cls, target, hook, hook_type):
        assert hook_type == "around"
        cls.hooks[target] = hook


class Metadata:
    """`LogitsMetadata`."""

    @classmethod
    def from_forward_batch(cls, batch):
        assert batch.forward_mode.is_extend()
        return cls()


class Processor:
    """`LogitsProcessor`, of a model in transformers."""

    def __init__(self, hf) -> None:
        self.hf = hf

    def _get_logits(self, hidden, lm_head, metadata):
        assert lm_head == "head"
        assert isinstance(metadata, Metadata)
        return torch.where(hidden[:, :1] == 777.0, torch.nan, self.hf.to_logits(hidden))

    def forward(self, input_ids, hidden_states, lm_head, logits_metadata, aux_hidden_states=None):
        return types.SimpleNamespace(customized_info=None)


class Engine:
    """`sglang.Engine`: a scheduler with chunks of `step` tokens, two prompts side by side."""

    made: ClassVar[dict] = {}
    stopped: ClassVar[int] = 0
    step = 10
    poison: ClassVar[int | None] = None
    wrong: ClassVar[str] = ""

    def __init__(self, *, model_path: str, **settings) -> None:
        if Engine.wrong == "start":
            raise ValueError("Not enough memory; increase --mem-fraction-static.\nand more")
        Engine.made = settings
        sglang_hook._prompts.cache_clear()  # the scheduler is a process of its own
        self.environment = os.environ[VARIABLE]
        Registry.hooks.clear()
        if Engine.wrong != "plugins":
            register()
        hf = open_teacher(f"hf:{model_path}", TeacherOptions(dtype="float32"))
        self.processor = Processor(hf)

    def shutdown(self) -> None:
        Engine.stopped += 1

    def forward(self, batch, hidden):
        hook = Registry.hooks.get(TARGET)
        given = (self.processor, None, hidden, "head", batch)
        os.environ[VARIABLE] = self.environment  # of the scheduler's process
        try:
            return hook(Processor.forward, *given) if hook else Processor.forward(*given)
        finally:
            del os.environ[VARIABLE]

    def hidden(self, ids, *, poisoned):
        body = self.processor.hf.model.base_model
        hidden = body(input_ids=torch.tensor([ids])).last_hidden_state[0].detach()
        if poisoned:
            hidden[len(ids) - 2] = 777.0
        return hidden

    def generate(self, *, input_ids, sampling_params, custom_logit_processor):
        assert custom_logit_processor == NAMED
        assert Engine.made["enable_custom_logit_processor"] is True
        out = []
        for i, (ids, params) in enumerate(zip(input_ids, sampling_params, strict=True)):
            params = msgspec.msgpack.decode(msgspec.msgpack.encode(params))
            assert all(isinstance(v, str) for v in params["custom_params"].values())
            assert params["max_new_tokens"] == 1
            context = Engine.made.get("context_length", 256)
            assert len(ids) < context - 6, "its scheduler refuses longer ones"
            custom = params["custom_params"] | {"__req__": object()}
            hidden = self.hidden(ids, poisoned=i == Engine.poison)
            starts = list(range(0, len(ids), self.step))
            info: list[Any] = []
            again = [0, self.step] if i == 2 and len(starts) > 2 else []  # it was put back
            for begin in [*again, *starts]:
                piece = hidden[begin : begin + self.step]
                last = begin + len(piece) == len(ids)
                said = self.forward(*self.batch(piece, begin, custom))
                if last and said.customized_info is not None:
                    info += [values[1] for values in said.customized_info.values()]
            length = len(ids) - (Engine.wrong == "ids")
            meta = {"prompt_tokens": length} | ({"softlabels": info} if info else {})
            out.append({"output_ids": [0], "meta_info": meta})
        return out

    def batch(self, piece, begin, custom):
        """A stranger's prompt, this one, and padding."""
        batch = types.SimpleNamespace(
            forward_mode=Mode.EXTEND,
            extend_prefix_lens_cpu=[0, begin],
            extend_seq_lens_cpu=[1, len(piece)],
            sampling_info=types.SimpleNamespace(custom_params=[None, custom]),
        )
        return batch, torch.cat([piece[:1], piece, piece[:1]])


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sglang")
    write_model(folder / "model")
    write_texts(folder / "corpus")
    return folder


@pytest.fixture
def sglang(monkeypatch):
    module = types.SimpleNamespace(Engine=Engine, __version__="0.5.23")
    kinds = types.SimpleNamespace(AROUND="around")

    class CustomLogitProcessor:
        @classmethod
        def to_str(cls):
            assert cls is sglang_hook.Unchanged  # so it is pickled by its name
            logits = torch.ones(2, 3)
            assert cls()(logits, [{}, {}]) is logits
            return NAMED

    modules = {
        "sglang": module,
        "sglang.srt.plugins.hook_registry": {"HookRegistry": Registry, "HookType": kinds},
        "sglang.srt.layers.logits_processor": {"LogitsMetadata": Metadata},
        "sglang.srt.sampling.custom_logit_processor": {
            "CustomLogitProcessor": CustomLogitProcessor
        },
    }
    for name, content in modules.items():
        made = types.SimpleNamespace(**content) if isinstance(content, dict) else content
        monkeypatch.setitem(sys.modules, name, made)
    monkeypatch.setattr(Engine, "stopped", 0)
    sglang_hook.__getattr__.cache_clear()
    return module


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": (1.0, 2.0, 4.0)},
        {"estimator": "topp", "top_p": 0.9, "positions": "entropy:0.5"},
        {"estimator": "sampled", "temperature": (2.0,), "position_summary": False},
        {"estimator": "rs", "k": 3},
    ],
)
def test_a_hook_gives_the_targets_of_hf(ground, sglang, tmp_path, changes):
    build(config_of(ground, f"hf:{ground}/model", dtype="float32", **changes), tmp_path / "hf")
    spec = f"sglang:{ground}/model?tp=2&step_tokens=10&max_len=48&gpu_memory=0.5"
    manifest = build(config_of(ground, spec, dtype="float32", **changes), tmp_path / "sglang")
    a, b = open_store(tmp_path / "hf"), open_store(tmp_path / "sglang")
    check_same_targets(a, b, summarised="position_summary" not in changes)
    record = manifest.identity.teacher
    assert (record.spec, record.engine) == ("sglang:model", "sglang 0.5.23")
    mine = open_store(tmp_path / "hf").manifest.identity.teacher
    assert record.weights_sha256 == mine.weights_sha256
    made = {"tp_size": 2, "context_length": 55, "chunked_prefill_size": 10, "dtype": "float32"}
    made |= {"mem_fraction_static": 0.5, "enable_fp32_lm_head": True, "disable_radix_cache": True}
    assert made.items() <= Engine.made.items()
    assert VARIABLE not in os.environ


def test_a_document_leaves_room_for_what_sglang_wants_to_spare(ground, sglang):
    def context(query):
        return open_teacher(f"sglang:{ground}/model{query}", TeacherOptions()).context

    assert (context(""), context("?max_len=256"), context("?max_len=40")) == (249, 249, 40)


def test_another_job_stops_the_engine_first(ground, sglang, tmp_path):
    teacher = open_teacher(f"sglang:{ground}/model", TeacherOptions(dtype="float32"))
    for name, changes in (("a", {}), ("b", {}), ("c", {"estimator": "rs", "k": 3})):
        build(config_of(ground, "sglang:x", **changes), tmp_path / name, teacher=teacher)
    assert Engine.stopped == 1


def test_a_bad_logit_in_the_engine_names_row_and_token(ground, sglang, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "poison", 1)
    with pytest.raises(NonFiniteError, match=r"sglang:model: logit nan at row \d+, token \d+"):
        build(config_of(ground, f"sglang:{ground}/model"), tmp_path / "s")
    assert not (tmp_path / "s" / "data").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("start", "SGLang failed: Not enough memory; increase --mem-fraction-static.; its own"),
        ("plugins", "selected nothing; its plugin did not run"),
        ("ids", "sglang:model: answered for other ids"),
    ],
)
def test_an_engine_that_fails_is_a_sentence(ground, sglang, tmp_path, monkeypatch, wrong, message):
    monkeypatch.setattr(Engine, "wrong", wrong)
    with pytest.raises(TeacherError, match=message):
        build(config_of(ground, f"sglang:{ground}/model"), tmp_path / "s")


def test_mistakes_are_refused(ground, sglang, tmp_path, monkeypatch):
    for query in ("gpu_memory=2", "k=3", "tp=0", "max_len=0", "seam=pool"):
        with pytest.raises(
            ConfigError, match=r"expected sglang:PATH, .* max_len=TOKENS and step_tokens=TOKENS"
        ):
            open_teacher(f"sglang:{ground}/model?{query}", TeacherOptions())
    with pytest.raises(TeacherError, match="no such folder"):
        open_teacher(f"sglang:{tmp_path}/none", TeacherOptions())
    with pytest.raises(TeacherError, match="gives no logits"):
        open_teacher(f"sglang:{ground}/model", TeacherOptions()).logits([])
    monkeypatch.setitem(sys.modules, "sglang", None)
    with pytest.raises(MissingExtraError, match=r"\[sglang\]'"):
        open_teacher(f"sglang:{ground}/model", TeacherOptions())


def test_what_is_no_prefill_of_ours_is_left_alone(sglang, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    Registry.hooks.clear()
    register()
    assert Registry.hooks == {}
    nobody = types.SimpleNamespace(custom_params=None)
    ours = types.SimpleNamespace(custom_params=[{"softlabels": "{}"}])
    for batch in (
        types.SimpleNamespace(forward_mode=Mode.EXTEND),  # of a graph that is captured
        types.SimpleNamespace(forward_mode=Mode.EXTEND, sampling_info=nobody),
        types.SimpleNamespace(forward_mode=Mode.DECODE, sampling_info=ours),
    ):
        said = sglang_hook.around(Processor.forward, None, None, None, None, batch)
        assert said.customized_info is None
