"""What the site makes of pages: links, the notebook, and no asset from elsewhere. The site itself: .ci/run."""

from __future__ import annotations

import base64
import re
import runpy
from pathlib import Path

import pytest
import yaml

from tests.blocks import DOCS, FENCE, PAGES, ROOT, text_of

HOOKS = runpy.run_path(str(DOCS / "site_hooks.py"))


@pytest.mark.parametrize(
    ("link", "above", "expected"),
    [
        ("[a](x.md#b)", False, "[a](x.md#b)"),
        ("[a](#b)", False, "[a](#b)"),
        ("[a](https://x.org/a.md)", False, "[a](https://x.org/a.md)"),
        ("[a](../CONTRIBUTING.md#x)", False, "[a](CONTRIBUTING.md#x)"),
        ("[a](../tests/x.py)", False, "a"),
        ("[a](examples/build.toml)", False, "[a](examples/build.toml)"),
        ("[a](tour.ipynb)", False, "[a](tour.md)"),
        ("[a](docs/x.md)", True, "[a](x.md)"),
        ("[a](CHANGELOG.md)", True, "[a](CHANGELOG.md)"),
        ("[a](tests/x.py)", True, "a"),
        ("![a](images/x.svg)", False, "![a](images/x.svg)"),
        ("```sh\n[a](../x.py)\n```", False, "```sh\n[a](../x.py)\n```"),
    ],
)
def test_links_are_those_of_the_site(link, above, expected):
    assert HOOKS["retarget"](link, above=above) == expected


@pytest.mark.parametrize(
    ("html", "foreign"),
    [
        ('<link rel="stylesheet" href="https://fonts.x/a.css">', ["https://fonts.x/a.css"]),
        ('<script src="//cdn.x/a.js"></script>', ["//cdn.x/a.js"]),
        ('<img alt="" src=https://x.org/a.png>', ["https://x.org/a.png"]),
        ('<a href="https://x.org/">a link is followed, not fetched</a>', []),
        ('<link href="assets/a.css" rel="stylesheet"><img src="images/a.svg">', []),
    ],
)
def test_what_a_page_would_fetch_from_elsewhere_is_found(html, foreign):
    assert HOOKS["foreign_assets"](html) == foreign


def test_a_flag_is_not_broken_after_its_hyphens():
    content = HOOKS["on_page_content"]
    assert content("<p><code>--dry-run</code> - a --b</p>") == (
        '<p><code><span class="word">--dry-run</span></code> - a --b</p>'
    )
    assert content("<code>a-b</code>") == '<code class="word">a-b</code>'
    line = '<code><span id="__span-0-1"><a id="x-1"></a>run a-b --lr <span class="m">1</span>\n</span></code>'
    expected = line.replace("--lr", '<span class="word">--lr</span>')
    assert content(line) == expected.replace("\n</span></code>", "</span>\n</code>")
    assert content("<code>systematic --mean-k</code>") == (
        '<code><span class="word">systematic</span> <span class="word">--mean-k</span></code>'
    )
    long = content("<code>DistillationTrainer</code><code>a (max_position_embeddings), b</code>")
    assert '<code class="word long">Distillation<wbr>Trainer</code>' in long
    assert "(max_<wbr>position_<wbr>embeddings), b" in long
    assert content("<td>2 ± 0.1 %<code>2 % 3</code>") == (
        "<td>2\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.1\N{NO-BREAK SPACE}%<code>2 % 3</code>"
    )
    assert content("<code>a <x></code>") == "<code>a <x></code>"
    assert ".word {" in (DOCS / "site.css").read_text(encoding="utf-8")


def test_a_notebook_is_a_page():
    picture = base64.b64encode(b"PNG").decode()
    code = {"cell_type": "code", "source": ["x = 1\n", "x"]}
    outputs = [{"text": ["one\n"]}, {"data": {"text/plain": "2"}}, {"data": {"image/png": picture}}]
    cells = [{"cell_type": "markdown", "source": ["# A"]}, code | {"outputs": outputs}]
    page, pictures = HOOKS["page_of"]({"cells": cells})
    assert pictures == {"images/tour-1.png": b"PNG"}
    assert page == (
        "# A\n\n```python\nx = 1\nx\n```\n\n```text\none\n```\n\n```text\n2\n```\n\n"
        "![What the cell above drew](images/tour-1.png)\n"
    )


def test_every_page_is_in_the_navigation_and_nothing_is_fetched_for_the_theme():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    config = yaml.safe_load(re.sub(r"!!python\S+", "", text))
    listed = set(_pages(config["nav"]))
    assert listed == {*PAGES, "tour.md", *HOOKS["ABOVE"]}
    assert config["theme"]["font"] is False
    assert not [p for p in PAGES if "](http://" in text_of(p)]


def _pages(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav
    assert not isinstance(values, str)
    return [page for value in values for page in _pages(value)]  # type: ignore[attr-defined]


# -- links, as they are read on a forge ---------------------------------------------------------------

MARKDOWN = [*(DOCS / p for p in PAGES), *(ROOT / p for p in ("README.md", *HOOKS["ABOVE"]))]


def anchors(text: str) -> set[str]:
    """Of every heading, as GitHub spells it; a second one of the same name has a number."""
    seen: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#+ (.*?)\s*$", FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = seen[slug] = seen.get(slug, -1) + 1
        found.add(f"{slug}-{number}" if number else slug)
    return found


def broken(path: Path, text: str) -> list[str]:
    """Links to files and headings that are not there; addresses are not looked at."""
    bare = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", bare):
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        there = (path.parent / name) if name else path
        if not there.exists() or (
            anchor and anchor not in anchors(there.read_text(encoding="utf-8"))
        ):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda p: p.name)
def test_no_link_is_broken(path):
    assert broken(path, path.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_found():
    text = "# A\n\n[a](#a) [b](#b) [c](glossary.md#glossary) [d](nothing.md) [e](glossary.md#nothing)\n"
    assert broken(DOCS / "index.md", text) == ["#a", "#b", "nothing.md", "glossary.md#nothing"]
