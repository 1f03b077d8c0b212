"""Whether the disk has room for a store, before a teacher is run for it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from softlabels.builder.config import BuildConfig
from softlabels.corpora import Corpus
from softlabels.start.sizing import LETTERS_PER_TOKEN, MEASURED_VOCABULARY, bytes_per_position


def free_bytes(out: Path) -> int:
    """On the disk that a folder is on, or will be."""
    there = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free


def bytes_each(config: BuildConfig, vocab_size: int = MEASURED_VOCABULARY) -> float:
    """Estimated bytes of a position of a build."""
    estimator = config.make_estimator()
    return bytes_per_position(
        estimator=config.estimator,
        k=min(estimator.k, vocab_size),
        vocab_size=vocab_size,
        sample=estimator.keeps.sample,
        temperatures=len(config.temperature),
        profile=config.profile,
        summary=config.position_summary,
    )


def likely_positions(config: BuildConfig, corpora: Sequence[object]) -> float | None:
    """Of a build, from the bytes of its files alone; None: its corpora do not say how large they are."""
    read = [c.read for c in corpora if isinstance(c, Corpus) and c.read is not None]
    if len(read) < len(corpora) or not read:
        return None
    tokens = sum(r.total for r in read) / LETTERS_PER_TOKEN
    most = config.limit_rows and config.limit_rows * config.seq_len
    return min(tokens, most) if most else tokens


def no_room(config: BuildConfig, corpora: Sequence[object], out: Path) -> str | None:
    """What to say, before the teacher is loaded, if the store will hardly fit on the disk; None: it will."""
    if (positions := likely_positions(config, corpora)) is None:
        return None
    need, free = positions * bytes_each(config), free_bytes(out)
    if need <= free:
        return None
    return (
        f"warning: {out} will take about {need / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free on its disk; a build "
        "that fills it stops, and goes on when there is room (softlabels size says what takes less)"
    )
