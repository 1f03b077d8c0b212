"""`softlabels inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from softlabels.cli.build import summary
from softlabels.cli.demands import demand_options
from softlabels.errors import ConfigError
from softlabels.options import Command
from softlabels.printable import emphasis, printable, printable_record
from softlabels.terminal import StorePlace, emit, json_option, say

__all__ = ["inspect_command"]

SHOWN = 8
"""Ids shown of a position."""


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
    as_json: bool,
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
        _show_store(opened, as_json=as_json)
        return
    if not 0 <= row < len(opened):
        raise ConfigError(f"--row {row}: {store} has rows 0..{len(opened) - 1}")
    _show_row(opened, row, position, temperature, as_json=as_json)


def _show_store(opened: Any, *, as_json: bool) -> None:
    from softlabels.store.fidelity_table import fidelity_line

    figures = summary(opened.manifest)
    manifest = printable_record(opened.manifest)
    identity = manifest.identity
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
    parameters = f"{teacher.parameters:,} parameters" if teacher.parameters else "size not known"
    lines = {
        "store": f"{opened.path} (format {manifest.version}, {encoding.profile} {encoding.container})",
        "teacher": f"{teacher.name}, {parameters}, {teacher.dtype} on {teacher.device}",
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
        "licence": manifest.licence,
        "fidelity": "not measured"
        if manifest.fidelity is None
        else fidelity_line(manifest.fidelity),
        "digest": manifest.content_digest,
        **_origin(opened),
    }
    if (made := manifest.provenance) is not None:
        asked = "".join(f", {name} {value}" for name, value in made.parameters.items())
        sources = ", ".join(f"{s.name} ({s.rows:,} rows)" for s in made.sources)
        lines["made by"] = f"{made.operation} of {sources}{asked}"
    text = "\n".join(f"{name:>15}  {value}" for name, value in lines.items())
    emit(
        {
            "store": str(opened.path),
            **figures,
            "part": _part(opened),
            "release": None if manifest.release is None else str(manifest.release),
            "signed": opened.vouched.key_sha256 is not None,
            "identity": _plain(opened.manifest.identity),
            "fidelity": None if manifest.fidelity is None else _plain(opened.manifest.fidelity),
        },
        text,
        as_json=as_json,
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


def _plain(record: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(record)


def _show_row(
    opened: Any, index: int, position: int | None, temperature: float | None, *, as_json: bool
) -> None:
    import numpy as np

    from softlabels.domains.image_classification import ImageRow
    from softlabels.rows import UNLABELLED
    from softlabels.token_text import TokenText

    stored = opened.row(index)
    targets, row = stored.targets, stored.row
    t = temperature if temperature is not None else targets.temperatures[0]
    probs, tail = targets.probs(t), targets.tail(t)
    words = TokenText(opened)
    n = targets.n
    if position is not None and not 0 <= position < n:
        raise ConfigError(f"--position {position}: row {index} has positions 0..{n - 1}")
    chosen = range(n) if position is None else [position]
    shown = targets.k if position is not None else SHOWN
    records, lines = [], []
    for p in chosen:
        order = np.argsort(-probs[p], kind="stable")[:shown]
        label = int(row.labels[p])
        said_to_be = "?" if label == UNLABELLED else words.label(label)
        kept = [
            {
                "id": int(targets.ids[p, s]),
                "text": words.label(int(targets.ids[p, s])),
                "p": float(probs[p, s]),
            }
            for s in order
            if targets.kept[p, s]
        ]
        records.append(
            {
                "position": p,
                **({"token": int(row.positions[p])} if hasattr(row, "positions") else {}),
                "label": label,
                "label_text": said_to_be,
                "soft": bool(targets.soft[p]),
                "tail": float(tail[p]),
                "kept": kept,
            }
        )
        said = "hard label only"
        if targets.soft[p]:
            came = probs[p][targets.kept[p] & (targets.ids[p] == label)]
            rank = f"p {came[0]:.3f}" if len(came) else "in tail"
            said = f"{rank:<8} tail {tail[p]:.3f}  " + "  ".join(_choice(k, label) for k in kept)
        lines.append(f"{p:>5}  {said_to_be!r:<16} {said}")
    causal = opened.manifest.identity.label_shift == 1
    what = f"{row.size} tokens, {n} positions"
    if isinstance(row, ImageRow):
        what = f"image {row.document}, view {row.view}"
    header = f"row {index}: {what}; T={t:g}"
    if not causal and "input_ids" in row.inputs and words.known:
        header += f"\n       {printable(words.many(row.inputs['input_ids'].tolist()))}"
    header += (
        f"\n{'':>5}  {'what came' if causal else 'label':<16} and its p; tail: of all ids not kept; the likeliest ids, "
        f"[{'what came' if causal else 'label'}] marked"
    )
    if words.trouble is not None:
        say(words.trouble)
    emit(
        {"row": index, "temperature": t, "positions": records},
        "\n".join([header, *lines]),
        as_json=as_json,
    )


def _choice(kept: dict[str, Any], label: int) -> str:
    """An id with its probability; in a terminal the one that came stands out."""
    words = f"{kept['text']!r} {kept['p']:.3f}"
    return emphasis(f"[{words}]") if kept["id"] == label else words
