"""`softlabels inspect` and `softlabels verify`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from softlabels.cli.build import summary
from softlabels.errors import ConfigError, IntegrityError
from softlabels.terminal import Bar, LocalPath, emit, json_option

__all__ = ["inspect_command", "verify_command"]

SHOWN = 8
"""Ids shown of a position."""


@click.command("inspect")
@click.argument("store", type=LocalPath())
@click.option("--row", type=int, help="Show one row's positions.")
@click.option("--position", type=int, help="Of that row, show one position in full.")
@click.option(
    "--temperature", type=float, help="T of the probabilities shown (default: the grid's first)."
)
@json_option
def inspect_command(
    store: Path, row: int | None, position: int | None, temperature: float | None, as_json: bool
) -> None:
    """Show what a store holds, or one row of it.

    \b
    Examples:
      softlabels inspect store
      softlabels inspect store --row 3
      softlabels inspect store --row 3 --position 17 --temperature 2
    """
    from softlabels.store.reader import open_store

    opened = open_store(store)
    if row is None:
        if position is not None:
            raise ConfigError("--position needs --row")
        if temperature is not None:
            raise ConfigError("--temperature needs --row")
        _show_store(opened, as_json=as_json)
        return
    if not 0 <= row < len(opened):
        raise ConfigError(f"--row {row}: {store} has rows 0..{len(opened) - 1}")
    _show_row(opened, row, position, temperature, as_json=as_json)


def _show_store(opened: Any, *, as_json: bool) -> None:
    manifest = opened.manifest
    identity, figures = manifest.identity, summary(manifest)
    teacher, targets, encoding = identity.teacher, identity.targets, identity.encoding
    grid = ", ".join(f"{t:g}" for t in targets.temperatures)
    mass = ", ".join(
        f"{m:.4f} at T={t:g}"
        for m, t in zip(figures["kept_mass"], targets.temperatures, strict=True)
    )
    chosen = (
        ""
        if targets.positions is None
        else f" ({figures['soft_positions']:,} soft, {targets.positions}; the others hard label only)"
    )
    hidden = ""
    if (states := identity.hidden) is not None:
        hidden = f"; hidden states of width {states.width} as {states.values}"
    lines = {
        "store": f"{opened.path} (format {manifest.version}, {encoding.profile} {encoding.container})",
        "teacher": f"{teacher.name}, {teacher.parameters:,} parameters, {teacher.dtype} on {teacher.device}",
        "engine": teacher.engine,
        "corpus": f"{identity.corpus.documents:,} documents, {figures['tokens']:,} tokens in {figures['rows']:,} rows",
        "targets": f"{figures['positions']:,} positions{chosen}, {targets.estimator} k={targets.k}, T in {grid}, "
        f"V={teacher.vocab_size:,}",
        "kept mass": mass,
        "teacher's loss": "not known"
        if figures["teacher_nll"] is None
        else f"{figures['teacher_nll']:.4f} nats",
        "size": f"{figures['data_bytes']:,} bytes in {figures['shards']} shards, "
        f"{figures['bytes_per_position']:.1f} a position",
        "values": f"{encoding.values}, within {encoding.relative_error:.2g} of each value{hidden}",
        "licence": identity.licence,
        "digest": manifest.content_digest,
    }
    text = "\n".join(f"{name:>15}  {value}" for name, value in lines.items())
    emit(
        {"store": str(opened.path), **figures, "identity": _plain(identity)}, text, as_json=as_json
    )


def _plain(record: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(record)


def _show_row(
    opened: Any, index: int, position: int | None, temperature: float | None, *, as_json: bool
) -> None:
    import numpy as np

    stored = opened.row(index)
    targets, row = stored.targets, stored.row
    t = temperature if temperature is not None else targets.temperatures[0]
    probs, tail = targets.probs(t), targets.tail(t)
    decode = _decoder(opened)
    what = "next token" if opened.manifest.identity.label_shift else "label"
    n = targets.n
    if position is not None and not 0 <= position < n:
        raise ConfigError(f"--position {position}: row {index} has positions 0..{n - 1}")
    chosen = range(n) if position is None else [position]
    shown = targets.k if position is not None else SHOWN
    records, lines = [], []
    for p in chosen:
        order = np.argsort(-probs[p], kind="stable")[:shown]
        label = int(row.labels[p])
        kept = [
            {
                "id": int(targets.ids[p, s]),
                "text": decode(int(targets.ids[p, s])),
                "p": float(probs[p, s]),
            }
            for s in order
            if targets.kept[p, s]
        ]
        records.append(
            {
                "position": p,
                "token": int(row.positions[p]),
                "label": label,
                "label_text": decode(label),
                "soft": bool(targets.soft[p]),
                "tail": float(tail[p]),
                "kept": kept,
            }
        )
        best = "  ".join(f"{k['text']!r} {k['p']:.3f}" for k in kept)
        said = f"tail {tail[p]:.3f}  {best}" if targets.soft[p] else "hard label only"
        lines.append(f"{p:>5}  {decode(label)!r:<16} {said}")
    header = f"row {index}: {len(row.input_ids)} tokens, {n} positions; T={t:g}\n{'':>5}  {what}"
    emit(
        {"row": index, "temperature": t, "positions": records},
        "\n".join([header, *lines]),
        as_json=as_json,
    )


def _decoder(opened: Any) -> Callable[[int], str]:
    """Id to text: the name of a class, or with the store's own tokenizer; `<id>` where that cannot be had.

    A label that is not known is `?`.
    """
    from softlabels.rows import UNLABELLED

    decode = _named(opened)
    return lambda i: "?" if i == UNLABELLED else decode(i)


def _named(opened: Any) -> Callable[[int], str]:
    classes = opened.manifest.identity.classes
    if classes is not None:
        return lambda i: str(classes[i])
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(opened.file("tokenizer/tokenizer.json").decode())
    except IntegrityError:
        raise
    except Exception:  # not installed, no such file, or not a tokenizer it knows (a bare Exception)
        return "<{}>".format
    return lambda i: str(tokenizer.decode([i], skip_special_tokens=False))


@click.command("verify")
@click.argument("store", type=LocalPath())
@click.option(
    "--deep/--quick",
    default=True,
    help="Decode every shard and check every invariant, or compare sizes and digests only.",
)
@json_option
@click.pass_context
def verify_command(ctx: click.Context, store: Path, deep: bool, as_json: bool) -> None:
    """Check every file of a store; exit with 1 if anything is missing, torn, altered or foreign.

    \b
    Example:
      softlabels verify store
    """
    from softlabels.store.verify import verify_store

    with Bar(quiet=as_json) as bar:
        bar.stage("verify", None, "shards")
        report = verify_store(store, deep=deep, progress=lambda done, total: bar.advance(1))
    for problem in report.problems:
        click.echo(f"error: {problem}", err=True)
    state = "whole" if not report.problems else f"{len(report.problems)} problems"
    text = f"{store}: {state}; {report.files} files, {report.rows:,} rows, {report.positions:,} positions checked"
    emit(
        {
            "store": str(store),
            "ok": not report.problems,
            "problems": report.problems,
            "files": report.files,
            "rows": report.rows,
            "positions": report.positions,
        },
        text,
        as_json=as_json,
    )
    if report.problems:
        ctx.exit(1)
