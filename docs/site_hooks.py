"""What `mkdocs build` does beyond Markdown: pages from beside docs/, and no asset from elsewhere.

Pages link to each other as they lie in the repository. CONTRIBUTING.md and CHANGELOG.md lie above docs/: they are pages
of the site, too, and links to other files of the repository, which the site does not have, become plain text. The
notebook is a page with the outputs that it keeps.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ABOVE = ("CONTRIBUTING.md", "CHANGELOG.md")
"""Pages that lie in the folder above docs/."""
TOUR = "tour"
"""The notebook's name."""
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
ASSET = re.compile(
    r"<(?:link|script|img|iframe|source|video|audio)\b[^>]*?"
    r"""\b(?:src|href)=["']?((?:https?:)?//[^"'> ]+)"""
)
CODED = re.compile(r"<code>.*?</code>", re.DOTALL)
FLAG = re.compile(r"(?<![^\s>'])--?[A-Za-z][\w-]*")
LINE_END = re.compile(r"\n</span>(?=<span id=|</code>)")
WORD = 24
"""Characters of a word of code that a sentence keeps on one line."""
SHORT = 16
"""Characters for which a table's cell has room on a telephone."""
RUN = re.compile(r"(?<![^\s'])[^\s']{2,}(?![^\s'])")
SEAM = re.compile(r"[/:,=?_+.-](?=\w)|(?<=[a-z])(?=[A-Z])")
"""Where a longer word may be broken."""
FIGURE = re.compile(r"(?<=\d) (?=[±%])|(?<=±) (?=\d)|(<code\b.*?</code>)", re.DOTALL)
"""A space in a figure, or code, whose spaces stay."""
CODE = re.compile(r"^( {0,3}```.*?^ {0,3}```$|(?: {4}[^\n]*\n)+)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie above docs/, and the notebook as a page."""
    from mkdocs.structure.files import File

    docs = Path(config.docs_dir)
    for name in ABOVE:
        text = (docs.parent / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    notebook = json.loads((docs / f"{TOUR}.ipynb").read_text(encoding="utf-8"))
    page, pictures = page_of(notebook)
    files.append(File.generated(config, f"{TOUR}.md", content=page))
    for name, content in pictures.items():
        files.append(File.generated(config, name, content=content))
    return files


def page_of(notebook: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown: its cells, and of their outputs texts and pictures.

    Returns:
        The page, and its pictures by name.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            shown = output.get("data", {})
            if "image/png" in shown:
                name = f"images/{TOUR}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(shown["image/png"]))
                parts.append(f"![What the cell above drew]({name})")
            else:
                text = "".join(output.get("text", shown.get("text/plain", "")))
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Spell links as the site has its pages."""
    return retarget(markdown, above=page.file.src_uri in ABOVE)


def retarget(markdown: str, *, above: bool) -> str:
    """The same page, its links as the site has them.

    Args:
        markdown: the page.
        above: it lies in the folder above docs/.
    """

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        target = re.sub(rf"\b{TOUR}\.ipynb$", f"{TOUR}.md", target)
        inside = target.removeprefix("docs/" if above else "../")
        name = inside.partition("#")[0]
        here = name in ABOVE or (Path(name).suffix != "" and (inside != target) == above)
        return f"[{text}]({inside})" if here else text

    parts = CODE.split(markdown)
    return "".join(p if i % 2 else LINK.sub(link, p) for i, p in enumerate(parts))


def on_page_content(html: str, **_: object) -> str:
    """Keep together what a browser must not break: figures, and by site.css flags and words of code.

    There each line of a command is a box, so its line end comes to lie outside: what is copied has it once.
    """
    html = LINE_END.sub("</span>\n", html)
    html = FIGURE.sub(lambda m: m[1] or "\u00a0", html)
    return CODED.sub(
        lambda m: mark_words(m[0].removeprefix("<code>").removesuffix("</code>")), html
    )


def mark_words(code: str) -> str:
    """Code with its words marked: of a command that is highlighted the flags, else all."""
    if "<" in code:
        return f"<code>{FLAG.sub(mark_word, code)}</code>"
    flag = FLAG.fullmatch(code) is not None
    if flag or re.search(r"\s", code):
        return f"<code>{RUN.sub(mark_word, code)}</code>"
    kept = ("word " if len(code) <= WORD else "") + ("long" if len(code) > SHORT else "")
    return f'<code class="{kept.strip()}">{seamed(code)}</code>'


def mark_word(word: re.Match[str]) -> str:
    """A flag or a short word, marked; a longer word with its seams."""
    kept = len(word[0]) <= SHORT or word[0].startswith("-")
    return f'<span class="word">{word[0]}</span>' if kept else seamed(word[0])


def seamed(word: str) -> str:
    """A long word, with the places where it may be broken."""
    return word if len(word) <= SHORT else SEAM.sub(r"\g<0><wbr>", word)


def on_post_page(output: str, page: Page, **_: object) -> str:
    """Refuse a page that would fetch something from elsewhere."""
    from mkdocs.exceptions import PluginError

    foreign = foreign_assets(output)
    if foreign:
        raise PluginError(
            f"{page.file.src_uri}: the page would fetch {foreign[0]}; keep it in docs/"
        )
    return output


def foreign_assets(html: str) -> list[str]:
    """Addresses on other hosts from which a browser would fetch something."""
    canonical = re.compile(r'<link[^>]*rel="?canonical')
    return [m[1] for m in ASSET.finditer(html) if not canonical.match(m[0])]
