"""What `mkdocs build` does beyond Markdown: pages from beside docs/, and no asset from elsewhere.

Pages link to each other as they lie in the repository. CONTRIBUTING.md and CHANGELOG.md lie above docs/: they are pages
of the site, too, and links to other files of the repository, which the site does not have, become plain text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ABOVE = ("CONTRIBUTING.md", "CHANGELOG.md")
"""Pages that lie in the folder above docs/."""
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
ASSET = re.compile(
    r"<(?:link|script|img|iframe|source|video|audio)\b[^>]*?"
    r"""\b(?:src|href)=["']?((?:https?:)?//[^"'> ]+)"""
)
CODE = re.compile(r"^( {0,3}```.*?^ {0,3}```$|(?: {4}[^\n]*\n)+)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie above docs/."""
    from mkdocs.structure.files import File

    for name in ABOVE:
        text = (Path(config.docs_dir).parent / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    return files


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
        text, target = match[1], match[2]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        inside = target.removeprefix("docs/" if above else "../")
        name = inside.partition("#")[0]
        here = name in ABOVE or (Path(name).suffix != "" and (inside != target) == above)
        return f"[{text}]({inside})" if here else text

    parts = CODE.split(markdown)
    return "".join(p if i % 2 else LINK.sub(link, p) for i, p in enumerate(parts))


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
