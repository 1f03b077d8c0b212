from __future__ import annotations

import inspect
import re

import pytest

from softlabels import errors
from softlabels.errors import MissingExtraError, SoftLabelsError

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and value.__module__ == errors.__name__
}

BUILTIN = {
    "ConfigError": ValueError,
    "CorpusError": ValueError,
    "TokenizerError": ValueError,
    "TeacherError": RuntimeError,
    "NonFiniteError": RuntimeError,
    "TargetError": ValueError,
    "PairingError": ValueError,
    "FidelityError": ValueError,
    "StoreError": OSError,
    "FormatError": OSError,
    "IntegrityError": OSError,
    "PlanError": OSError,
    "UnfinishedError": OSError,
    "UnreadableError": OSError,
    "RemoteError": OSError,
    "RunError": OSError,
    "ExportError": ValueError,
    "MissingExtraError": ImportError,
}
"""What code that does not know this project may catch."""


def _make(cls: type[SoftLabelsError]) -> SoftLabelsError:
    return cls("gguf", "hf", "a teacher") if cls is MissingExtraError else cls("a sentence")


def test_every_class_is_listed_here():
    assert set(CLASSES) == {"SoftLabelsError", *BUILTIN}


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_each_is_ours_and_a_builtin(name):
    error = _make(CLASSES[name])
    assert isinstance(error, SoftLabelsError)
    assert isinstance(error, BUILTIN[name])


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_the_message_is_the_sentence(name):
    assert str(_make(CLASSES[name])).startswith(("a sentence", "a teacher needs gguf"))


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_exit_codes(name):
    """2: bad usage; 1: bad data."""
    assert CLASSES[name].exit_code == (2 if name in ("ConfigError", "MissingExtraError") else 1)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_each_has_a_docstring_of_its_own(name):
    assert "__doc__" in vars(CLASSES[name])
    assert vars(CLASSES[name])["__doc__"].strip().endswith(".")


# -- the tree that is drawn -----------------------------------------------------------------------


def _drawn() -> dict[str, tuple[str | None, str | None]]:
    """Class to (parent, builtin base), as the module's docstring draws them."""
    found: dict[str, tuple[str | None, str | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(
            r"^    ((?:[│├└─ ]{4})*)(\w*Error)(?:\s+\((\w+)\))?(?:\s{2,}(\S.*))?$", line
        )
        if match is None:
            continue
        depth = len(match[1]) // 4
        path[depth:] = [match[2]]
        found[match[2]] = (path[depth - 1] if depth else None, match[3])
        assert depth == 0 or match[4], f"{match[2]} is drawn without saying what it is"
    return found


def test_the_drawn_tree_is_the_tree():
    drawn = _drawn()
    assert set(drawn) == set(CLASSES)
    for name, (parent, builtin) in drawn.items():
        bases = [b.__name__ for b in CLASSES[name].__bases__]
        expected = [parent, builtin] if parent else ["Exception"]
        assert bases == [b for b in expected if b], name


def test_the_drawing_is_whole():
    """Every branch line but a group's last continues; the last one bends."""
    lines = [line for line in (errors.__doc__ or "").splitlines() if re.search(r"[├└]── ", line)]
    assert len(lines) == len(CLASSES) - 1
    for i, line in enumerate(lines):
        depth = line.index("── ")
        following = [x for x in lines[i + 1 :] if x.index("── ") <= depth]
        last = not following or following[0].index("── ") < depth
        assert line[depth - 1] == ("└" if last else "├"), line
