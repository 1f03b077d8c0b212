"""`softtrain eval`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from softlabels.cli.options import Command, Seed
from softlabels.cli.terminal import Bar, LocalPath, StorePlace, emit, json_option
from trainers.cli.evaluation_text import evaluation_text

__all__ = ["eval_command"]

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
@click.option("--store", required=True, type=StorePlace(), help="Store of held-out rows.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Rows at a time."
)
@click.option("--vocab", help="Read the store in another vocabulary: trim:N or map:FILE.")
@click.option(
    "--images",
    multiple=True,
    help="Images of a store of images, as it was built from them, e.g. arrays:FILE.npz.",
)
@click.option("--device", default="cpu", show_default=True, help="Where to compute.")
@click.option(
    "--weights",
    type=click.Choice(["student", "ema", "best"]),
    default="student",
    show_default=True,
    help="The last weights, the averaged ones of a run with --ema, or the best of one with --heldout.",
)
@click.option(
    "--bootstrap",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="Replicates, of whole rows, for the 95 % intervals; 0 leaves them out.",
)
@click.option(
    "--seed",
    type=Seed(),
    default=0,
    show_default=True,
    help="Seed of the resamplings.",
)
@json_option
def eval_command(
    run: Path,
    store: Path | str,
    batch_size: int,
    vocab: str | None,
    images: tuple[str, ...],
    device: str,
    weights: str,
    bootstrap: int,
    seed: int,
    as_json: bool,
) -> None:
    """Evaluate a finished run's student on the rows of a held-out store.

    The store gives labels and, if it is not a sampled one, the teacher to compare with. All that is found is kept in
    RUN/evaluations, from where `softtrain report` takes it.

    \b
    Example:
      softtrain eval run --store heldout
    """
    from trainers.evaluation.assess import assess_run
    from trainers.evaluation.evaluations import keep_assessment

    with Bar() as bar:
        bar.stage("evaluate", None, "rows")
        found, assessment = assess_run(
            run,
            store,
            device=device,
            batch_size=batch_size,
            vocab=vocab,
            images=images,
            weights=weights,
            replicates=bootstrap,
            seed=seed,
            advance=bar.advance,
            notice=bar.notice,
        )
        path = keep_assessment(run, assessment, bar.notice)
    record = msgspec.to_builtins(assessment)
    detail = {name: record[name] for name in DETAIL}
    emit(
        {
            "run": str(run),
            "weights": weights,
            "store": str(store),
            "saved": None if path is None else str(path),
            **found._asdict(),
            **detail,
        },
        evaluation_text(assessment, path),
        as_json=as_json,
    )
