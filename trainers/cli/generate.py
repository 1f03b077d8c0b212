"""`softtrain generate`."""

from __future__ import annotations

from pathlib import Path

import click

from softlabels.cli.options import Command, Seed
from softlabels.cli.terminal import Bar, LocalPath, emit, json_option

__all__ = ["generate_command"]


@click.command("generate", cls=Command)
@click.argument("run", type=LocalPath())
@click.option(
    "--prompts",
    required=True,
    type=LocalPath(),
    help="Text, a line each; .jsonl with prompt or messages; or a store, whose rows' beginnings are taken.",
)
@click.option(
    "--out",
    required=True,
    type=LocalPath(),
    help="FILE.jsonl (texts) or FILE.parquet (the very ids).",
)
@click.option(
    "--temperature", type=float, default=1.0, show_default=True, help="0: the most probable token."
)
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Sample from the most probable tokens that reach this mass.",
)
@click.option(
    "--max-new-tokens",
    type=int,
    default=128,
    show_default=True,
    help="Most tokens to generate for a sequence.",
)
@click.option(
    "--n",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Sequences for each prompt.",
)
@click.option(
    "--seed",
    type=Seed(),
    default=0,
    show_default=True,
    help="With a sequence's number it decides its draws.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Take this many prompts; default all.")
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Tokens of a store's row to prompt with.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Sequences at a time.",
)
@click.option("--device", default="cpu", show_default=True, help="Where to compute.")
@click.option(
    "--weights",
    type=click.Choice(["student", "ema", "best"]),
    default="student",
    show_default=True,
    help="As of softtrain eval.",
)
@json_option
def generate_command(
    run: Path,
    prompts: Path,
    out: Path,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    n: int,
    seed: int,
    limit: int | None,
    prompt_tokens: int,
    batch_size: int,
    device: str,
    weights: str,
    as_json: bool,
) -> None:
    """Sample sequences from a finished run's student: a corpus for softlabels build.

    \b
    Examples:
      softtrain generate run --prompts store --limit 1000 --out own.parquet
      softlabels build --teacher hf:teacher --corpus ids:own.parquet --out own-store
    """
    from trainers.generation.sampling import Sampling
    from trainers.generation.texts import generate

    sampling = Sampling(
        temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed
    )
    with Bar() as bar:
        bar.stage("generate", None, "sequences")
        found = generate(
            run,
            prompts,
            out,
            sampling,
            n=n,
            limit=limit,
            prompt_tokens=prompt_tokens,
            batch_size=batch_size,
            weights=weights,
            device=device,
            advance=bar.advance,
        )
    text = (
        f"{out}: {found.sequences:,} sequences, {found.tokens:,} tokens; {found.unfinished:,} were cut at "
        f"--max-new-tokens, {found.empty:,} ended at once"
    )
    if found.retokenised is not None:
        text += f"; the text of {found.retokenised:,} has other tokens than were sampled (a .parquet keeps them)"
    emit({"run": str(run), "out": str(out), **found._asdict()}, text, as_json=as_json)
