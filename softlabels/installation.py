"""How an optional library is installed beside this copy of the project: it depends on where the copy came from.

A checkout is installed again with an extra (`pip install -e 'PATH[extra]'`); the name alone (`pip install
'softlabels[extra]'`) finds something only where a package index gave us this copy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["install_hint"]

PACKAGE = Path(__file__).parent


def install_hint(extra: str, *, package: Path = PACKAGE, here: Path | None = None) -> str:
    """The command that installs an extra of this copy.

    Args:
        extra: its name.
        package: folder of the package.
        here: the working directory, in which paths are read.
    """
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file():
        same = (here or Path.cwd()) == checkout
        return f"pip install -e '{'.' if same else checkout}[{extra}]'"
    source = _source()
    url = str(source.get("url", ""))
    if "dir_info" in source:
        return f"pip install '{unquote(urlsplit(url).path)}[{extra}]'"
    if "vcs_info" in source:
        url = f"{source['vcs_info'].get('vcs', 'git')}+{url}"
    return f"pip install 'softlabels[{extra}]{f' @ {url}' if url else ''}'"


def _source() -> dict[str, Any]:
    """What pip recorded of where it took us from (PEP 610); nothing, if that was an index."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        text = distribution("softlabels").read_text("direct_url.json")
        found = json.loads(text) if text else {}
    except (PackageNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
