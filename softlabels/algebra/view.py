"""`view`: a store in another vocabulary, written down; `softlabels.core.views` says what it then means."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np

from softlabels.algebra.recode import rounded_again, written_again
from softlabels.algebra.rewrite import rewrite, survey
from softlabels.algebra.sources import files_of, open_source
from softlabels.core.progress import Reporter, Silent
from softlabels.core.records import canonical
from softlabels.core.views import Dropped, VocabView
from softlabels.domains import DOMAINS
from softlabels.errors import ConfigError
from softlabels.format.identity import Identity, TokenizerRecord
from softlabels.format.manifest import Manifest
from softlabels.store.read_as import ReadAs
from softlabels.store.reader import Store


def view(
    source: Path | str, vocab: str, out: Path | str, *, reporter: Reporter | None = None
) -> tuple[Manifest, Dropped]:
    """Write what a store is in another vocabulary.

    Args:
        vocab: `trim:N` or `map:FILE`.

    Returns:
        The manifest, and what mass of the kept ids was dropped.

    Raises:
        ConfigError: a view that does not fit the store.
        PairingError: a row holds an id that the view drops.
        PlanError: `out` holds something else.
        StoreError: the source is damaged; the disk is full, …
    """
    report, out = reporter or Silent(), Path(out)
    store = open_source(Path(source), out)
    domain = store.manifest.identity.domain
    if not DOMAINS.load(domain).chained:
        raise ConfigError(
            f"--vocab {vocab}: another vocabulary is for causal LMs; {store.path} is of the domain {domain}"
        )
    seen = VocabView.parse(vocab, store.vocab_size)
    store = Store(store.files, store.manifest, cached_shards=1, read_as=ReadAs(view=seen))
    found = survey(store, report, None)
    dropped = store.dropped
    assert dropped is not None, "a store has a shard"
    parameters = {"vocab": seen.spec}
    if seen.table_sha256 is not None:
        parameters["table_sha256"] = seen.table_sha256
    manifest = rewrite(
        found,
        out,
        _identity(store.manifest.identity, seen, emptied=dropped.emptied > 0),
        "view",
        parameters,
        report,
        files=files_of(store, "tokenizer") if seen.table is None else {},
    )
    return manifest, dropped


def _identity(old: Identity, seen: VocabView, *, emptied: bool) -> Identity:
    targets = old.targets
    if emptied and targets.positions is None:
        targets = msgspec.structs.replace(targets, positions=f"view:{seen.spec}")
    return msgspec.structs.replace(
        old,
        teacher=msgspec.structs.replace(old.teacher, vocab_size=seen.size),
        tokenizer=_tokenizer(old.tokenizer, seen),
        targets=msgspec.structs.replace(targets, k=min(targets.k, seen.size)),
        encoding=rounded_again(written_again(old.encoding), sample=targets.keeps.sample),
    )


def _tokenizer(old: TokenizerRecord, seen: VocabView) -> TokenizerRecord:
    """Where ids have other numbers, another tokenizer: one that is named by the old one and the table."""
    if seen.table_sha256 is None:
        return old
    named = canonical({"tokenizer": old.sha256, "table": seen.table_sha256})
    known = {name: i for name, i in old.special_ids.items() if i < seen.source_size}
    new = {name: int(seen.ids(np.array([i]))[0]) for name, i in known.items()}
    return TokenizerRecord(
        sha256=hashlib.sha256(named).hexdigest(),
        vocab_size=seen.size,
        special_ids={name: i for name, i in new.items() if i >= 0},
    )
