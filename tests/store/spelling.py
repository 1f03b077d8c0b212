"""Canonical JSON as docs/format.md, section 2, says it, without the library: what another language would write."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\t": "\\t",
    "\n": "\\n",
    "\f": "\\f",
    "\r": "\\r",
}


def spelled(value: Any, indent: int = 0) -> str:
    """A value, without the line feed at the end of a file."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, str):
        return text(value)
    if isinstance(value, list):
        return block("[]", [spelled(v, indent + 2) for v in value], indent)
    entries = [f"{text(k)}: {spelled(value[k], indent + 2)}" for k in sorted(value)]
    return block("{}", entries, indent)


def block(brackets: str, entries: list[str], indent: int) -> str:
    if not entries:
        return brackets
    inner = ",\n".join(" " * (indent + 2) + e for e in entries)
    return f"{brackets[0]}\n{inner}\n{' ' * indent}{brackets[1]}"


def text(value: str) -> str:
    return '"' + "".join(ESCAPES.get(c, c if c >= " " else f"\\u{ord(c):04x}") for c in value) + '"'


def number(value: float) -> str:
    sign, digits, _ = Decimal(repr(value)).as_tuple()  # repr: the fewest digits, nearest to it
    minus = "-" if sign else ""
    if value == 0:
        return f"{minus}0.0"
    exponent = Decimal(repr(value)).adjusted()
    d = "".join(map(str, digits)).rstrip("0") or "0"
    if not -5 <= exponent <= 15:
        return f"{minus}{d[0]}{'.' + d[1:] if len(d) > 1 else ''}e{exponent}"
    if exponent < 0:
        return f"{minus}0.{'0' * (-exponent - 1)}{d}"
    d = d.ljust(exponent + 1, "0")
    return f"{minus}{d[: exponent + 1]}.{d[exponent + 1 :] or '0'}"
