from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from softlabels.codecs.floating import Float16
from softlabels.core import registry
from softlabels.core.registry import Registry, split_spec
from softlabels.corpora import CORPORA, open_corpora
from softlabels.errors import ConfigError
from softlabels.teachers import TEACHERS, TeacherOptions, open_teacher
from tests import plugins

ROOT = Path(__file__).parents[1]
GROUP = "softlabels.tests"
ALL = {r.group: r for r in plugins.ALL}


@pytest.fixture
def installed(monkeypatch):
    """Pretend that another package declares entry points."""

    def declare(**targets: str) -> None:
        points = [EntryPoint(name=n, value=v, group=GROUP) for n, v in targets.items()]

        def entry_points(*, group: str) -> list[EntryPoint]:
            assert group == GROUP
            return points

        monkeypatch.setattr(registry, "entry_points", entry_points)

    declare()
    return declare


def test_a_builtin_is_imported_when_asked_for(installed):
    assert Registry(GROUP, {"f16": "softlabels.codecs.floating:Float16"}).load("f16") is Float16


def test_nothing_is_imported_before(installed):
    broken = Registry(GROUP, {"broken": "no.such.module:Thing", "ok": "math:sqrt"})
    assert broken.names() == ["broken", "ok"]
    assert broken.load("ok")(9) == 3
    with pytest.raises(ModuleNotFoundError):
        broken.load("broken")


def test_an_installed_package_adds_names(installed):
    installed(theirs="math:sqrt")
    registry = Registry(GROUP, {"ours": "math:floor"})
    assert registry.names() == ["ours", "theirs"]
    assert registry.load("theirs")(16) == 4


def test_an_unknown_name_is_refused_with_the_known_ones(installed):
    installed(theirs="math:sqrt")
    with pytest.raises(
        ConfigError, match=r"^softlabels.tests: nothing is called 'x'; known: ours, theirs$"
    ):
        Registry(GROUP, {"ours": "math:floor"}).load("x")


def test_a_builtin_cannot_be_redefined(installed):
    installed(ours="evil:floor")
    registry = Registry(GROUP, {"ours": "math:floor"})
    with pytest.raises(ConfigError, match=r"redefines the built-in 'ours' as 'evil:floor'; unins"):
        registry.names()
    assert registry.load("ours")(1.5) == 1, "what ships with the project is what is loaded"


def test_a_builtin_may_be_declared_once_more(installed):
    installed(ours="math:floor")
    assert Registry(GROUP, {"ours": "math:floor"}).names() == ["ours"]


@pytest.mark.parametrize("group", sorted(ALL))
def test_every_builtin_of_ours_can_be_loaded(group):
    for name in ALL[group].names():
        assert ALL[group].load(name) is not None


def test_all_registries_are_the_documented_ones():
    """In CONTRIBUTING, whose table is made of them, and in the source, of which none is forgotten."""
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    made = [
        path
        for package in ("softlabels", "trainers")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"^[A-Z]+: Registry\[", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(made) == len(ALL) == len(plugins.ALL)
    for group in ALL:
        assert f"| `{group}` |" in table


def test_a_component_of_a_broken_package_is_refused_in_a_sentence(installed):
    installed(theirs="no.such.module:Thing")
    with pytest.raises(ConfigError, match=r"'theirs' .* cannot be imported from no\.such\.module"):
        Registry(GROUP, {}).load("theirs")


def test_builtins():
    found = {group: set(r.names()) for group, r in ALL.items()}
    assert found["softlabels.codecs"] >= {"float16", "float32"}
    assert found["softlabels.corpora"] >= {"text", "jsonl"}
    assert found["softlabels.estimators"] >= {"topk", "sampled"}
    assert found["softlabels.teachers"] >= {"hf"}
    assert found["trainers.students"] >= {"hf", "hf-config", "layers-of"}


def test_listing_names_imports_no_component():
    code = (
        "import sys\n"
        "from softlabels.estimators import ESTIMATORS\n"
        "from softlabels.codecs import CODECS\n"
        "ESTIMATORS.names(), CODECS.names()\n"
        "bad = {'torch', 'softlabels.estimators.topk', 'softlabels.codecs.floating'} & set(sys.modules)\n"
        "sys.exit(repr(bad) if bad else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("hf:path/to/model", ("hf", "path/to/model")),
        ("text:C:/books/*.txt", ("text", "C:/books/*.txt")),
        ("layers-of:m?keep=0,1", ("layers-of", "m?keep=0,1")),
    ],
)
def test_split_spec(spec, parts):
    assert split_spec(spec, flag="--x") == parts


@pytest.mark.parametrize("spec", ["", ":", "hf", "hf:", ":path"])
def test_split_spec_refuses(spec):
    with pytest.raises(ConfigError, match=rf"^--teacher '{spec}': expected NAME:ARGUMENT, e\.g\. "):
        split_spec(spec, flag="--teacher")


def test_split_spec_names_what_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher").mkdir()
    with pytest.raises(ConfigError, match=r"e\.g\. hf:teacher$"):
        split_spec("teacher", flag="--teacher")
    with pytest.raises(ConfigError, match=r"e\.g\. hf-config:student\.json$"):
        split_spec("student.json", flag="--student")


def test_a_back_end_s_class_must_be_a_teacher_and_a_corpus_a_corpus(monkeypatch):
    """What a plug-in's class does not declare would be missed in the midst of a build."""
    monkeypatch.setattr(TEACHERS, "load", lambda _: lambda argument, options: object())
    monkeypatch.setattr(CORPORA, "load", lambda _: lambda argument: object())
    with pytest.raises(ConfigError, match=r"gave a object, which is no softlabels\.teachers\.Te"):
        open_teacher("their:x", TeacherOptions())
    with pytest.raises(ConfigError, match=r"made by a object, which is no softlabels\.corpora\.Co"):
        open_corpora(["text:x"])
