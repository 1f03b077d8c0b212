"""The folder of a run: what `run.json` records, whether a run may go on in it, and the students it leaves there."""

from __future__ import annotations

import json
import shutil
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from softlabels.errors import RunError
from softlabels.store.reader import Store
from trainers.checkpoint import publish_folder
from trainers.config import RunConfig
from trainers.students import Student
from trainers.trust import check_same_trust
from trainers.vocabulary import check_same_view, renumbers

__all__ = ["check_same_run", "publish_student", "read_run"]

FREE = frozenset(
    {
        "store",
        "key",
        "digest",
        "release",
        "init",
        "forgetting",
        "vocab",
        "log_every",
        "checkpoint_every",
        "keep_last",
        "heldout",
        "images",
        "heldout_images",
        "eval_every",
        "patience",
        "parallel",
        "threads",
        "cache",
        "cache_gib",
        "device",
        "dtype",
    }
)
"""What may change when a run goes on: where files lie, how often to log, save and evaluate, and on what to compute."""

DEFAULTS = {f.name: f.default for f in fields(RunConfig) if f.default is not MISSING}


def read_run(run: Path, *, resume: bool) -> dict[str, Any] | None:
    """What a run recorded; None in a folder where none was begun.

    Raises:
        RunError: there is a run and none is to be resumed, or the folder holds something else.
    """
    path = run / "run.json"
    if not path.exists():
        if run.is_dir() and any(run.iterdir()):
            raise RunError(f"{run}: is not empty and not a run; choose another --out")
        return None  # nothing to resume yet: a run killed before it began is begun
    if not resume:
        raise RunError(
            f"{run}: holds a run already; pass --resume to go on with it, or choose another --out"
        )
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise RunError(f"{path}: cannot be read ({e}); choose another --out") from e
    return dict(facts)


def check_same_run(recorded: dict[str, Any], facts: dict[str, Any], run: Path) -> None:
    """Refuse to go on with a run as another one; `FREE` may change.

    Raises:
        RunError: names what differs.
    """
    if recorded["store_digest"] != facts["store_digest"]:
        raise RunError(
            f"{run}: was begun on store {recorded['store_digest'][:12]}…, this is {facts['store_digest'][:12]}…"
        )
    check_same_trust(recorded, facts, run)
    check_same_view(recorded, facts, run)
    before, now = recorded.get("init"), facts.get("init")
    if (before or {}).get("weights_sha256") != (now or {}).get("weights_sha256"):
        raise RunError(
            f"{run}: was begun from {_origin(before)}, this would be from {_origin(now)}; resume it as it was begun"
        )
    if recorded["dtype"] != facts["dtype"]:
        raise RunError(
            f"{run}: was begun in {recorded['dtype']}, this would go on in {facts['dtype']}; "
            f"pass --dtype {recorded['dtype']}"
        )
    for name, value in facts["config"].items():
        before = recorded["config"].get(name, DEFAULTS.get(name))  # older runs lack newer fields
        if name not in FREE and before != value:
            raise RunError(
                f"{run}: was begun with {name} = {before!r}, this has {value!r}; resume it as it "
                "was begun, or choose another --out"
            )


def _origin(init: dict[str, Any] | None) -> str:
    if init is None:
        return "a student of its own"
    return f"the student of {init['run']} (sha256 {init['weights_sha256'][:12]}…)"


def publish_student(
    final: Path, student: Student, store: Store, weights: dict[str, Tensor] | None = None
) -> None:
    """Save a student (or it with other `weights`) with the store's tokenizer, whole or not at all."""
    temporary = final.with_name(f".tmp-{final.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    student.save(temporary, weights)
    for name in sorted(store.manifest.files):
        if name.startswith("tokenizer/") and not renumbers(store):
            (temporary / name.removeprefix("tokenizer/")).write_bytes(store.file(name))
    publish_folder(temporary, final)
