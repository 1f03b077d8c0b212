"""How a store is read that is not read as it is: another vocabulary, inputs that lie elsewhere, images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from softlabels.core.views import VocabView
from softlabels.domains import DOMAINS
from softlabels.domains.image_classification.views import ImageViews
from softlabels.errors import ConfigError, PairingError
from softlabels.format.files import Address
from softlabels.format.identity import Identity
from softlabels.format.inputs import Inputs
from softlabels.format.pictures import open_views

if TYPE_CHECKING:
    from softlabels.store.reader import Store


class ReadAs(NamedTuple):
    """What a store is read through."""

    view: VocabView | None = None
    inputs: Inputs | None = None
    """Of a store without."""
    images: ImageViews | None = None

    @classmethod
    def asked(
        cls,
        path: Path | Address,
        identity: Identity,
        *,
        vocab: str | None,
        inputs: Callable[[], Store] | None,
        images: str | Sequence[str],
    ) -> ReadAs:
        """As `open_store` was asked for.

        Args:
            path: of the store, for messages.
            inputs: opens the store that holds them.

        Raises:
            ConfigError, CorpusError, PairingError: as `open_store`.
        """
        if vocab is not None and not DOMAINS.load(identity.domain).chained:
            raise ConfigError(
                f"--vocab {vocab}: another vocabulary is for causal LMs; {path} is of the domain {identity.domain}"
            )
        seen = vocab and VocabView.parse(vocab, identity.teacher.vocab_size)
        views = open_views(identity, images, where=path) if images else None
        held = None if inputs is None else _inputs(path, identity, inputs())
        return cls(seen or None, held, views)


AS_IT_IS = ReadAs()


def _inputs(path: Path | Address, ours: Identity, held: Store) -> Inputs:
    theirs = held.identity
    if ours.encoding.has_inputs:
        raise PairingError(f"{path}: holds its inputs itself; leave out --inputs {held.path}")
    if not theirs.encoding.has_inputs:
        raise PairingError(f"--inputs {held.path}: holds no inputs itself, only digests of them")
    if ours.tokenizer.sha256 != theirs.tokenizer.sha256:
        raise PairingError(
            f"--inputs {held.path}: its tokenizer (sha256 {theirs.tokenizer.sha256[:12]}…) is not that of {path} "
            f"(sha256 {ours.tokenizer.sha256[:12]}…), so its ids mean other tokens"
        )
    if ours.domain != theirs.domain:
        raise PairingError(
            f"--inputs {held.path}: is of the domain {theirs.domain}, {path} of {ours.domain}"
        )
    check = partial(DOMAINS.load(ours.domain).check, identity=ours)
    return Inputs(held.files, held.manifest, held.read_shard, check)
