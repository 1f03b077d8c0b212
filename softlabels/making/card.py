"""The store's README.md: what a person, or the Hub, reads first."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from softlabels.core.printable import for_markdown, printable_record
from softlabels.format.fidelity_table import fidelity_rows
from softlabels.format.figures import figures_of
from softlabels.format.manifest import Manifest
from softlabels.making.licences import hub_licence

_MARKDOWN = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_MARKDOWN.filters["form"] = format


def card(manifest: Manifest) -> str:
    """Markdown; its YAML head lets `datasets.load_dataset(STORE)` work where columns are Parquet's own.

    Names are others' and stay text: no HTML, link or table of theirs is in the page.
    """
    licence = hub_licence(manifest.licence)
    manifest = printable_record(manifest, for_markdown)
    identity, fidelity = manifest.identity, manifest.fidelity
    largest_first = sorted(
        (manifest.column_bytes or {}).items(), key=lambda item: (-item[1], item[0])
    )
    return _MARKDOWN.get_template("card.md.jinja").render(
        manifest=manifest,
        identity=identity,
        corpus=identity.corpus,
        targets=identity.targets,
        teacher=identity.teacher,
        masking=identity.masking,
        grid=[f"{t:g}" for t in identity.targets.temperatures],
        figures=figures_of(manifest),
        columns=largest_first,
        loadable=identity.encoding.plain and identity.encoding.container == "parquet",
        licence=licence,
        measured=fidelity,
        rows=[] if fidelity is None else fidelity_rows(fidelity),
    )
