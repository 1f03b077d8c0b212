"""The recipes of docs/integrations.md for trainers that pin other libraries: `.ci/elsewhere NAME` runs them.

Each needs an environment of its own, of what NAME.txt lists; where its trainer is not installed it is skipped.
"""

from __future__ import annotations

import json
import math
import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.blocks import text_of
from tests.elsewhere.recipes import LOGGED, RECIPES, pins, where_installed
from tests.integrations_ground import PAGE, lay, own_losses, write_ground


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return write_ground(tmp_path_factory.mktemp("elsewhere"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what libraries of other years warn each other of
@where_installed("axolotl", "llamafactory", "unsloth")
def test_a_recipe_trains(ground, tmp_path, name):
    """As printed: the first loss is that of a loop of one's own, and what was learnt lowers it."""
    recipe = RECIPES[name]
    recipe.write(tmp_path)
    lay(ground, tmp_path)
    done = recipe.run(tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]
    out = tmp_path / "out" / f"checkpoint-{recipe.number('max_steps')}"
    log = logged(out, recipe.number("max_steps"))
    for line in log:
        assert all(math.isfinite(line[n]) for n in LOGGED), line
    rows = recipe.number(recipe.rows)
    (own,) = own_losses(ground, rows=rows, steps=1, seed=recipe.seed)
    print(f"{name}: first loss {log[0]['loss']:.7f}, of a loop of one's own {own.loss.item():.7f}")
    assert log[0]["loss"] == pytest.approx(own.loss.item(), abs=1e-5)
    learnt = loss_with(out, ground, rows=rows, seed=recipe.seed)
    print(f"after {len(log)} steps, on the same rows: {learnt:.4f}")
    assert learnt < own.loss.item() - 0.01


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_axolotl_without_the_plugin_stops(ground, tmp_path):
    """It goes on where it does not find a plugin; the recipe's data is the plugin's, so that this ends in an error."""
    if find_spec("axolotl") is None:
        pytest.skip(".ci/elsewhere axolotl")
    RECIPES["axolotl"].write(tmp_path)
    (tmp_path / "store_plugin.py").unlink()
    lay(ground, tmp_path)
    done = RECIPES["axolotl"].run(tmp_path)
    assert done.returncode != 0
    assert "only-the-plugin-has-one" in done.stdout
    assert not list(tmp_path.glob("out/**/adapter_model.safetensors"))


@pytest.mark.slow
@where_installed(*RECIPES)
def test_what_the_environment_lacks_is_said(name):
    """Every requirement of the trainer is installed as it asks, or is in its file's lines of what is left out."""
    lines = pins(name).read_text(encoding="utf-8").splitlines()
    said = {w for line in lines if line.startswith("# without ") for w in line.split()[2:]}
    asked = {canonicalize_name(r.name): r for r in requirements(name)}
    lacking = {n for n, r in asked.items() if not fits(r)}
    assert lacking == said


@pytest.mark.parametrize("name", RECIPES)
def test_the_page_names_the_versions_that_are_installed(name):
    pinned = {
        canonicalize_name(r.name): str(r.specifier)
        for line in pins(name).read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
        for r in [Requirement(line)]
    }
    assert all(v.startswith("==") for v in pinned.values())
    (row,) = re.findall(rf"^\| {RECIPES[name].heading} \|.*$", text_of(PAGE), re.MULTILINE)
    shown = re.findall(r"`([\w-]+)==([\d.]+)`", row)
    assert {n for n, _ in shown} == {name, *RECIPES[name].others}
    assert [n for n, v in shown if pinned[n] != f"=={v}"] == []
    assert f"`.ci/elsewhere {name}`" in row


def logged(out: Path, steps: int) -> list[dict[str, float]]:
    """What the trainer logged at each step, with all digits."""
    state = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))
    lines = [line for line in state["log_history"] if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    return lines


def loss_with(adapter: Path, ground: Path, *, rows: int, seed: int) -> float:
    """Of the first batch, with the adapter that was saved."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from trainers import DistillLoss, SoftTargetStream, distil_loss

    base = AutoModelForCausalLM.from_pretrained(ground / "student", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter)
    batch = SoftTargetStream(ground / "store", batch_size=rows, seed=seed).batch_at(0)
    with torch.no_grad():
        return distil_loss(model, batch, DistillLoss(alpha=0.9)).loss.item()


def requirements(name: str) -> list[Requirement]:
    """What a package asks for here, without its extras."""
    asked = [Requirement(line) for line in metadata.requires(name) or []]
    return [r for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})]


def fits(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False
