"""The cheap part of `softlabels check`, which every build does first: seconds, and no teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from softlabels.builder.config import BuildConfig
from softlabels.core.progress import Reporter
from softlabels.corpora import Corpus
from softlabels.corpora.overlap import refuse_overlap
from softlabels.domains import DOMAINS
from softlabels.start.disk import no_room


def check_first(config: BuildConfig, store: Path | None, report: Reporter) -> Sequence[Corpus]:
    """Open a build's corpora and read the first documents of each; look at where the store is to be.

    Args:
        store: its folder; None: it has none, but an address.

    Returns:
        the corpora, as the domain's row maker opens them.

    Raises:
        ConfigError: the store would lie among the files of its corpus.
        CorpusError: nothing matches, or one of the first documents cannot be read.
    """
    corpora: Sequence[Corpus] = DOMAINS.load(config.domain).maker.open(config)
    if store is None:
        return corpora
    refuse_overlap(corpora, config.corpus, store)
    if not (store / "plan.json").exists() and (said := no_room(config, corpora, store)):
        report.notice(said)
    return corpora
