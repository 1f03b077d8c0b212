"""`softtrain eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

import trainers
from softlabels.console.options import Command, config_options
from softlabels.console.terminal import Bar, LocalPath, emit, json_option
from softlabels.core.settings import from_sources
from trainers.cli.evaluation_text import evaluation_text
from trainers.evaluation.config import EvalConfig

DETAIL = (
    "intervals",
    "reliability",
    "teacher_reliability",
    "by_context",
    "by_document",
    "documents",
    "by_class",
    "blind_spots",
)
"""Of an assessment, what --json gives beside the scores."""


@click.command("eval", cls=Command)
@click.argument("run", type=LocalPath())
@config_options(EvalConfig, file=False)
@json_option
def eval_command(run: Path, **flags: Any) -> None:
    """Evaluate a finished run's student on the rows of a held-out store.

    The store gives labels and, if it is not a sampled one, the teacher to compare with. All that is found is kept in
    RUN/evaluations, from where `softtrain report` takes it.

    \b
    Example:
      softtrain eval run --store heldout
    """
    config = from_sources(EvalConfig, None, flags)
    with Bar() as bar:
        assessment, path = trainers.evaluate(run=run, progress=bar, **vars(config))
    record = msgspec.to_builtins(assessment)
    emit(
        {
            "run": str(run),
            "weights": config.weights,
            "store": config.store,
            "saved": None if path is None else str(path),
            **record["scores"],
            **{name: record[name] for name in DETAIL},
        },
        evaluation_text(assessment, path),
    )
