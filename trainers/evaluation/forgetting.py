"""What a run costs the student elsewhere: its loss on other stores before the first step and after the last.

`forgetting.json` in the run's folder holds both. The first half is written before training, once: a run that goes on
keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from softlabels.errors import ConfigError, RunError
from softlabels.store.reader import Store
from softlabels.store.remote.cache import CacheOptions
from trainers.data.tasks import Task
from trainers.evaluation.evaluate import evaluate
from trainers.evaluation.evaluations import weights_digest
from trainers.evaluation.heldout import open_heldout
from trainers.run.record import write_json
from trainers.students import Student, load_student

FORGETTING = "forgetting.json"


def open_watched(
    paths: Sequence[str], store: Store, *, vocab: str | None, cache: CacheOptions | None = None
) -> list[tuple[str, Store]]:
    """Open the stores of `--forgetting`, each with its path.

    Raises:
        ConfigError: one is given twice.
        RunError: one is the store that is trained on.
        TokenizerError: one was tokenised otherwise.
    """
    opened = [
        (p, open_heldout(p, store, vocab=vocab, flag="--forgetting", cache=cache)) for p in paths
    ]
    digests = [s.digest for _, s in opened]
    for i, (path, _) in enumerate(opened):
        if digests[i] in digests[:i]:
            raise ConfigError(f"--forgetting {path}: is given twice")
    return opened


class Forgetting:
    """The two evaluations of each of the watched stores, which come with their paths."""

    def __init__(
        self,
        run: Path,
        watched: Sequence[tuple[str, Store]],
        device: torch.device,
        *,
        batch_size: int,
    ) -> None:
        self._run, self._watched = run, watched
        self._device, self._batch_size = str(device), batch_size

    def before(self, student: Student) -> None:
        """Evaluate a student that has not taken a step, unless that was done.

        Raises:
            RunError: it was done on other stores.
        """
        mine = [s.digest for _, s in self._watched]
        if known := read_forgetting(self._run):
            if [k["store_digest"] for k in known] != mine:
                raise RunError(
                    f"{self._run}: was begun with --forgetting on {len(known)} other stores; resume it with the "
                    "same, in "
                    "the same order"
                )
            return
        if (self._run / "checkpoints").is_dir():
            raise RunError(
                f"{self._run}: was begun without --forgetting, so nothing is known of the student before; resume it "
                "as it "
                "was begun"
            )
        self._write([{"before": self._of(student, s)} for _, s in self._watched])

    def after(self, folder: Path) -> list[str]:
        """Evaluate the finished student, unless that was done; returns a line for people about each store."""
        known, weights = read_forgetting(self._run), weights_digest(folder)
        if all("after" in k and k.get("weights_sha256") == weights for k in known):
            return []
        student = load_student(folder, Task.of(self._watched[0][1]))
        halves = [
            {"before": k["before"], "after": self._of(student, store), "weights_sha256": weights}
            for k, (_, store) in zip(known, self._watched, strict=True)
        ]
        self._write(halves)
        return [_line(path, h) for (path, _), h in zip(self._watched, halves, strict=True)]

    def _of(self, student: Student, store: Store) -> dict[str, Any]:
        found = evaluate(student, store, device=self._device, batch_size=self._batch_size)
        return {"nll": found.nll, "accuracy": found.accuracy, "kl": found.kl}

    def _write(self, halves: Sequence[dict[str, Any]]) -> None:
        facts = [
            {"store": path, "store_digest": store.digest, **half}
            for (path, store), half in zip(self._watched, halves, strict=True)
        ]
        write_json(self._run / FORGETTING, facts)


def _line(path: str, half: dict[str, Any]) -> str:
    a, b = half["before"], half["after"]
    change = b["nll"] - a["nll"]
    text = f"--forgetting {path}: loss {a['nll']:.4f} before, {b['nll']:.4f} after ({change:+.4f} nats a position)"
    return text if a["kl"] is None else f"{text}, KL {a['kl']:.4f} before, {b['kl']:.4f} after"


def read_forgetting(run: Path) -> list[dict[str, Any]]:
    """What `forgetting.json` says; nothing if the run has none.

    Raises:
        RunError: it cannot be read.
    """
    path = run / FORGETTING
    try:
        return list(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as e:
        raise RunError(f"{path}: cannot be read ({e}); choose another --out") from e
