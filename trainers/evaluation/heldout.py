"""Rows that are not trained on: measured every so many steps, and when to stop because they no longer gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softlabels.errors import RunError, TokenizerError
from softlabels.store.reader import Store, open_store
from softlabels.store.remote.cache import CacheOptions
from trainers.data.tasks import check_rows


def open_heldout(
    path: str,
    store: Store,
    *,
    vocab: str | None,
    flag: str = "--heldout",
    images: Sequence[str] = (),
    cache: CacheOptions | None = None,
) -> Store:
    """Open the held-out store of a run, which `flag` named.

    Raises:
        RunError: it is the store that is trained on.
        TokenizerError: it was tokenised otherwise.
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
    mine, theirs = (s.identity.tokenizer.sha256 for s in (heldout, store))
    if mine != theirs:
        raise TokenizerError(
            f"{flag} {path}: its tokenizer (sha256 {mine[:12]}…) is not that of {store.path} (sha256 {theirs[:12]}…)"
            ", so the same id means another token; build it with the same teacher"
        )
    return heldout


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
        """Go on from a checkpoint.

        Raises:
            RunError: it counted the evaluations on another store.
        """
        if state["store"] != self.store.digest:
            raise RunError(
                f"{where}: was evaluated on store {state['store'][:12]}…, --heldout {self.store.path} is "
                f"{self.store.digest[:12]}…; resume with the same rows"
            )
        self.best = state["best"]
        self.best_step, self.without_gain = int(state["best_step"]), int(state["without_gain"])
