r"""Text of others, made fit for a terminal or a page of Markdown.

A store, a checkpoint or a server may say anything. In a terminal an escape sequence moves the cursor, renames the
window or writes the clipboard, and a mark of direction turns a line round: they are shown as `\x1b`, `\u202e`.
Whatever prints for people does so through here: `terminal.emit`, notices, and the one place where errors end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

V = TypeVar("V")

HARMFUL = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks of direction
    "\u2028\u2029\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # lines of their own, and nothing to be seen
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f"  # no characters, and tags
)
_CHARACTERS = re.compile(f"[{HARMFUL}]")
_AND_LINES = re.compile(f"[{HARMFUL}\t\n]")
MARKUP = re.compile(r"[<`|\[\]\\]")
"""What begins HTML, code, a cell of a table, a link, or takes the meaning from what follows."""
BEGIN, END = "\ue000", "\ue001"
"""Around what is emphasised; of private use, so that all that anybody can do with them is to emphasise."""
STYLES = {BEGIN: "\x1b[1;32m", END: "\x1b[0m"}


def printable(text: str, *, lines: bool = False) -> str:
    """Text without characters that do something; line feeds and tabs stay with `lines`."""
    return (_CHARACTERS if lines else _AND_LINES).sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    named = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}.get(match[0])
    return named or (
        f"\\x{number:02x}"
        if number < 256
        else f"\\u{number:04x}"
        if number < 2**16
        else f"\\U{number:08x}"
    )


def emphasis(text: str) -> str:
    """Text that stands out in a terminal, once `for_terminal` has seen it."""
    return f"{BEGIN}{text}{END}"


def for_terminal(text: str) -> str:
    """Lines for people, ours and others': what is emphasised has a style, and nothing else does anything."""
    text = printable(text, lines=True)
    for mark, style in STYLES.items():
        text = text.replace(mark, style)
    return text


def for_markdown(text: str) -> str:
    """One line that stays text in a page of Markdown: no HTML, no link, no cell of a table."""
    return MARKUP.sub(lambda m: f"&#{ord(m[0])};", printable(text))


def printable_record(record: V, change: Callable[[str], str] = printable) -> V:
    """A record, every string in it changed, so that no field is forgotten."""
    return _mapped(record, change)  # type: ignore[no-any-return]


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(v, change) for v in value]
    if isinstance(value, dict):
        return {_mapped(k, change): _mapped(v, change) for k, v in value.items()}
    if isinstance(value, msgspec.Struct):
        fields = {f: _mapped(getattr(value, f), change) for f in value.__struct_fields__}
        return msgspec.structs.replace(value, **fields)
    return value
