"""What to type for an optional library works where this copy came from; no page and no message says otherwise."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path

import pytest

from softlabels.errors import MissingExtraError, install_hint

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = sorted([*(ROOT / "softlabels").rglob("*.py"), *(ROOT / "trainers").rglob("*.py")])


class Distribution:
    def __init__(self, recorded: object) -> None:
        self.recorded = recorded

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.recorded is None else json.dumps(self.recorded)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A copy in site-packages, of which pip recorded something."""

    def hint(recorded: object) -> str:
        monkeypatch.setattr(metadata, "distribution", lambda _: Distribution(recorded))
        return install_hint("hf", package=tmp_path / "site-packages" / "softlabels")

    return hint


def test_in_a_checkout():
    assert install_hint("hf", here=ROOT) == "pip install -e '.[hf]'"
    assert install_hint("hf", here=ROOT / "docs") == f"pip install -e '{ROOT}[hf]'"


@pytest.mark.parametrize(
    ("recorded", "hint"),
    [
        (None, "pip install 'softlabels[hf]'"),
        ([], "pip install 'softlabels[hf]'"),
        (
            {"url": "file:///src/my%20checkout", "dir_info": {}},
            "pip install '/src/my checkout[hf]'",
        ),
        (
            {"url": "https://example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": "a"}},
            "pip install 'softlabels[hf] @ git+https://example.org/x.git'",
        ),
        (
            {"url": "file:///dist/softlabels-1-py3-none-any.whl", "archive_info": {}},
            "pip install 'softlabels[hf] @ file:///dist/softlabels-1-py3-none-any.whl'",
        ),
    ],
)
def test_of_a_copy_that_pip_installed(installed, recorded, hint):
    assert installed(recorded) == hint


def test_of_a_copy_that_nobody_recorded(monkeypatch, tmp_path):
    def none(_):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "distribution", none)
    assert install_hint("hf", package=tmp_path / "softlabels") == "pip install 'softlabels[hf]'"


def test_a_missing_library_says_so():
    error = MissingExtraError("gguf", "hf", "a GGUF teacher")
    assert str(error) == f"a GGUF teacher needs gguf, which is not installed: {install_hint('hf')}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_pages_install_from_a_checkout(page):
    """Before there is a release, an index has nothing of the name."""
    for command in re.findall(r"pip install[^`\n]*", page.read_text(encoding="utf-8")):
        assert "softlabels[" not in command, command
        assert not re.search(r"install (?:-\S+ )*softlabels\b", command), command


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_messages_leave_it_to_one_place(source):
    if source.name == "errors.py":
        return
    text = source.read_text(encoding="utf-8")
    assert not re.search(r"pip install[^\n]*softlabels", text)


def test_every_extra_that_is_named_exists():
    import tomllib

    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(config["project"]["optional-dependencies"])
    named = set()
    for source in SOURCES:
        text = source.read_text(encoding="utf-8")
        named |= set(re.findall(r'MissingExtraError\(\s*[^,]+,\s*"(\w+)"', text))
    for page in PAGES:
        for command in re.findall(r"pip install[^`\n]*", page.read_text(encoding="utf-8")):
            for some in re.findall(r"\[([\w,]+)\]", command):
                named |= set(some.split(","))
    assert {"hf", "onnx", "vision", "dev"} <= named <= extras
