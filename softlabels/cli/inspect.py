"""`softlabels inspect`."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from softlabels.cli.demands import demand_options
from softlabels.console.options import Command
from softlabels.console.terminal import StorePlace, emit, json_option, say
from softlabels.core.printable import printable, printable_record
from softlabels.errors import ConfigError

if TYPE_CHECKING:
    from softlabels.format.figures import Figures

CONTEXT = 24
"""Tokens shown before a position."""


@click.command("inspect", cls=Command)
@click.argument("store", type=StorePlace())
@click.option("--row", type=int, help="Show one row's positions.")
@click.option("--position", type=int, help="Show one position of that row in full.")
@click.option(
    "--temperature", type=float, help="T of the probabilities shown (default: the grid's first)."
)
@demand_options
@json_option
def inspect_command(
    store: Path | str,
    row: int | None,
    position: int | None,
    temperature: float | None,
    **demand: Any,
) -> None:
    """Show what a store holds, or one row of it.

    \b
    Examples:
      softlabels inspect store
      softlabels inspect s3://bucket/store
      softlabels inspect store --row 3
      softlabels inspect store --row 3 --position 17 --temperature 2
    """
    from softlabels.store.reader import open_store

    opened = open_store(store, **demand)
    if row is None:
        if position is not None:
            raise ConfigError("--position needs --row")
        if temperature is not None:
            raise ConfigError("--temperature needs --row")
        _show_store(opened)
        return
    if not 0 <= row < len(opened):
        raise ConfigError(f"--row {row}: {store} has rows 0..{len(opened) - 1}")
    _show_row(opened, row, position, temperature)


def _show_store(opened: Any) -> None:
    from softlabels.format.fidelity_table import fidelity_line
    from softlabels.format.figures import figures_of

    figures = figures_of(opened.manifest)
    manifest = printable_record(opened.manifest)
    identity = manifest.identity
    teacher, targets, encoding = identity.teacher, identity.targets, identity.encoding
    grid = ", ".join(f"{t:g}" for t in targets.temperatures)
    mass = ", ".join(
        f"{m:.4f} at T={t:g}" for m, t in zip(figures.kept_mass, targets.temperatures, strict=True)
    )
    kept = {"kept mass": mass}
    if targets.keeps.sample:
        kept = {"kept": "a random sample, whose weights average to the teacher's probabilities"}
    chosen = (
        ""
        if targets.positions is None
        else f" ({figures.soft_positions:,} soft, {targets.positions}; the others hard label only)"
    )
    hidden = ""
    if (states := identity.hidden) is not None:
        hidden = f"; hidden states of width {states.width} as {states.values}"
    parameters = f"{teacher.parameters:,} parameters" if teacher.parameters else "size not known"
    lines = {
        "store": f"{opened.path} (format {manifest.version}, {encoding.profile} {encoding.container})",
        "teacher": f"{teacher.name}, {parameters}, {teacher.dtype} on {teacher.device}",
        "engine": teacher.engine,
        "corpus": f"{identity.corpus.documents:,} documents, {figures.tokens:,} tokens in {figures.rows:,} rows",
        "targets": f"{figures.positions:,} positions{chosen}, {targets.estimator} k={targets.k}, T in {grid}, "
        f"V={teacher.vocab_size:,}",
        **kept,
        "teacher's loss": _loss(figures),
        "its accuracy": _accuracy(figures),
        "its entropy": _entropy(figures.entropy),
        "size": f"{figures.data_bytes:,} bytes in {figures.shards} shards, "
        f"{figures.bytes_per_position:.1f} a position",
        "values": f"{encoding.values}, within {encoding.relative_error:.2g} of each value{hidden}",
        "licence": manifest.licence,
        "fidelity": "not measured"
        if manifest.fidelity is None
        else fidelity_line(manifest.fidelity),
        "digest": manifest.content_digest,
        **_origin(opened),
    }
    if manifest.provenance is not None:
        lines["made by"] = str(manifest.provenance)
    doubt = _doubt(manifest, figures)
    if doubt is not None:
        lines["warning"] = doubt
    text = "\n".join(f"{name:>15}  {value}" for name, value in lines.items())
    emit(
        {
            "store": str(opened.path),
            **asdict(figures),
            "part": _part(opened),
            "release": None if manifest.release is None else str(manifest.release),
            "signed": opened.vouched.key_sha256 is not None,
            "identity": msgspec.to_builtins(opened.manifest.identity),
            "fidelity": None
            if manifest.fidelity is None
            else msgspec.to_builtins(opened.manifest.fidelity),
            "warning": doubt,
        },
        text,
    )


def _part(opened: Any) -> dict[str, int] | None:
    """How many of the store's shards are there, if not all."""
    part, manifest = opened.vouched.part, opened.vouched.manifest
    return None if part is None else {"shards": len(part.shards), "of": len(manifest.shards)}


