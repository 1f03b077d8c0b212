"""`subset`: some rows of a store, fewer ids of each position, fewer temperatures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from softlabels.algebra.narrow import fewer_ids, fewer_temperatures, without_labels, without_targets
from softlabels.algebra.predicate import Choice, sample, where
from softlabels.algebra.recode import rounded_again, written_again
from softlabels.algebra.rewrite import rewrite, survey
from softlabels.algebra.sources import DIGEST_BYTES, open_source
from softlabels.algebra.subset_config import SubsetConfig
from softlabels.codecs import make_codec
from softlabels.core.progress import Reporter, Silent
from softlabels.domains import DOMAINS
from softlabels.errors import ConfigError, PairingError
from softlabels.format.identity import OPEN_TARGETS, EncodingRecord, Identity, TargetRecord
from softlabels.format.manifest import Manifest
from softlabels.format.shard import Shard
from softlabels.store.reader import Store


def subset(
    source: Path | str, config: SubsetConfig, out: Path | str, *, reporter: Reporter | None = None
) -> Manifest:
    """Write a part of a store as a store of its own.

    Raises:
        ConfigError: nothing stays; a condition that is none; a temperature or k that the store has not.
        PairingError: the targets are a sample, whose ids cannot be cut.
        PlanError: `out` holds something else.
        StoreError: the source is damaged; the disk is full, …
    """
    report, out = reporter or Silent(), Path(out)
    store = open_source(Path(source), out)
    identity = _identity(store, config)
    choose = _choice(config)
    found = survey(store, report, choose, most=config.first)
    narrow = config.k is not None or config.temperature or config.inputs_only or config.drop_inputs
    return rewrite(
        found,
        out,
        identity,
        "subset",
        config.parameters,
        report,
        change=partial(_narrowed, config) if narrow else None,
    )


def _narrowed(config: SubsetConfig, shard: Shard) -> Shard:
    if config.inputs_only:
        return without_targets(shard)
    shard = shard if config.k is None else fewer_ids(shard, config.k)
    shard = without_labels(shard) if config.drop_inputs else shard
    grid = sorted(set(config.temperature))
    return fewer_temperatures(shard, grid) if grid else shard


def _choice(config: SubsetConfig) -> Choice | None:
    """Which rows of a shard stay; None: all."""
    if config.where is None and config.sample is None and config.first is None:
        return None
    parts: list[Choice] = []
    if config.where is not None:
        parts.append(where(config.where))
    if config.sample is not None:
        parts.append(sample(config.sample, config.seed))

    def choose(shard: Shard) -> npt.NDArray[np.bool_]:
        chosen = np.ones(len(shard.rows), np.bool_)
        for part in parts:
            chosen &= part(shard)
        return chosen

    return choose


def _identity(store: Store, config: SubsetConfig) -> Identity:
    """The new store's, but for its corpus.

    Raises:
        ConfigError, PairingError: the store has not what is asked for.
    """
    identity = store.manifest.identity
    targets = identity.targets
    if config.k is not None:
        _check_k(store, config.k)
        targets = msgspec.structs.replace(targets, k=config.k)
    if config.temperature:
        targets = msgspec.structs.replace(targets, temperatures=_grid(store, config.temperature))
    if config.inputs_only:
        targets = msgspec.structs.replace(targets, positions="none")
    encoding = _encoding(identity)
    if config.drop_inputs:
        if DOMAINS.load(identity.domain).digest_bytes != DIGEST_BYTES:
            raise ConfigError(
                f"--drop-inputs: {store.path} is of the domain {identity.domain}, whose rows do not hold their "
                "whole digest"
            )
        if not encoding.plain:
            raise ConfigError(
                f"--drop-inputs: {store.path} is {encoding.profile}, and its targets are coded with their inputs; make "
                "it plain first: softlabels convert … --profile open --values float16"
            )
        encoding = msgspec.structs.replace(encoding, profile=OPEN_TARGETS)
    summary = None if config.inputs_only else identity.summary
    return msgspec.structs.replace(identity, targets=targets, encoding=encoding, summary=summary)


def _encoding(identity: Identity) -> EncodingRecord:
    """Columns and whole steps are written as they were read; floats in packed shards are rounded once more."""
    old = identity.encoding
    encoding = written_again(old)
    if old.dictionary_shards is not None:
        encoding = msgspec.structs.replace(encoding, dictionary_shards=0)
    if old.plain or not make_codec(old.values).plain:
        return encoding
    return rounded_again(encoding, sample=identity.targets.keeps.sample)


def _check_k(store: Store, k: int) -> None:
    targets: TargetRecord = store.manifest.identity.targets
    if not targets.keeps.largest:
        why = "keeps other ids than the likeliest" if targets.keeps.tail else "keeps all ids"
        why += ", and is not a top-k of them"
        if targets.keeps.sample:
            why = (
                "is a random sample: its weights are right on average over all its ids, and those of some of them, "
                "chosen for their size, are not"
            )
        raise PairingError(
            f"--k {k}: {store.path} is `{targets.estimator}`, which {why}; build a store with --k {k}"
        )
    if k >= targets.k:
        raise ConfigError(f"--k {k}: {store.path} keeps up to {targets.k} ids; expected fewer")
    if targets.min_k is not None and k < targets.min_k:
        raise ConfigError(
            f"--k {k}: {store.path} promises at least {targets.min_k} ids of each position (min_k)"
        )


def _grid(store: Store, temperatures: tuple[float, ...]) -> list[float]:
    targets = store.manifest.identity.targets
    grid = sorted(set(temperatures))
    for t in grid:
        if t not in targets.temperatures:
            known = ", ".join(f"{x:g}" for x in targets.temperatures)
            raise ConfigError(f"--temperature {t:g}: not in the grid of {store.path} ({known})")
    if not targets.keeps.sample and 1.0 not in grid:
        raise ConfigError(
            f"--temperature: 1 is missing; `{targets.estimator}` holds log-probabilities at T=1, so 1 stays in the grid"
        )
    return grid
