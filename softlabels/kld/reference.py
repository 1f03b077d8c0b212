"""Making a reference: a store that says of a model what `softlabels kld` needs, and no more.

It is a build: the k likeliest ids of each position with their log-probabilities at T=1, the exact mass of all others,
the label's log-probability and the entropy. Beside it, in STORE-wide, every so many rows have many more ids: there the
tails are looked into, and what is found says how far off the others may be. Whole distributions of every 64th row
would take 2 V / 64 bytes for each position of the store: 1,536 at V = 49,152.

The flow:
 1. build STORE, or finish it; nothing is done to one that is complete;
 2. choose every so many of its rows; the model runs on them again, and STORE-wide is made of what it says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from softlabels.algebra.rewrite import rewrite, survey
from softlabels.algebra.sources import files_of, open_source
from softlabels.builder.build import build, load_teacher
from softlabels.builder.config import BuildConfig
from softlabels.builder.teach import teach
from softlabels.codecs import make_codec
from softlabels.core.progress import Reporter, Silent
from softlabels.estimators.topk import TopK
from softlabels.format.identity import Identity
from softlabels.format.manifest import Manifest
from softlabels.format.shard import Shard
from softlabels.kld.candidates import models_of
from softlabels.kld.reference_config import ReferenceConfig
from softlabels.kld.run import WIDE
from softlabels.making.plan import begun
from softlabels.making.same_job import check_command
from softlabels.teachers import Teacher

COMMAND = "reference"
WIDE_VALUES = "companded?finest=320&coarsest=32"
"""Of wide rows: there rare ids are what is looked at, so their steps are finer than a reference's."""
WIDE_POSITIONS, WIDE_EVERY = 512, 256
"""A candidate's five coefficients are learnt as well from 512 positions as from 1,500; a wide position takes as many
bytes as 15 others, so one row in 256 takes 6 % more."""


@dataclass(frozen=True, kw_only=True)
class References:
    """What was made."""

    manifest: Manifest
    wide: Manifest | None


def make_reference(
    model: str,
    config: ReferenceConfig,
    out: Path,
    *,
    reporter: Reporter | None = None,
    teacher: Teacher | None = None,
) -> References:
    """Make a reference and its wide rows, or finish what was begun.

    Args:
        model: as `candidates.py` reads it.
        config: of what, and how.
        out: the store's folder; the wide rows are beside it.
        reporter: receives the progress.
        teacher: used instead of loading the model.

    Raises:
        PlanError: there is something else already.
        ConfigError, CorpusError, TeacherError, StoreError: what, where and the way out.
    """
    report = reporter or Silent()
    wide_out = Path(f"{out}{WIDE}")
    if config.wide_every != 0:
        planned = begun(wide_out, report.notice)  # refuses a folder of others, before the work
        if planned is not None:
            check_command(wide_out, planned, COMMAND)
    asked = build_of(model, config)
    planned = begun(out, report.notice)
    identity = None if planned is None else planned.identity
    teacher = load_teacher(asked, identity, report, teacher)
    manifest = build(asked, out, reporter=report, teacher=teacher)
    wide = None
    if config.wide_every != 0 and config.k < manifest.identity.teacher.vocab_size:
        wide = _widen(out, wide_out, config, teacher, report)
    return References(manifest=manifest, wide=wide)


def build_of(model: str, config: ReferenceConfig) -> BuildConfig:
    """The build that makes the store.

    Raises:
        ConfigError: an impossible setting.
        TeacherError: a folder that holds no model.
    """
    (found,) = models_of((model,))
    dtype = found.saved if config.dtype == "auto" and found.saved is not None else config.dtype
    return BuildConfig(
        teacher=found.spec,
        corpus=(*(f"text:{glob}" for glob in config.text), *config.corpus),
        estimator="topk",
        k=config.k,
        temperature=(1.0,),
        profile="packed",
        values=config.values,
        seq_len=config.seq_len,
        limit_rows=config.limit_rows,
        shard_rows=config.shard_rows,
        licence=config.licence,
        device=config.device,
        dtype=dtype,
        batch_tokens=config.batch_tokens,
        head_mib=config.head_mib,
    )


def _widen(
    out: Path, wide_out: Path, config: ReferenceConfig, teacher: Teacher, report: Reporter
) -> Manifest:
    """Every so many rows again, with more ids."""
    store = open_source(out, wide_out)
    old = store.manifest.identity
    k, codec = min(config.wide_k, old.teacher.vocab_size), make_codec(WIDE_VALUES)
    identity = msgspec.structs.replace(
        old,
        targets=msgspec.structs.replace(old.targets, k=k),
        encoding=msgspec.structs.replace(
            old.encoding,
            values=WIDE_VALUES,
            relative_error=codec.relative_error,
            absolute_error=codec.absolute_error(sample=False),
            dictionary_shards=None,
            dictionary_sha256=None,
        ),
    )
    every = config.wide_every or wide_every(old.corpus.rows, old.corpus.positions)
    found = survey(store, report, _every(every))
    return rewrite(
        found,
        wide_out,
        identity,
        COMMAND,
        {"wide_every": str(every), "wide_k": str(k)},
        report,
        change=partial(_taught, identity, teacher, config.batch_tokens),
        files=files_of(store, "tokenizer"),
    )


def wide_every(rows: int, positions: int) -> int:
    """Every how many rows one is wide: `WIDE_EVERY`, or as few as `WIDE_POSITIONS` take."""
    needed = max(round(WIDE_POSITIONS * rows / max(positions, 1)), 1)
    return min(max(rows // needed, 1), WIDE_EVERY)


def _every(step: int) -> Callable[[Shard], npt.NDArray[np.bool_]]:
    def choose(shard: Shard) -> npt.NDArray[np.bool_]:
        chosen = (np.arange(len(shard.rows)) + shard.start_row) % step == 0
        return np.asarray(chosen)

    return choose


def _taught(identity: Identity, teacher: Teacher, batch_tokens: int, shard: Shard) -> Shard:
    """The same rows, with what the model says of them now."""
    targets, _ = teach(
        shard.rows,
        identity,
        TopK(k=identity.targets.k),
        teacher,
        start_row=shard.start_row,
        batch_tokens=batch_tokens,
        advance=lambda _: None,
    )
    return Shard(start_row=shard.start_row, rows=shard.rows, targets=targets)
