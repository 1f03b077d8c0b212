"""`softlabels build`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from softlabels.config import BuildConfig
from softlabels.terminal import Bar, LocalPath, config_options, emit, json_option

__all__ = ["build_command", "summary"]


@click.command("build")
@click.argument(
    "config_file", metavar="[CONFIG.toml]", required=False, type=click.Path(path_type=Path)
)
@click.option("--out", required=True, type=LocalPath(), help="Folder of the store.")
@config_options(BuildConfig)
@json_option
def build_command(config_file: Path | None, out: Path, as_json: bool, **flags: Any) -> None:
    """Run a teacher over a corpus and write a store, or finish one that was interrupted.

    Flags win over CONFIG.toml, whose keys are the flags' names with underscores.

    \b
    Examples:
      softlabels build --teacher hf:models/teacher --corpus 'text:books/*.txt' --out store
      softlabels build --teacher hf:models/teacher --corpus 'jsonl:chats.jsonl' \\
          --estimator topk --k 50 --temperature 1 --temperature 2 --out store
    """
    config = BuildConfig.from_sources(config_file, flags)
    from softlabels.build import build

    with Bar(quiet=as_json) as bar:
        manifest = build(config, out, reporter=bar)
    values = summary(manifest)
    text = (
        f"{out}: {values['rows']:,} rows, {values['positions']:,} positions, {values['bytes_per_position']:.1f} bytes "
        f"each, {values['data_bytes'] / 1e6:.1f} MB in {values['shards']} shards; the teacher took "
        f"{manifest.cost.seconds:,.0f} s"
    )
    emit({"store": str(out), **values}, text, as_json=as_json)


def summary(manifest: Any) -> dict[str, Any]:
    """The figures of a manifest that people compare."""
    identity = manifest.identity
    n = max(identity.corpus.positions, 1)
    statistics = manifest.statistics
    return {
        "rows": manifest.rows,
        "positions": identity.corpus.positions,
        "tokens": identity.corpus.tokens,
        "documents": identity.corpus.documents,
        "shards": len(manifest.shards),
        "data_bytes": manifest.data_bytes,
        "bytes_per_position": manifest.data_bytes / n,
        "dense_fp16_bytes_per_position": 2 * identity.teacher.vocab_size,
        "estimator": identity.targets.estimator,
        "k": identity.targets.k,
        "temperatures": identity.targets.temperatures,
        "kept_mass": [m / n for m in statistics.kept_mass],
        "teacher_nll": None if statistics.teacher_nll is None else statistics.teacher_nll / n,
        "digest": manifest.content_digest,
        "seconds": manifest.cost.seconds,
    }
