"""What a run on text that its student wrote is given: each token's log-probability, by the teacher that taught it."""

from __future__ import annotations

from pathlib import Path

from softlabels.errors import PairingError
from softlabels.store.reader import Store
from trainers.loss.settings import SAMPLED
from trainers.run.finished import open_finished


def check_written(store: Store) -> None:
    """Refuse a store that lacks what the loss reads.

    Raises:
        PairingError: no summary of positions, or another vocabulary than the teacher's.
    """
    if store.identity.summary is None:
        raise PairingError(
            f"{store.path}: holds no summary of its positions, from which --loss {SAMPLED} reads the teacher's "
            "log-probability of each token; build it without --no-position-summary"
        )
    if store.view is not None:
        raise PairingError(
            f"--loss {SAMPLED} reads log-probabilities over the teacher's whole vocabulary; leave out --vocab "
            f"{store.view.spec}"
        )


def check_same_teacher(run: Path, store: Store) -> None:
    """Refuse a store of another teacher than the one that taught a run's student.

    Raises:
        RunError: not a finished run.
        ConfigError: an earlier version's run, whose stores are not where they lay.
        PairingError: the store's teacher is another.
    """
    finished = open_finished(run)
    taught = finished.facts.get("teachers")
    if taught is None:
        stores = finished.training_stores(rows=False)
        taught = [s.identity.teacher.weights_sha256 for s in stores]
    teacher = store.identity.teacher
    if teacher.weights_sha256 not in taught:
        raise PairingError(
            f"{store.path}: was scored by {teacher.name} (weights sha256 {teacher.weights_sha256[:12]}…), and the "
            f"student of {run} was taught by another teacher ({', '.join(f'{t[:12]}…' for t in taught)}); have its "
            "text scored by the teacher that taught it"
        )
