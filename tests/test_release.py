"""What goes with a release agrees with it: one version, promises whose pages are there, a wheel that CI tries."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import softlabels

ROOT = Path(__file__).parents[1]
yaml = pytest.importorskip("yaml")


def test_the_version_has_one_home():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert config["project"]["dynamic"] == ["version"]
    assert config["tool"]["hatch"]["version"]["path"] == "softlabels/__init__.py"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == softlabels.__version__
    assert citation["license"] == config["project"]["license"]


def test_the_promises_name_pages_and_tests_that_are_there():
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page)
    named = re.findall(r"`(tests/[\w/.]+)`", page)
    assert len(links) > 5
    assert len(named) > 5
    for name in (*links, *named):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("name", ["fault", "wish"])
def test_issue_templates_are_forms(name):
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    assert all(part["attributes"]["label"] for part in form["body"])


def test_ci_tries_the_wheel():
    assert "\n.ci/wheel\n" in (ROOT / ".ci/run").read_text(encoding="utf-8")
