"""Rows that are not trained on: measured every so many steps, and when to stop because they no longer gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softlabels.errors import PairingError, RunError, TokenizerError
from softlabels.store.reader import Store, open_store
from softlabels.store.remote.cache import CacheOptions
from trainers.data.mixing import feed_of
from trainers.data.tasks import check_domain, check_rows


def open_heldout(
    path: str,
    store: Store,
    *,
    vocab: str | None,
    flag: str = "--heldout",
    images: Sequence[str] = (),
    cache: CacheOptions | None = None,
) -> Store:
    """Open the held-out store of a run, which `flag` named, and see that the run's student can be measured on it.

    Raises:
        RunError: it is the store that is trained on, or none of its rows has a label.
        TokenizerError: it was tokenised otherwise.
        PairingError: it is of another domain, vocabulary, list of classes or way to feed images.
    """
    heldout = open_store(path, vocab=vocab, images=images, cache=cache)
    check_rows(heldout, "--heldout-images")
    same = heldout.digest == store.digest
    if not store.finished:  # whose digest is its plan's: rows are known by the corpus
        same |= heldout.identity.corpus.fingerprint == store.identity.corpus.fingerprint
    if same:
        raise RunError(
            f"{flag} {path}: is the very store that is trained on, so it tells nothing of other text; build one of "
            "other text"
        )
    check_domain(heldout, store.identity.domain, of=store.path, where=f"{flag} {path}")
    mine, theirs = (s.identity.tokenizer.sha256 for s in (heldout, store))
    if mine != theirs:
        raise TokenizerError(
            f"{flag} {path}: its tokenizer (sha256 {mine[:12]}…) is not that of {store.path} (sha256 {theirs[:12]}…)"
            ", so the same id means another token; build it with the same teacher"
        )
    _check_same_answers(heldout, store, where=f"{flag} {path}")
    check_labelled(heldout, where=f"{flag} {path}")
    return heldout


def _check_same_answers(heldout: Store, store: Store, *, where: str) -> None:
    a, b = heldout.identity, store.identity
    for what, mine, other in (
        ("vocabulary", heldout.vocab_size, store.vocab_size),
        ("list of classes", a.classes, b.classes),
        ("label shift", a.label_shift, b.label_shift),
        ("way to feed images", feed_of(a), feed_of(b)),
    ):
        if mine != other:
            raise PairingError(
                f"{where}: its {what} is {mine!r}, that of {store.path} is {other!r}, so a student of one cannot be "
                "measured on the other; build it as that store was built"
            )


def check_labelled(store: Store, *, where: str) -> None:
    """Refuse to judge a student by rows of which nobody knows what is true.

    Raises:
        RunError: none has a label.
    """
    if store.unlabelled:
        raise RunError(
            f"{where}: none of its positions has a label to evaluate against; build a store of rows with labels"
        )


class HeldOut:
    """Evaluations of a run, and the best so far by cross-entropy with the labels (`nll`), which every store determines.

    Args:
        store: of held-out rows.
        patience: evaluations in a row without a new best after which the run stops; None never stops it.
    """

    def __init__(self, store: Store, *, patience: int | None) -> None:
        self.store = store
        self._patience = patience
        self.best: float | None = None
        """Lowest nll, nats; None before the first evaluation."""
        self.best_step = 0
        self.without_gain = 0
        """Evaluations since then."""

    @property
    def exhausted(self) -> bool:
        """Whether to stop."""
        return self._patience is not None and self.without_gain >= self._patience

    def record(self, step: int, nll: float) -> bool:
        """Take note of an evaluation after `step`; returns whether it is the best so far."""
        if self.best is None or nll < self.best:
            self.best, self.best_step, self.without_gain = nll, step, 0
            return True
        self.without_gain += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        """Plain data for `load_state_dict`."""
        return {
            "store": self.store.digest,
            "best": self.best,
            "best_step": self.best_step,
            "without_gain": self.without_gain,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, where: Path) -> None:
        """Go on from a checkpoint; one that counts no evaluation may be of another store, which could not be measured.

        Raises:
            RunError: it counted the evaluations on another store.
        """
        if state["best"] is not None and state["store"] != self.store.digest:
            raise RunError(
                f"{where}: was evaluated on store {state['store'][:12]}…, --heldout {self.store.path} is "
                f"{self.store.digest[:12]}…; resume with the same rows"
            )
        self.best = state["best"]
        self.best_step, self.without_gain = int(state["best_step"]), int(state["without_gain"])
