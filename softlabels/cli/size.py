"""`softlabels size`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from softlabels.builder.config import BuildConfig
from softlabels.cli.price import price_of
from softlabels.cli.purpose import config_for, for_option
from softlabels.console.options import Command, config_options
from softlabels.console.tables import in_columns
from softlabels.console.terminal import Bar, emit, json_option
from softlabels.core.progress import duration
from softlabels.errors import ConfigError

if TYPE_CHECKING:
    from softlabels.start.sizing import Size

NUMBER = click.FloatRange(min=0, min_open=True)


class Asked(NamedTuple):
    """What is sized, and what of it nobody said."""

    config: BuildConfig
    positions: float
    vocab_size: int
    parameters: float | None
    machine: str
    """`cpu` or `gpu`: this one for a job, a GPU for numbers alone."""
    assumed: list[str]


@click.command("size", cls=Command)
@click.argument(
    "config_file", metavar="[JOB.toml]", required=False, type=click.Path(path_type=Path)
)
@click.option("--tokens", type=NUMBER, help="Tokens of the text, such as 1e9, without a corpus.")
@click.option("--vocab", type=click.IntRange(2), help="Ids of the teacher's vocabulary.")
@click.option("--teacher-params", type=NUMBER, help="Parameters of the teacher, such as 8e9.")
@click.option(
    "--gpu-tokens-per-second",
    "tokens_per_second",
    type=NUMBER,
    help="Tokens that the teacher reads in a second on your machine; softlabels build --dry-run measures it.",
)
@click.option(
    "--price-per-hour",
    metavar="PRICE",
    help="Price of the machine per hour, in USD, or in the currency that is named (2.50EUR).",
)
@for_option
@config_options(BuildConfig)
@json_option
def size_command(
    config_file: Path | None,
    tokens: float | None,
    vocab: int | None,
    teacher_params: float | None,
    tokens_per_second: float | None,
    price_per_hour: str | None,
    purpose: str | None,
    **flags: Any,
) -> None:
    """Compute what a store would take: bytes, hours of the teacher, money. Nothing is built or written.

    Of a job, or of numbers alone: --tokens and --vocab. What was not given is assumed, and said to be. The speed of a
    teacher is best measured on the machine itself, by `softlabels build … --dry-run`.

    \b
    Examples:
      softlabels size job.toml --price-per-hour 2.50
      softlabels size --tokens 1e9 --vocab 152000 --k 12 --teacher-params 8e9
      softlabels size --tokens 1e9 --vocab 152000 --estimator topk --k 50 --profile packed \\
          --gpu-tokens-per-second 20000 --price-per-hour 2.50
    """
    price = None if price_per_hour is None else price_of(price_per_hour)
    asked = _asked(config_file, tokens, vocab, teacher_params, purpose, flags)
    from softlabels.start.disk import bytes_each
    from softlabels.start.sizing import BYTES_ARE, FLOPS, size_of, speed_of

    if tokens_per_second is None and asked.parameters:
        tokens_per_second = speed_of(asked.parameters, asked.machine)
        asked.assumed.append(FLOPS[asked.machine][1])
    asked.assumed.append(BYTES_ARE)
    size = size_of(
        asked.positions,
        vocab_size=asked.vocab_size,
        each=bytes_each(asked.config, asked.vocab_size),
        tokens_per_second=tokens_per_second,
    )
    cost = None if price is None or size.hours is None else size.hours * price[0]
    value = {**asdict(size), "cost": cost, "currency": price and price[1], "assumed": asked.assumed}
    emit(value, _text(asked, size, cost, price))


def _asked(
    config_file: Path | None,
    tokens: float | None,
    vocab: int | None,
    parameters: float | None,
    purpose: str | None,
    flags: dict[str, Any],
) -> Asked:
    """A job's own figures, or those that were given."""
    from softlabels.start.sizing import MEASURED_VOCABULARY

    alone = config_file is None and not flags.get("corpus")
    if alone:
        if tokens is None:
            raise ConfigError("--tokens is missing (or name a JOB.toml, or --corpus and --teacher)")
        flags = flags | {"teacher": ("hf:none",), "corpus": ("text:none",)}
        config = config_for(purpose, None, flags)
        assumed = []
        if vocab is None:
            vocab = MEASURED_VOCABULARY
            assumed.append(f"a vocabulary of {vocab:,} ids; give --vocab")
        return Asked(config, tokens, vocab, parameters, "gpu", assumed)
    import torch

    from softlabels.corpora import open_corpora
    from softlabels.start.disk import likely_positions
    from softlabels.start.lengths import lengths_of
    from softlabels.start.sizing import LETTERS_PER_TOKEN
    from softlabels.teachers.unloaded import unloaded

    config = config_for(purpose, config_file, flags)
    corpora, teacher = open_corpora(config.corpus), unloaded(config.teacher, config.domain)
    assumed, positions = [], tokens
    if positions is None and teacher is not None:
        with Bar() as bar:
            packed = lengths_of(config, corpora, teacher, bar)
        if packed.trouble:
            raise ConfigError(packed.trouble)
        positions = float(packed.all_positions)
        if packed.share < 1:
            assumed.append(f"the rest of the corpus is as its first {packed.share:.1%}")
    elif positions is None:
        positions = likely_positions(config, corpora)
        assumed.append(f"{LETTERS_PER_TOKEN} bytes of text a token, as of English")
    if positions is None:
        raise ConfigError("--tokens is missing: the corpus does not say how large it is")
    if vocab is None:
        vocab = MEASURED_VOCABULARY if teacher is None else teacher.record.vocab_size
        if teacher is None:
            assumed.append(f"a vocabulary of {vocab:,} ids; give --vocab")
    if parameters is None and teacher is not None:
        parameters = teacher.record.parameters or None
    machine = "gpu" if torch.cuda.is_available() else "cpu"
    return Asked(config, positions, vocab, parameters, machine, assumed)


def _text(asked: Asked, size: Size, cost: float | None, price: tuple[float, str] | None) -> str:
    config = asked.config
    lines = {
        "positions": f"{size.positions:,}, {asked.vocab_size:,} ids",
        "targets": f"{config.estimator}, k={config.k}, profile {config.profile}",
        "size": f"about {_bytes(size.data_bytes)}, {size.bytes_per_position:.1f} bytes a position",
        "logits": f"in 16 bits, {_bytes(size.dense_fp16_bytes)}",
    }
    if size.hours is None:
        lines["teacher"] = "not known: give --gpu-tokens-per-second or --teacher-params"
    else:
        lines["teacher"] = (
            f"about {duration(size.hours * 3600)} ({size.hours:,.1f} hours) at {size.tokens_per_second:,.0f} tokens/s"
        )
    if cost is not None and price is not None:
        lines["cost"] = f"about {cost:,.2f} {price[1]}, at {price[0]:g} {price[1]} an hour"
    text = in_columns(lines)
    return text + "".join(f"\nassumed: {one}" for one in asked.assumed)


def _bytes(n: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if n >= size:
            return f"{n / size:,.1f} {unit}"
    return f"{n / 1e6:,.1f} MB"
