"""The messages of docs/troubleshooting.md are messages of the source, word for word."""

from __future__ import annotations

import ast
import re

import pytest

from tests.blocks import ROOT, text_of

MESSAGES = re.findall(r"^\| `([^`]+)` \|", text_of("troubleshooting.md"), re.MULTILINE)
HOLE = "\0"
STRINGS = (ast.JoinedStr, ast.Constant)


def sources() -> list[str]:
    """The strings of all files that name an error; what is filled in is a hole."""
    found = []
    for package in ("softlabels", "trainers"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if "Error" in text:
                found += [_spelled(n) for n in ast.walk(ast.parse(text)) if isinstance(n, STRINGS)]
    return [s for s in found if " " in s]


def _spelled(node: ast.JoinedStr | ast.Constant) -> str:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    said = (p.value if isinstance(p, ast.Constant) else HOLE for p in parts)
    return "".join(map(str, said)).replace("`", "")


@pytest.fixture(scope="module")
def strings() -> list[str]:
    return sources()


def says(string: str, message: str) -> bool:
    """Whether a string has the pieces of a message in their order, with something filled in between."""
    end = None
    for piece in re.split(r"\s*…\s*", message):
        start = string.find(piece, end or 0) if piece else len(string)
        if start < 0 or (end is not None and HOLE not in string[end:start]):
            return False
        end = start + len(piece)
    return True


def test_each_message_is_one_of_the_source(strings):
    assert len(MESSAGES) > 35
    assert [m for m in MESSAGES if not any(says(s, m) for s in strings)] == []


def test_a_message_that_was_changed_would_be_seen(strings):
    message = MESSAGES[0]
    word = message.split()[1]
    assert not any(says(s, message.replace(word, "whatever")) for s in strings)
