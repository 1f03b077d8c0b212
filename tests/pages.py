"""What a page of ours must be: well-formed, whole in itself, without a script; and how a real browser sees it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

VOID = {"meta", "br", "hr", "wbr"}
ALLOWED = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "header",
        "footer",
        "section",
        "p",
        "h1",
        "h2",
        "h3",
    ),
    *(
        "dl",
        "dt",
        "dd",
        "div",
        "span",
        "small",
        "ul",
        "li",
        "figure",
        "figcaption",
        "table",
        "thead",
        "tbody",
        "tr",
    ),
    *("th", "td", "bdi", "mark", "code", "pre", "details", "summary"),
    *("svg", "text", "line", "rect", "circle", "polyline"),
}
"""Every element that a page may have: none loads, runs or sends anything."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
HOSTILE = "</bdi><script>alert('x')</script><img src=http://x.invalid/ onerror=alert(1)>\x00\x1b\u202e\"'&amp;"


class _Checker(HTMLParser):
    """Collects what is wrong with a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.problems: list[str] = []
        self.text: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in ALLOWED:
            self.problems.append(f"<{tag}>")
        for name, value in attrs:
            if name.startswith("on") or name in (
                "src",
                "href",
                "srcset",
                "action",
                "style",
                "data",
            ):
                self.problems.append(f"{tag} {name}={value}")
            if value and re.search(r"url\(|javascript:", value):
                self.problems.append(f"{tag} {name}={value}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes something else")

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            if re.search(r"url\(|@import|expression|</", data):
                self.problems.append("a style that loads")
        else:
            self.text.append(data)


def check_page(page: str) -> str:
    """Refuse a page that is not what it must be; returns its text, white space as a browser shows it."""
    checker = _Checker()
    checker.feed(page)
    checker.close()
    assert checker.problems == []
    assert checker.open == []
    assert {"main", "h1", "title", "svg", "table"} <= checker.seen
    import html5lib

    parser = html5lib.HTMLParser(strict=False)
    parser.parse(page)
    errors = [code for _, code, _ in parser.errors]
    assert errors == []
    assert "default-src 'none'" in page
    page.encode("utf-8")
    return " ".join("".join(checker.text).split())


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium; skips the test where there is none.

    SOFTLABELS_CHROMIUM names one that lies elsewhere.
    """
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    named = os.environ.get("SOFTLABELS_CHROMIUM")
    path = named or next((p for b in BROWSERS if (p := shutil.which(b)) is not None), None)
    with api.sync_playwright() as p:
        if path is None and not Path(p.chromium.executable_path).exists():
            pytest.skip(
                f"needs a browser: none of {', '.join(BROWSERS)} is on the PATH, playwright has installed none "
                "(playwright install chromium), and SOFTLABELS_CHROMIUM names none"
            )
        found = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield found
        finally:
            found.close()


def look_at(path: Path, chromium: Any) -> list[str]:
    """Open a page light, dark, on a phone and on paper; returns the text of its first screen on each."""
    screens = []
    for width, height, scheme, media in (
        (1280, 900, "light", "screen"),
        (1280, 900, "dark", "screen"),
        (390, 844, "light", "screen"),
        (800, 1100, "dark", "print"),
    ):
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        page = context.new_page()
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda m, said=said: said.append(m.text))
        page.on("pageerror", lambda e, said=said: said.append(str(e)))
        page.on("request", lambda r, asked=asked: asked.append(r.url))
        page.on("dialog", lambda d, said=said: said.append(d.message))
        page.emulate_media(media=media, color_scheme=scheme)
        page.goto(path.resolve().as_uri())
        assert said == [], f"{path.name}, {scheme}: the console has messages"
        assert asked == [path.resolve().as_uri()], f"{path.name}: the page loads something"
        across = page.evaluate("document.documentElement.scrollWidth")
        assert across <= width, f"{path.name}: {across} wide on a screen of {width}"
        light = _brightness(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert (light > 128) == (scheme == "light" or media == "print")
        box = page.locator("h1").bounding_box()
        assert box["y"] + box["height"] < height / 2, "the headline fills the first screen"
        figures = page.locator(".facts").bounding_box()
        assert figures["y"] + figures["height"] < height, (
            "the key figures are not on the first screen"
        )
        screens.append(page.locator("header").inner_text())
        small = page.evaluate(SMALLEST_TEXT)
        assert small >= 9, f"{path.name}, {width} wide: text of {small} px in a chart"
        context.close()
    return screens


SMALLEST_TEXT = """Math.min(...[...document.querySelectorAll('svg text')]
    .filter(t => t.getBoundingClientRect().height > 0).map(t => t.getBoundingClientRect().height))"""


def _brightness(color: str) -> float:
    red, green, blue = (float(x) for x in re.findall(r"[\d.]+", color)[:3])
    return (red + green + blue) / 3
