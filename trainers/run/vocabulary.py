"""What a run records of the vocabulary view that it reads its store in, and what the view dropped.

`run.json` holds the view's facts, which must be the same when the run goes on or is evaluated; `view.json`,
written when it ends, what the view dropped of the targets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softlabels.errors import PairingError, RunError
from softlabels.store.reader import Store
from trainers.run.record import write_json

VIEW = "view.json"


def view_facts(store: Store) -> dict[str, Any] | None:
    """What `run.json` says under `view`; None without one."""
    view = store.view
    if view is None:
        return None
    return {"spec": view.spec, "vocab_size": view.size, "table_sha256": view.table_sha256}


def check_same_view(recorded: Mapping[str, Any], facts: Mapping[str, Any], run: Path) -> None:
    """Refuse to go on with a run in another vocabulary; where a map's file lies, and its name, are free.

    Raises:
        RunError: names both.
    """
    before, now = recorded.get("view"), facts["view"]
    if _facts_without_name(before) != _facts_without_name(now):
        raise RunError(
            f"{run}: was begun with --vocab {_spelled(before)}, this has {_spelled(now)}, which is another vocabulary; "
            "resume it as it was begun, or choose another --out"
        )


def check_numbering(recorded: Mapping[str, Any], store: Store, run: Path) -> None:
    """Refuse to evaluate a run on ids that are numbered otherwise than those it was trained on.

    Raises:
        PairingError: names both.
    """
    before, now = recorded.get("view"), view_facts(store)
    if (before or {}).get("table_sha256") != (now or {}).get("table_sha256"):
        raise PairingError(
            f"{run}: was trained with --vocab {_spelled(before)}, this has {_spelled(now)}, which numbers the ids "
            "otherwise; evaluate with the run's own --vocab"
        )


def _facts_without_name(view: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (view or {}).items() if name != "spec"}


def _spelled(view: Mapping[str, Any] | None) -> str:
    if view is None:
        return "none"
    digest = view["table_sha256"]
    return f"{view['spec']} (sha256 {digest[:12]}…)" if digest else str(view["spec"])


def write_dropped(run: Path, store: Store) -> str | None:
    """Leave what the view dropped in `view.json`; returns a line for people, or None without a view.

    It is over the shards that were read since the run was begun or resumed; where none was, an earlier record stays.
    """
    if store.view is None:
        return None
    dropped = store.dropped
    if dropped is None:
        return f"--vocab {store.view.spec}: no shard was read since the run was resumed"
    write_json(run / VIEW, {"view": view_facts(store), "dropped": dropped.to_dict()})
    return f"--vocab {store.view.spec}: {dropped}"


def read_dropped(run: Path) -> dict[str, Any]:
    """What `view.json` says; nothing if the run has none."""
    try:
        return dict(json.loads((run / VIEW).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
