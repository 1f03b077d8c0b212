"""The report of one or several runs: what a stranger should know first, then the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import softlabels
from softlabels.format.fidelity_table import fidelity_rows
from softlabels.format.figures import figures_of
from softlabels.format.manifest import Manifest
from softlabels.report.page import draw
from trainers.report.findings import Findings, answers, points
from trainers.report.runs import ReportedRun
from trainers.report.speed import Speed

TEMPLATES = Path(__file__).with_name("templates")


def render(runs: Sequence[ReportedRun], *, command: str, latency: Speed | None = None) -> str:
    """The page, with the command that repeats it and, if there are any, the figures of `softtrain latency`."""
    findings = Findings.of(runs)
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
        runs=findings.runs,
        stores=[(spec, figures_of(manifest)) for spec, manifest in stores.items()],
        certified=[(spec, fidelity, fidelity_rows(fidelity)) for spec, fidelity in certified],
        speed=latency,
        command=command,
        answers=answers,
        points=points,
    )
