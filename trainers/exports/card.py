"""The export's README.md: what it is, where it comes from, how good it is, how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template

from trainers.exports.domains import Exported
from trainers.exports.duties import duties
from trainers.exports.formats import Format
from trainers.exports.record import ExportRecord

TEMPLATE = Path(__file__).with_name("card.jinja")
PREPARED_WITH = {"tokenizers": "tokenizers", "PIL": "pillow"}
"""What the lines that prepare inputs name, and the package that it is in."""


def card(
    record: ExportRecord, config: Mapping[str, Any], form: Format, domain: Exported, folder: Path
) -> str:
    """Markdown about the export in a folder, whose record may still lack the card itself; `config` is the run's."""
    origin = domain.origin(folder)
    code = f"{domain.preparation(folder, record.details)}{form.snippet(origin)}"
    needs = form.needs(origin) + "".join(
        f" {package}" for word, package in PREPARED_WITH.items() if word in code
    )
    template = Template(
        TEMPLATE.read_text(encoding="utf-8"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    page: str = template.render(
        record=record,
        source=record.source,
        check=record.check,
        config=config,
        domain=domain,
        code=code.strip(),
        duties=duties(record.source.licences),
        needs=needs,
    )
    return page
