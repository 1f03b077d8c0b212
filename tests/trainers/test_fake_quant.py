"""Students on a grid of few bits: the grid itself, its gradient, and that what is saved is what was computed with."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from softlabels.errors import ConfigError
from softlabels.store.reader import open_store
from tests.fakes import TinyTeacher, build_tiny, write_corpus
from tests.students import LLAMA
from trainers.data.batch import collate
from trainers.data.tasks import Task
from trainers.exports.config import ExportConfig
from trainers.exports.student import export
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import load_student, make_student
from trainers.students.fake_quant import Grid, on_grid, settle
from trainers.testing import check_student

WEIGHTS = "model.safetensors"
GRIDS = ("int4", "int8", "int4-g4", "int8-g8")


def grid_of(text: str) -> Grid:
    return Grid.parse(text, where="here")


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grids")
    build_tiny(folder / "store", write_corpus(folder / "corpus"))
    build_tiny(folder / "heldout", write_corpus(folder / "other", documents=3, repeat=1))
    for name, tied in (("tied", True), ("untied", False)):
        (folder / f"{name}.json").write_text(json.dumps(LLAMA | {"tie_word_embeddings": tied}))
        (folder / name).mkdir()
        make_student(f"hf-config:{folder}/{name}.json", seed=0, task=Task()).save(folder / name)
        (folder / name / "tokenizer.json").write_bytes(
            TinyTeacher().tokenizer.files()["tokenizer.json"]
        )
    return folder


def config_of(ground, student, **changes):
    values = {"steps": 6, "batch_size": 4, "lr": 1e-2, "dtype": "float32", "checkpoint_every": 3}
    return RunConfig(store=str(ground / "store"), student=student, **(values | changes))


weights = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=16, max_size=16).map(
    lambda x: torch.tensor(x).reshape(2, 8)
)


@given(weights, st.sampled_from(GRIDS))
def test_every_weight_goes_to_the_nearest_level_of_its_group(weight, form):
    grid = grid_of(form)
    levels, scales = grid.quantise(weight)
    assert torch.equal(levels, levels.round())
    assert bool((levels.abs() <= grid.top).all())
    assert torch.equal(scales, scales.to(torch.bfloat16).float())
    each = scales.expand(*scales.shape[:-1], (grid.group or 8)).flatten(-2).double()
    error = (grid.rounded(weight).double() - weight.double()).abs()
    # half a level, and what the scale of the largest weight lost to bfloat16
    assert bool((error <= each * (0.5 + grid.top / 256)).all())
    inner = levels.abs() < grid.top
    assert bool((error[inner] <= each[inner] * 0.5 * (1 + 1e-5)).all())


@given(weights, st.sampled_from(GRIDS))
def test_rounding_again_changes_no_bit(weight, form):
    once = grid_of(form).rounded(weight)
    assert torch.equal(grid_of(form).rounded(once).view(torch.int32), once.view(torch.int32))


@given(weights)
def test_a_group_is_rounded_without_regard_to_others(weight):
    grid = grid_of("int4-g4")
    apart = torch.cat([grid.rounded(part.contiguous()) for part in weight.split(4, dim=1)], dim=1)
    assert torch.equal(grid.rounded(weight), apart)


def test_the_gradient_goes_straight_through():
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 8, generator=g, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 8, generator=g, dtype=torch.float64)
    grid = grid_of("int4-g4")
    (found,) = torch.autograd.grad((x @ grid.seen(weight).T).square().sum(), weight)
    rounded = grid.rounded(weight.detach()).requires_grad_()
    (expected,) = torch.autograd.grad((x @ rounded.T).square().sum(), rounded)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("form", ["int4-g8", "int8", "int4-g8,embeddings,head"])
def test_such_a_student_keeps_the_contract(ground, form):
    check_student(f"hf:{ground}/tied?fake-quant={form}", ground / "store")


def test_layers_compute_with_rounded_weights_and_the_head_with_its_own(ground):
    student = make_student(f"hf:{ground}/tied?fake-quant=int4-g8", seed=0, task=Task())
    plain = make_student(f"hf:{ground}/tied", seed=0, task=Task())
    names = [name for name, _ in on_grid(student.model)]
    assert len(names) == 4 * 7
    assert "lm_head" not in names
    batch = collate([open_store(ground / "store").row(0)])
    assert not torch.equal(student.hidden(batch), plain.hidden(batch))
    with torch.no_grad():
        for name, _ in on_grid(student.model):
            layer = plain.model.get_submodule(name)
            layer.weight.copy_(grid_of("int4-g8").rounded(layer.weight))
    assert torch.equal(student.hidden(batch), plain.hidden(batch))
    assert torch.equal(student.head().weight, plain.head().weight)


@pytest.mark.parametrize("extras", ["embeddings", "head", "embeddings,head"])
def test_what_is_quantised_beyond_layers_is_what_is_named(ground, extras):
    student = make_student(f"hf:{ground}/untied?fake-quant=int4-g8,{extras}", seed=0, task=Task())
    names = {name for name, _ in on_grid(student.model)}
    assert ("model.embed_tokens" in names) == ("embeddings" in extras)
    assert ("lm_head" in names) == ("head" in extras)
    head, table = student.model.get_output_embeddings(), student.model.get_input_embeddings()
    rounded = grid_of("int4-g8").rounded
    expected = rounded(head.weight) if "head" in extras else head.weight
    assert torch.equal(student.head().weight, expected)
    ids = torch.arange(300)
    expected = rounded(table.weight) if "embeddings" in extras else table.weight
    assert torch.equal(table(ids), expected)


def test_settled_is_the_same_model_without_rounding(ground):
    student = make_student(f"hf:{ground}/tied?fake-quant=int4-g8", seed=0, task=Task()).eval()
    batch = collate([open_store(ground / "store").row(0)])
    before = student.hidden(batch)
    assert len(settle(student.model)) == 4 * 7
    assert not list(on_grid(student.model))
    assert torch.equal(student.hidden(batch), before)


def test_a_run_saves_what_it_computed_with_and_goes_on_to_the_bit(ground, tmp_path):
    spec = f"hf:{ground}/tied?fake-quant=int4-g8"
    folder = train(config_of(ground, spec), tmp_path / "run")
    saved = load_file(folder / WEIGHTS)
    latent = load_file(tmp_path / "run/checkpoints/step-00000006/model.safetensors")
    for name, layer in on_grid(load_student(folder).model):
        weight = saved[f"{name}.weight"]
        assert torch.equal(layer.grid.rounded(weight), weight)
        assert not torch.equal(latent[f"model.{name}.weight"], weight)
        assert torch.equal(layer.grid.rounded(latent[f"model.{name}.weight"]), weight)
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000006")
    again = load_file(train(config_of(ground, spec), tmp_path / "run", resume=True) / WEIGHTS)
    assert saved.keys() == again.keys()
    assert all(torch.equal(again[name], weight) for name, weight in saved.items())


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_packed_weights_are_loaded_as_what_was_trained(ground, tmp_path, name):
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")
    extras = "" if name == "tied" else ",head"
    spec = f"hf:{ground}/{name}?fake-quant=int4-g8{extras}"
    train(config_of(ground, spec, steps=2), tmp_path / "run")
    settings = {"heldout": str(ground / "heldout"), "tolerance": 1e-6}
    record = export(
        tmp_path / "run",
        tmp_path / "packed",
        ExportConfig(format="compressed-tensors", **settings),
    )
    assert record.check.largest_difference <= 1e-6
    assert record.details["quantisation"]["layers"] == 4 * 7 + (name == "untied")
    tensors = load_file(tmp_path / "packed/model.safetensors")
    assert tensors["model.layers.0.mlp.up_proj.weight_packed"].dtype == torch.int32
    assert tensors["model.layers.0.mlp.up_proj.weight_packed"].shape == (32, 16 * 4 // 32)
    assert "model.layers.0.mlp.up_proj.weight" not in tensors
    assert "fake_quant" not in (tmp_path / "packed/config.json").read_text()


def test_a_student_without_a_grid_has_nothing_to_pack(ground, tmp_path):
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")
    train(config_of(ground, f"hf:{ground}/tied", steps=1), tmp_path / "run")
    config = ExportConfig(format="compressed-tensors", heldout=str(ground / "heldout"))
    with pytest.raises(ConfigError, match="learnt on no grid"):
        export(tmp_path / "run", tmp_path / "packed", config)
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("fake-quant=int3", "is no grid; expected int4, int8"),
        ("fake-quant=int4-g0", "is no grid"),
        ("fake-quant=int4,heads", "is no grid"),
        ("fake-quant=int4,head,head", "is no grid"),
        ("fake-quant=int4-g12", "groups of 12 do not divide the 16 inputs of .*; g16 divides all"),
        ("fake-quant=int4,head", "its head is tied to its embeddings"),
        ("quantum=1", r"expected hf:PATH, or hf:PATH\?NAME=… with one of fake-quant"),
        ("", "expected hf:PATH"),
    ],
)
def test_what_is_no_grid_is_refused(ground, query, message):
    with pytest.raises(ConfigError, match=message):
        make_student(f"hf:{ground}/tied?{query}", seed=0, task=Task())
