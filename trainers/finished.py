"""A finished run, as others use it: to sample from its student, or to go on from it with another store."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from softlabels.errors import RunError, TokenizerError
from softlabels.store.reader import Store
from trainers.evaluate import WEIGHTS
from trainers.vocabulary import check_numbering

__all__ = ["Finished", "finished_run", "provenance"]


class Finished(NamedTuple):
    """What a finished run left."""

    run: Path
    folder: Path
    """Of the student: weights, config and, unless the run renumbered the ids, the tokenizer."""
    facts: dict[str, Any]
    """Its `run.json`."""

    def digest(self) -> str:
        """sha256 over the student's weights, as stored."""
        total = hashlib.sha256()
        for path in sorted(self.folder.glob("*.safetensors")):
            with path.open("rb") as f:
                content = hashlib.file_digest(f, "sha256").hexdigest()
            total.update(f"{path.name}\0{content}\n".encode())
        return total.hexdigest()


def finished_run(run: Path, weights: str) -> Finished:
    """Find the student of a run.

    Args:
        run: its folder.
        weights: a key of `WEIGHTS`.

    Raises:
        RunError: not a run, not finished, or it has no such weights.
    """
    try:
        facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise RunError(
            f"{run}: not a run ({e}); give a folder that `softtrain run --out` made"
        ) from e
    if not (run / "student" / "config.json").is_file():
        raise RunError(f"{run}: the run has not finished; `softtrain run --resume` goes on with it")
    folder, flag = WEIGHTS[weights]
    if not (run / folder / "config.json").is_file():
        raise RunError(
            f"{run}: has no {folder}, for it was made without {flag}; use --weights student"
        )
    return Finished(run, run / folder, dict(facts))


def provenance(run: Path, store: Store) -> dict[str, Any]:
    """What a run that goes on from another's student records of it.

    Raises:
        RunError: not a finished run.
        TokenizerError: it was trained on another tokenizer's ids than the store's.
        PairingError: it numbered the ids otherwise.
    """
    finished = finished_run(run, "student")
    found, expected = finished.facts["tokenizer_sha256"], store.manifest.identity.tokenizer.sha256
    if found != expected:
        raise TokenizerError(
            f"--init {run}: was trained on ids of another tokenizer (sha256 {found[:12]}…) than that of {store.path} "
            "(sha256 "
            f"{expected[:12]}…), so the same id means another token; build a store with the same teacher's tokenizer"
        )
    check_numbering(finished.facts, store, run)
    return {
        "run": run.resolve().name,
        "weights_sha256": finished.digest(),
        "store_digest": finished.facts["store_digest"],
        "steps": finished.facts["config"]["steps"],
        "init": finished.facts.get("init"),
    }
