"""The page and its parts: sections, figures, tables of numbers, key figures, commands."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from softlabels.core.durable import replace
from softlabels.errors import ConfigError
from softlabels.report.html import Child, Markup, element

__all__ = [
    "Cell",
    "charts",
    "check_page",
    "commands",
    "facts",
    "figure",
    "legend",
    "more",
    "note",
    "page",
    "quote",
    "section",
    "table",
    "write_page",
]

_GENERATOR = b'<meta name="generator" content="softlabels'
_HEAD = 1024
"""Bytes in which a page says who made it."""
_FOOT = b"<footer>Made by softlabels "
"""What pages said before they said it in their head."""
STYLE = Path(__file__).with_name("style.css")


class Cell(Markup):
    """A finished `<td>`."""

    __slots__ = ()

    @staticmethod
    def number(value: str, under: str | None = None, *, best: bool = False) -> Cell:
        """A number, with another under it in small."""
        small = None if under is None else element("small", under)
        return Cell(element("td", value, small, class_="n best" if best else "n"))

    @staticmethod
    def words(*children: Child) -> Cell:
        """Text that needs room."""
        return Cell(element("td", *children, class_="text"))


def page(
    title: str, *, eyebrow: str, headline: str, lead: Child, body: Sequence[Markup], version: str
) -> str:
    """A whole page. It runs no script and may load nothing: its own content policy forbids both."""
    style = STYLE.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content=f"softlabels {version}"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        Markup(f"<style>{style}</style>"),
    )
    top = element(
        "header",
        element("p", eyebrow, class_="eyebrow"),
        element("h1", headline),
        element("p", lead, class_="lead"),
    )
    foot = element("footer", f"Made by softlabels {version}.")
    whole = element("html", head, element("body", element("main", top, *body, foot)), lang="en")
    return f"<!doctype html>\n{whole}\n"


def check_page(out: Path) -> None:
    """Refuse to write a page over what is no page of ours; asked before the work is done.

    Raises:
        ConfigError: such a file, or a folder, is there.
    """
    try:
        with out.open("rb") as f:
            ours = _GENERATOR in f.read(_HEAD) or _FOOT in f.read()
    except FileNotFoundError:
        return
    except OSError as e:
        raise ConfigError(f"--out {out}: cannot be looked at ({e.strerror}); choose another") from e
    if not ours:
        raise ConfigError(
            f"--out {out}: is there already, and is no page that this program made; choose another"
        )


def write_page(out: Path, content: str) -> None:
    """Write it, whole or not at all; an earlier page of ours is replaced.

    Raises:
        ConfigError: what is there is no page of ours.
        StoreError: the disk is full, read-only, …
    """
    check_page(out)
    replace(out, content.encode())


def section(title: str, lead: Child, *children: Child) -> Markup:
    """A part of the page."""
    return element("section", element("h2", title), element("p", lead, class_="lead"), *children)


def facts(items: Sequence[tuple[str, str, str]]) -> Markup:
    """Key figures: (what, figure, what to compare it with)."""
    return element(
        "dl",
        [
            element(
                "div",
                element("dt", what),
                element("dd", value, element("small", under)),
                class_="fact",
            )
            for what, value, under in items
        ],
        class_="facts",
    )


def charts(*figures: Markup, wide: bool = False) -> Markup:
    """Figures beside each other, as many as fit."""
    return element("div", *figures, class_="charts wide" if wide else "charts")


def figure(title: str | None, drawing: Child, caption: str | None = None) -> Markup:
    """A chart with its title above and a sentence below."""
    return element(
        "figure",
        None if title is None else element("h3", title),
        drawing,
        None if caption is None else element("figcaption", caption),
    )


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """(style, name) of what a chart shows."""
    return element(
        "ul", [element("li", name, class_=style) for style, name in entries], class_="legend"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[Child]], *, numbers_from: int = 1) -> Markup:
    """The first cell of a row names it; columns from `numbers_from` on are numbers. `Cell`s stay as they are."""

    def cell(i: int, child: Child) -> Markup:
        if isinstance(child, Cell):
            return child
        if i == 0:
            return element("th", child, scope="row")
        return element("td", child, class_="n" if i >= numbers_from else None)

    header = [
        element("th", name, scope="col", class_="n" if i >= numbers_from else None)
        for i, name in enumerate(head)
    ]
    body = [element("tr", [cell(i, child) for i, child in enumerate(row)]) for row in rows]
    return element(
        "div",
        element("table", element("thead", element("tr", header)), element("tbody", body)),
        class_="scroll",
    )


def commands(*lines: str) -> Markup:
    """Commands to copy."""
    return element("pre", "\n".join(lines))


def note(*children: Child) -> Markup:
    """A remark in small."""
    return element("p", *children, class_="note")


def more(summary: str, *children: Child) -> Markup:
    """What opens on a click, without a script."""
    return element("details", element("summary", summary), *children)


def quote(words: str, *, class_: str | None = None, name: str = "bdi") -> Markup:
    """Text from a store; its direction stays its own."""
    return element(name, words, class_=class_)
