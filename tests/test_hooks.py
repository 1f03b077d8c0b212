"""Each pre-commit hook runs for every file that its check depends on."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HOOKS = {
    hook["id"]: hook
    for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repository["hooks"]
}
WATCHING = sorted(name for name, hook in HOOKS.items() if "files" in hook)
PACKAGES = {
    "mypy": CONFIG["tool"]["mypy"]["packages"],
    "import-contracts": CONFIG["tool"]["importlinter"]["root_packages"],
}
"""The hooks that check whole packages."""
SCRIPTS = {name: h["entry"].split()[1] for name, h in HOOKS.items() if "python docs/" in h["entry"]}
"""The hooks that compare a page with what a script would write."""


def files_of(package: str) -> Iterator[str]:
    for path in (ROOT / package).rglob("*.py"):
        yield path.relative_to(ROOT).as_posix()


def imported_by(script: Path) -> Iterator[str]:
    """Files of ours that a script imports, by its own lines."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        for name in names:
            if name.partition(".")[0] in CONFIG["tool"]["importlinter"]["root_packages"]:
                try:
                    module = importlib.import_module(name)
                except ModuleNotFoundError:  # a class or function of the module before it
                    continue
                yield Path(str(module.__file__)).relative_to(ROOT).as_posix()


def structs(base: type = msgspec.Struct) -> Iterator[type]:
    for struct in base.__subclasses__():
        yield struct
        yield from structs(struct)


def written_in_the_schema() -> Iterator[str]:
    """Files of the records that docs/manifest.schema.json describes."""
    schema = (ROOT / "docs" / "manifest.schema.json").read_bytes()
    names = msgspec.json.decode(schema)["$defs"].keys()
    for struct in structs():
        if struct.__name__ in names and struct.__module__.startswith("softlabels."):
            yield struct.__module__.replace(".", "/") + ".py"


def test_every_hook_that_watches_is_tried_below():
    assert set(WATCHING) == PACKAGES.keys() | SCRIPTS.keys()
    assert set(SCRIPTS.values()) == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("make_*.py")
    }


@pytest.mark.parametrize("name", PACKAGES)
def test_a_check_of_packages_watches_all_their_files(name):
    watched = re.compile(HOOKS[name]["files"])
    needed = {"pyproject.toml", *(f for package in PACKAGES[name] for f in files_of(package))}
    assert {f for f in needed if not watched.search(f)} == set()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_generated_page_watches_what_it_is_made_from(name):
    watched = re.compile(HOOKS[name]["files"])
    script = SCRIPTS[name]
    needed = {script, *imported_by(ROOT / script)}
    if name == "docs-contributing":
        needed |= {"CONTRIBUTING.md", *files_of("softlabels"), *files_of("trainers")}
    if name == "docs-schema":
        needed |= {"docs/manifest.schema.json", *written_in_the_schema()}
        assert len(needed) > 5
    assert {f for f in needed if not watched.search(f)} == set()
