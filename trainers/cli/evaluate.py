"""`softtrain eval`."""

from __future__ import annotations

from pathlib import Path

import click

from softlabels.terminal import Bar, LocalPath, emit, json_option

__all__ = ["eval_command"]


@click.command("eval")
@click.argument("run", type=LocalPath())
@click.option("--store", required=True, type=LocalPath(), help="Store of held-out rows.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Rows at a time."
)
@click.option("--vocab", help="Read the store in another vocabulary: trim:N or map:FILE.")
@click.option(
    "--images",
    multiple=True,
    help="Of a store of images: where they lie, as it was built from them, e.g. arrays:FILE.npz.",
)
@click.option("--device", default="cpu", show_default=True, help="Where to compute.")
@click.option(
    "--weights",
    type=click.Choice(["student", "ema", "best"]),
    default="student",
    show_default=True,
    help="The last weights, the averaged ones of a run with --ema, or the best of one with --heldout.",
)
@json_option
def eval_command(
    run: Path,
    store: Path,
    batch_size: int,
    vocab: str | None,
    images: tuple[str, ...],
    device: str,
    weights: str,
    as_json: bool,
) -> None:
    """Evaluate a finished run's student on the rows of a held-out store.

    The store gives labels and, if it is not a sampled one, the teacher to compare with.

    \b
    Example:
      softtrain eval run --store heldout
    """
    from trainers.evaluate import evaluate_run

    with Bar(quiet=as_json) as bar:
        bar.stage("evaluate", None, "rows")
        found = evaluate_run(
            run,
            store,
            device=device,
            batch_size=batch_size,
            vocab=vocab,
            images=images,
            weights=weights,
            advance=bar.advance,
        )
    values = found._asdict()
    text = "\n".join(
        f"{name:>12}  {value if isinstance(value, int) else f'{value:.4f}'}"
        for name, value in values.items()
        if value is not None and name != "dropped"
    )
    if found.dropped is not None:
        d = found.dropped
        text += f"\n{'dropped':>12}  " + ", ".join(
            f"{mean:.2g} at T={t:g} (at most {most:.2g})"
            for t, mean, most in zip(d["temperatures"], d["mean"], d["largest"], strict=True)
        )
        text += f"; {d['emptied']} positions kept no id"
    emit(
        {"run": str(run), "weights": weights, "store": str(store), **values}, text, as_json=as_json
    )
