"""The texts of the study, each as files of `train` and `heldout`.

`austen` is the project's own: five novels, and *Persuasion* held out. `rust` is the Rust documentation as Debian packs
it (`rust-doc`, the folder `html` in it): the book, the reference and the nomicon, every eighth page of each held out.
"""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

AUSTEN = Path(__file__).parents[3] / "data" / "austen"
BOOKS = ("book", "reference", "nomicon")
NO_PAGES = {"print.html", "index.html", "toc.html", "SUMMARY.html", "404.html"}
HELDOUT_EVERY = 8
BLOCKS = {"p", "li", "pre", "h1", "h2", "h3", "h4", "h5", "tr", "blockquote"}


class _Main(HTMLParser):
    """The words of a page's <main>, a block a paragraph."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.inside = 0
        self.skipped = 0
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "main":
            self.inside += 1
        elif tag in ("script", "style"):
            self.skipped += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "main":
            self.inside -= 1
        elif tag in ("script", "style"):
            self.skipped -= 1
        elif self.inside and tag in BLOCKS:
            self.parts.append("\n" if tag == "li" else "\n\n")

    def handle_data(self, data: str) -> None:
        if self.inside and not self.skipped:
            self.parts.append(data)


def text_of(page: Path) -> str:
    """What a reader of the page reads; runs of empty lines are one."""
    parser = _Main()
    parser.feed(page.read_text(encoding="utf-8"))
    lines = [line.rstrip() for line in "".join(parser.parts).splitlines()]
    kept = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    return "\n".join(kept).strip() + "\n"


def _is_read(page: Path) -> bool:
    """Not of an earlier edition, nor a list of pages or all of them at once."""
    return page.name not in NO_PAGES and not any(f.endswith("-edition") for f in page.parts)


def rust(html: Path, out: Path) -> Path:
    """Write the Rust text once; a folder with `train` and `heldout`."""
    if (out / "heldout").is_dir():
        return out
    for book in BOOKS:
        pages = sorted(p for p in (html / book).rglob("*.html") if _is_read(p.relative_to(html)))
        if not pages:
            raise SystemExit(f"{html / book}: no pages; give the folder html of Debian's rust-doc")
        for i, page in enumerate(pages):
            text = text_of(page)
            if len(text) < 400:
                continue  # a page that says where another is now
            part = "heldout" if i % HELDOUT_EVERY == HELDOUT_EVERY - 1 else "train"
            name = page.relative_to(html).with_suffix(".txt").as_posix().replace("/", "-")
            (out / part).mkdir(parents=True, exist_ok=True)
            (out / part / f"{i:03d}-{name}").write_text(text, encoding="utf-8")  # books by turns
    return out
