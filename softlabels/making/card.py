"""The store's README.md: what a person, or the Hub, reads first."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from softlabels.core.kept import BUILT_IN
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
    licence, reference = hub_licence(manifest.licence), _is_reference(manifest)
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
        reference=reference,
        measured=fidelity,
        rows=[] if fidelity is None else fidelity_rows(fidelity),
    )


def _is_reference(manifest: Manifest) -> bool:
    """Whether other models can be compared with it: its labels are the next tokens, and it is no sample."""
    identity, targets = manifest.identity, manifest.identity.targets
    known = targets.estimator in BUILT_IN or targets.declared is not None
    comparable = identity.label_shift != 0 and identity.summary is not None
    return comparable and known and not targets.keeps.sample
