"""Pages from templates: what a file says is escaped wherever it stands, and a finished page needs nothing but itself.

A page runs no script and may load nothing: its own content policy forbids both.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from softlabels.core.durable import replace
from softlabels.core.printable import printable
from softlabels.errors import ConfigError
from softlabels.report import charts

_GENERATOR = b'<meta name="generator" content="softlabels'
_HEAD = 1024
"""Bytes in which a page says who made it."""
_FOOT = b"<footer>Made by softlabels "
"""What pages said before they said it in their head."""
TEMPLATES = Path(__file__).with_name("templates")


def draw(template: str, folder: Path = TEMPLATES, /, **facts: Any) -> str:
    """A page.

    Args:
        template: a file that extends `page.html`.
        folder: where it lies.
        facts: what it shows, by the names that it has for them, and the `version` that draws it.
    """
    return _environment(folder).get_template(template).render(facts)


@cache
def _environment(folder: Path) -> Environment:
    made = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    made.filters |= {"form": _form, "repr": repr}
    made.globals |= {name: getattr(charts, name) for name in charts.__all__}
    made.globals |= {
        "style": Markup(style),
        "style_sha256": base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    }
    return made


def _shown(value: Any) -> Any:
    """What stands in a page for a value, before it is escaped."""
    assert value is not None, "a template says what it shows of what is not known"
    return value if isinstance(value, Markup) else printable(str(value), lines=True)


def _form(value: float | None, form: str) -> str:
    """A number in a `format` of Python's; nothing, if it is not known."""
    return "" if value is None else format(value, form)


def check_page(out: Path) -> None:
    """Refuse (`ConfigError`) to write a page over what is no page of ours; asked before the work is done."""
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
