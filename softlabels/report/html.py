"""Elements of a page. Whatever is not `Markup` is text and gets escaped, so text from a file cannot become markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import TypeAlias

__all__ = ["Child", "Markup", "element", "text"]


class Markup(str):
    """Text that is HTML already: made by `element`, or a constant of this package."""

    __slots__ = ()


Child: TypeAlias = "str | Markup | Iterable[Child] | None"
"""What may stand in an element; None is nothing."""
VOID = frozenset({"br", "hr", "meta", "wbr"})
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""What HTML forbids or UTF-8 cannot hold; tab and line feed may stay."""
NAME = re.compile("[A-Za-z][A-Za-z0-9-]*")


def text(value: str) -> Markup:
    """Escaped; forbidden characters become visible ones."""
    return Markup(html.escape(CONTROL.sub(_visible, value), quote=True))


def _visible(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def element(tag: str, /, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """`<tag …>children</tag>`.

    Args:
        tag: its name.
        children: text, markup, or lists of them.
        attributes: `class_` is class, `_` in a name is `-`; None and False leave one out, True gives it without a
            value.
    """
    assert NAME.fullmatch(tag)
    parts = [f"<{tag}"]
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        assert NAME.fullmatch(attribute)
        if value is None or value is False:
            continue
        if value is True:
            parts.append(f" {attribute}")
            continue
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        parts.append(f' {attribute}="{text(shown)}"')
    parts.append(">")
    if tag in VOID:
        assert not children
        return Markup("".join(parts))
    parts.extend(_flat(children))
    parts.append(f"</{tag}>")
    return Markup("".join(parts))


def _flat(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            yield child
        elif isinstance(child, str):
            yield text(child)
        else:
            yield from _flat(child)
