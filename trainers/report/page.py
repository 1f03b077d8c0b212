"""The report of one or several runs: what a stranger should know first, then the evidence."""

from __future__ import annotations

from pathlib import Path

import softlabels
from softlabels.format.fidelity_table import fidelity_rows
from softlabels.format.figures import figures_of
from softlabels.format.manifest import Manifest
from softlabels.report.page import draw
from trainers.report.costs import costs_of
from trainers.report.differing import differing
from trainers.report.findings import Findings, answers, points
from trainers.report.speed import Speed
from trainers.report.texts import Texts

TEMPLATES = Path(__file__).with_name("templates")


def render(
    findings: Findings,
    *,
    command: str,
    latency: Speed | None = None,
    texts: Texts | None = None,
    price: float | None = None,
) -> str:
    """The page.

    Args:
        findings: what it says.
        command: that repeats it.
        latency: what `softtrain latency` measured.
        texts: what the students write.
        price: of an hour of the machine that trained them.
    """
    stores: dict[str, Manifest] = {}
    for spec, manifest in (pair for run in findings.runs for pair in run.training_stores):
        if manifest is not None:
            stores.setdefault(spec, manifest)
    certified = [(s, m.fidelity) for s, m in stores.items() if m.fidelity is not None]
    return draw(
        "runs.html",
        TEMPLATES,
        version=softlabels.__version__,
        findings=findings,
        entries=findings.entries,
        runs=findings.runs,
        settings=differing(findings.entries),
        costs=costs_of(findings.entries, price),
        price=price,
        texts=texts,
        stores=[(spec, figures_of(manifest)) for spec, manifest in stores.items()],
        certified=[(spec, fidelity, fidelity_rows(fidelity)) for spec, fidelity in certified],
        speed=latency,
        command=command,
        answers=answers,
        points=points,
    )
