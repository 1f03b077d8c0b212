"""`--mean-k`: how many draws, or ids, make the mean that was asked for.

The flow:
 1. run the teacher on the first rows of the corpus, up to 1,024 positions or 256 MiB of logits;
 2. select from them with --k twice as large each time, until the mean reaches what was asked for;
 3. halve the interval until two neighbours are left, and take the one whose mean is nearer.

The plan records what was found (`targets.k`) beside what was asked for (`targets.mean_k`), so that all builders, a
resume and an `append` draw alike. The first rows are not the corpus: its own mean is a few per cent off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from softlabels.builder.config import BuildConfig
from softlabels.core.progress import Reporter
from softlabels.corpora import Corpus
from softlabels.domains import DOMAINS
from softlabels.domains.maker import CorpusPass, RowMaker
from softlabels.errors import ConfigError
from softlabels.format.identity import Identity
from softlabels.teachers import MIB, Teacher

if TYPE_CHECKING:
    from torch import Tensor

POSITIONS, HELD = 1024, 256 * MIB
"""Looked at, at most, and bytes of their logits."""
CHUNK = 64
"""Positions that are selected from at a time."""
MOST = 2**16
"""Draws at a position."""


@torch.no_grad()
def with_found_k(
    config: BuildConfig,
    corpora: Sequence[Corpus],
    teacher: Teacher,
    planned: Identity | None,
    report: Reporter,
) -> BuildConfig:
    """The configuration with the `k` that `mean_k` asks for: a plan's, or what the first rows say.

    Raises:
        ConfigError: no `k` makes that mean.
    """
    if config.mean_k is None:
        return config
    if planned is not None:  # if it is of another mean, that is what will be said
        return replace(config, k=planned.targets.k)
    if teacher.listing is not None:
        raise ConfigError(f"--mean-k {config.mean_k:g}: this teacher gives no logits; say --k")
    logits = torch.cat(list(_first_logits(config, corpora, teacher)))
    means: dict[int, float] = {}

    def mean(k: int) -> float:
        if k not in means:
            means[k] = _mean_kept(replace(config, k=k), logits)
        return means[k]

    low, high = 0, 1
    while mean(high) < config.mean_k:
        low, high = high, 2 * high
        if high > MOST or not _possible(replace(config, k=high), teacher):
            raise ConfigError(
                f"--mean-k {config.mean_k:g}: --k {low} keeps {mean(low):.3g} ids on average, and more cannot be asked "
                f"of --estimator {config.estimator}; ask for fewer"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if mean(middle) < config.mean_k else (low, middle)
    if low and config.mean_k - mean(low) < mean(high) - config.mean_k:
        high = low
    report.notice(
        f"--mean-k {config.mean_k:g}: --k {high} keeps {mean(high):.3g} ids a position on the first {len(logits)}"
    )
    return replace(config, k=high)


def _first_logits(
    config: BuildConfig, corpora: Sequence[Corpus], teacher: Teacher
) -> Iterator[Tensor]:
    maker: RowMaker = DOMAINS.load(config.domain).maker
    left = max(1, min(POSITIONS, HELD // (4 * teacher.record.vocab_size)))
    for _, row in maker.rows(CorpusPass(config=config, corpora=corpora, teacher=teacher)):
        for chunk in teacher.logits([row]):
            yield chunk[:left].clone()  # the teacher may write the next one to the same place
            left -= len(chunk)
            if left <= 0:
                return


def _mean_kept(config: BuildConfig, logits: Tensor) -> float:
    estimator = config.make_estimator()
    generator = torch.Generator().manual_seed(config.seed % 2**63)
    kept = 0
    for begin in range(0, len(logits), CHUNK):
        part = logits[begin : begin + CHUNK]
        u = torch.rand(len(part), estimator.uniforms, generator=generator, dtype=torch.float64)
        drawn = u.to(part.device) if estimator.uniforms else None
        kept += int((estimator.select(part.clone(), drawn).logp > -torch.inf).sum())
    return kept / len(logits)


def _possible(config: BuildConfig, teacher: Teacher) -> bool:
    try:
        config.make_estimator().check_vocab(teacher.record.vocab_size)
    except ConfigError:
        return False
    return True
