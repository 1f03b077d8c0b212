"""Every block of code on every page: what it is, and whether it is run, read as data, or left out for a reason.

A page says in a comment that no reader sees, in the line before a block, why that block is not run:

    <!-- not run: needs two GPUs -->

or, anywhere, for all blocks of the page, `<!-- page not run: … -->`. Blocks of the languages `text` and `console` are
output. JSON, YAML and TOML are read. All others are run: by the test that `OWN` names, or by `tests/test_blocks.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(p.name for p in DOCS.glob("*.md"))
OUTPUT = ("text", "console")
DATA = ("json", "yaml", "toml")
CODE = ("sh", "python", "sql")
OWN = {
    "format.md": "tests/test_docs.py",
    "integrations.md": "tests/test_integrations_page.py",
    "kld.md": "tests/kld/test_docs_page.py",
    "python.md": "tests/test_python.py",
    "vision.md": "tests/domains/test_image_docs.py",
}
"""Pages whose blocks a test of their own runs, since it looks at what they give: the test takes them from here."""
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
MARK = re.compile(r"<!-- not run: ([^>]+) -->\n\Z")
PAGE_MARK = re.compile(r"^<!-- page not run: ([^>]+) -->$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    """Of its first line of text, from 1."""
    language: str
    text: str
    reason: str | None
    """Why it is not run."""
    heading: str
    """The heading that it stands under."""

    @property
    def runs(self) -> bool:
        return self.language in CODE and self.reason is None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def blocks_in(text: str, page: str) -> list[Block]:
    """The fenced blocks of a page's text."""
    whole = PAGE_MARK.search(text)
    found = []
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        mark = MARK.search(before) or whole
        headings = re.findall(r"^#+ (.*)$", FENCE.sub("", before), re.MULTILINE)
        found.append(
            Block(
                page=page,
                line=before.count("\n") + 2,
                language=match["language"],
                text=re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE),
                reason=mark[1] if mark else None,
                heading=headings[-1] if headings else "",
            )
        )
    return found


def blocks_of(page: str, *languages: str, heading: str | None = None) -> list[Block]:
    """The blocks of a page of docs/, of some languages, under a heading."""
    return [
        b
        for b in blocks_in(text_of(page), page)
        if (not languages or b.language in languages) and heading in (None, b.heading)
    ]


def to_run(page: str, *languages: str, heading: str | None = None) -> list[str]:
    """The texts of those blocks that are to be run."""
    return [b.text for b in blocks_of(page, *languages, heading=heading) if b.runs]


def commands(text: str) -> list[str]:
    """The lines of a block of the shell: continued ones joined, without comments and empty ones."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = [re.sub(r"(^|\s)#\s.*$", "", line).strip() for line in joined.splitlines()]
    return [line for line in lines if line]
