"""`softtrain export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

import trainers
from softlabels.console.options import Command, config_options
from softlabels.console.terminal import Bar, LocalPath, emit, json_option
from softlabels.core.settings import from_sources
from trainers.exports.config import ExportConfig


@click.command("export", cls=Command)
@click.argument("run", type=LocalPath())
@click.option("--out", required=True, type=LocalPath(), help="Folder to make.")
@config_options(ExportConfig, file=False)
@json_option
def export_command(run: Path, out: Path, **flags: Any) -> None:
    """Export a finished run's student to ship it: a folder with model, tokenizer, card and record.

    The export is asked the same as the student in PyTorch, on held-out rows, and is only published if it
    gives the same answers within --tolerance.

    \b
    Examples:
      softtrain export run --format onnx --heldout heldout --out student-onnx
      softtrain export run --format onnx-int8 --heldout heldout --out student-int8
    """
    config = from_sources(ExportConfig, None, flags)
    with Bar() as bar:
        record = trainers.export(run=run, out=out, progress=bar, **vars(config))
    check = record.check
    lost = (
        f"log-probabilities within {check.largest_difference:.2g} nats"
        if check.rule == "log-probability"
        else f"negative log-likelihood {check.loss_of_nll:+.3%}, accuracy {0.0 - check.loss_of_accuracy:+.3%}"
    )
    text = (
        f"{out}: {record.kind}, {record.model_bytes:,} bytes; {lost} of the student in PyTorch, over {check.labels:,} "
        f"labels of {check.rows} held-out rows"
    )
    emit({"export": str(out), **msgspec.to_builtins(record)}, text)
