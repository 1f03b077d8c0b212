"""How many sentences of each page are longer than 30 words: `python -m tests.readability`.

Sentences are those of paragraphs and of list items. Code, tables, headings and comments are no sentences; a link counts
by its text, and a line that ends in a colon before a list or a table ends a sentence.
"""

from __future__ import annotations

import re
import sys

from tests.blocks import DOCS, FENCE

LONGEST = 30
LEFT_OUT = ("cli.md", "format.md")
"""Generated, and the specification."""


def prose(text: str) -> list[str]:
    """The paragraphs and list items of a page, each as one line."""
    text = re.sub(r"<!--.*?-->", "", FENCE.sub("\n\n", text), flags=re.DOTALL)
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        if re.match(r"\s*(?:\||#|:::| {4}\S)", paragraph):
            continue
        lines = [x for x in paragraph.splitlines() if not re.match(r"\s*(?:\||#)", x)]
        items = re.split(r"\n\s*(?:-|\d+\.) ", "\n" + "\n".join(lines))
        found += [re.sub(r"\s+", " ", item).strip() for item in items if item.strip()]
    return found


def sentences(paragraph: str) -> list[str]:
    """A paragraph's sentences; a point inside code, a number or an abbreviation ends none."""
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", paragraph)
    plain = re.sub(r"`[^`]*`", "CODE", plain).replace("*", "")
    return [s for s in re.split(r"(?<=[.!?])\)?\s+(?=[A-Z(\"])", plain) if s]


def long_sentences(text: str) -> list[str]:
    """Those of more than `LONGEST` words."""
    every = [s for p in prose(text) for s in sentences(p)]
    return [s for s in every if len(re.findall(r"[\w']+(?:[-.,/]\w+)*", s)) > LONGEST]


def counts() -> dict[str, int]:
    """Long sentences of each page."""
    pages = (p for p in sorted(DOCS.glob("*.md")) if p.name not in LEFT_OUT)
    return {p.name: len(long_sentences(p.read_text(encoding="utf-8"))) for p in pages}


if __name__ == "__main__":
    found = counts()
    for page in sys.argv[1:]:
        print(*long_sentences((DOCS / page).read_text(encoding="utf-8")), sep="\n\n")
    if not sys.argv[1:]:
        for page, number in sorted(found.items(), key=lambda x: -x[1]):
            print(f"{number:4} {page}")
        print(f"{sum(found.values()):4} all")