def _origin(opened: Any) -> dict[str, str]:
    """Who vouches for the store, and whether all of it is there."""
    lines = {}
    if (part := _part(opened)) is not None:
        lines["a part"] = (
            f"{part['shards']} of {part['of']} shards; documents, tokens, kept mass and loss are what the unsigned "
            "part.json says, until `softlabels verify` has counted them"
        )
    signed = opened.vouched.key_sha256 is not None
    release = opened.manifest.release
    if release is not None:
        lines["release"] = (
            f"{release}{'' if signed else ', by its own account: no --key was given'}"
        )
    if signed:
        lines["signed by"] = f"the key, sha256 {opened.vouched.key_sha256}"
    return lines


def _loss(figures: Figures) -> str:
    if figures.teacher_nll is None:
        return "not known"
    of = "" if figures.labelled == figures.positions else f", over {figures.labelled:,} labels"
    return f"{figures.teacher_nll:.4f} nats, perplexity {figures.perplexity:,.2f}{of}"


def _accuracy(figures: Figures) -> str:
    if figures.accuracy is None:
        return "not held: the store has no summaries of positions (a build keeps them since format 1.3)"
    return f"{figures.accuracy:.2%} of {figures.labelled:,} labels are its likeliest id"


def _entropy(mean: float | None) -> str:
    if mean is None:
        return "not held"
    return f"{mean:.4f} nats on average, as of {math.exp(min(mean, 700)):,.1f} equally likely ids"


def _doubt(manifest: Any, figures: Figures) -> str | None:
    """What speaks against a teacher; None: nothing does."""
    v, classes = manifest.identity.teacher.vocab_size, manifest.identity.classes or []
    share, loss, most = figures.accuracy, figures.teacher_nll, manifest.statistics.commonest_label
    if share is not None and most is not None and share < most[1] and most[0] < len(classes):
        return (
            f"the teacher is right about {share:.1%} of the labels, and {most[1]:.1%} of them are "
            f"{classes[most[0]]!r}: that answer alone would be right more often; check the teacher, the "
            "order of its classes, and the labels of the corpus"
        )
    if loss is not None and loss > math.log(v):
        return (
            f"the teacher's loss is above {math.log(v):.2f} nats, the loss of an even guess among its {v:,} ids; check "
            "the teacher, and that tokenizer and classes are its own"
        )
    return None


def _show_row(opened: Any, index: int, position: int | None, temperature: float | None) -> None:
    from softlabels.cli import row_text
    from softlabels.core.rows import Row
    from softlabels.report.readings import read
    from softlabels.store.token_text import TokenText

    stored = opened.row(index)
    targets, row = stored.targets, stored.row
    t = temperature if temperature is not None else targets.temperatures[0]
    targets.grid_index(t)
    words = TokenText(opened)
    n = targets.n
    if position is not None and not 0 <= position < n:
        raise ConfigError(f"--position {position}: row {index} has positions 0..{n - 1}")
    chosen = range(n) if position is None else [position]
    readings = {p: read(targets, p, int(row.labels[p]), t, words) for p in chosen}
    label = "next token" if opened.manifest.identity.label_shift else "label"
    lines = [f"row {index}: {row.title}"]
    if n and not isinstance(row, Row) and words.known:
        lines.append(f"       {printable(words.many(row.before(0).tolist()))}".rstrip())
    if position is None:
        lines += [
            f"       {text}".rstrip() if not text.startswith(" ") else text
            for text in row_text.legend(
                label=label,
                sampled=targets.keeps.sample,
                summarised=targets.summary is not None,
                t=t,
            )
        ]
        lines += [row_text.line(p, reading) for p, reading in readings.items()]
    else:
        if opened.manifest.identity.label_shift and words.known:
            before = row.before(position)[-CONTEXT:]
            lines.append(f"{'after':>10}  {words.many(before.tolist())!r}")
        lines += row_text.page(readings[position], label=label, vocab_size=opened.vocab_size, t=t)
    records = [
        {
            "position": p,
            "token": int(row.positions[p]),
            **row_text.as_json(reading),
        }
        for p, reading in readings.items()
    ]
    if words.trouble is not None:
        say(words.trouble)
    emit({"row": index, "temperature": t, "positions": records}, "\n".join(lines))
