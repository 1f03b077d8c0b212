"""`layers-of:`: a kept layer computes what it computed, or is refused."""

from __future__ import annotations

import pytest
import torch

from softlabels.errors import ConfigError
from tests.output_families import GQA, SMALL, family
from trainers.data.tasks import Task
from trainers.students import make_student

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
DEEP = {**SMALL, "num_key_value_heads": 2, "initializer_range": 0.6, "num_hidden_layers": 4}
MIXED = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]


def saved(folder, kind, **settings):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **settings)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def student_of(folder, keep):
    spec = f"layers-of:{folder}?keep={','.join(map(str, keep))}"
    return make_student(spec, seed=0, task=Task()).eval()


@pytest.mark.parametrize("keep", [[3], [1, 3], [0, 2], [3, 0]])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", DEEP),
        ("smollm3", {**DEEP, "no_rope_layers": [1, 1, 1, 0]}),
        ("smollm3", {**DEEP, "use_sliding_window": True, "sliding_window": 4}),
        ("gemma2", {**GQA, "num_hidden_layers": 4, "layer_types": MIXED, "sliding_window": 4}),
        ("cohere2", {**DEEP, "layer_types": MIXED, "sliding_window": 4}),
        (
            "qwen3_moe",
            {**DEEP, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        ),
    ],
)
@torch.no_grad()
def test_a_kept_layer_computes_what_it_computed(tmp_path, kind, settings, keep):
    """What goes into a layer of the student gives in the model's own layer what the student's gives."""
    source = saved(tmp_path / "model", kind, **settings)
    student = student_of(tmp_path / "model", keep)
    given, masks = {}, {}

    def see(layer, args, kwargs, out):
        given[layer] = (args, kwargs, out)

    def see_mask(layer, args, kwargs, out):
        masks[layer] = kwargs.get("attention_mask")

    layers, own = student.model.model.layers, source.model.layers
    for layer in layers:
        layer.register_forward_hook(see, with_kwargs=True)
    for layer in own:
        layer.register_forward_hook(see_mask, with_kwargs=True)
    ids = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(1))
    student.model(input_ids=ids, use_cache=False)
    source(input_ids=ids, use_cache=False)
    assert len(layers) == len(keep)
    for layer, old in zip(layers, keep, strict=True):
        mine, theirs = given[layer][1].get("attention_mask"), masks[own[old]]
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.equal(mine, theirs)
        args, kwargs, out = given[layer]
        expected = own[old](*args, **kwargs)
        torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_lists_that_are_of_no_layer_stay(tmp_path):
    saved(tmp_path / "model", "llama", **{**DEEP, "eos_token_id": [0, 1, 2, 3]})
    assert student_of(tmp_path / "model", [0, 3]).model.config.eos_token_id == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("diffllama", DEEP, r"layer 3 was made with lambda_init=0\.\d+ in its self_attn, layer 1"),
        (
            "qwen3_moe",
            {**DEEP, "num_experts": 4, "moe_intermediate_size": 16, "mlp_only_layers": [0, 1]},
            r"the weights do not fit \(Missing key",
        ),
    ],
)
def test_a_layer_that_would_become_another_is_refused(tmp_path, kind, settings, message):
    saved(tmp_path / "model", kind, **settings)
    with pytest.raises(ConfigError, match=f"what it is by its place, and {message}"):
        student_of(tmp_path / "model", [0, 3])
    if kind == "diffllama":
        student_of(tmp_path / "model", [0, 1])


def test_a_model_of_several_is_refused(tmp_path):
    family("cap in the part for text (Gemma 4)").save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"is of several models .* the folder of its text model"):
        student_of(tmp_path / "model", [0])
