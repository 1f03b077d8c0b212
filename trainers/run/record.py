"""JSON files of a run, and `run.json`, read: whoever made the folder may have put anything there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from softlabels.core.durable import replace
from softlabels.core.records import read_record_file
from softlabels.errors import ConfigError, RunError, StoreError, UnreadableError

RUN_RECORD = "run.json"
WEIGHTS = {
    "student": ("student", ""),
    "ema": ("student-ema", "--ema"),
    "best": ("best", "--heldout"),
}
"""Which weights of a run: the folder they are in, and the flag that makes it."""


def check_weights(name: str) -> None:
    """Refuse what is no key of `WEIGHTS`.

    Raises:
        ConfigError: names the flag.
    """
    if name not in WEIGHTS:
        raise ConfigError(f"--weights {name}: expected one of {', '.join(WEIGHTS)}")


def is_student(folder: Path) -> bool:
    """Whether a folder holds a saved student: the configuration of a model, or of an adapter."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def write_json(path: Path, value: Any) -> None:
    """Replace a file of a run, whose lock is held, whole or not at all, by JSON that every reader takes.

    Raises:
        StoreError: the disk is full, read-only, …
    """
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    replace(path, f"{text}\n".encode())


class _Struct(msgspec.Struct, frozen=True, kw_only=True):
    """What is listed must be of its type; other settings and facts are not looked at."""


class _Config(_Struct, frozen=True, kw_only=True):
    store: str | list[str]
    steps: int
    batch_size: int
    warmup: int | float | None = None
    vocab: str | None = None
    inputs: str | None = None
    images: list[str] = []
    heldout: str | None = None
    heldout_images: list[str] = []


class _View(_Struct, frozen=True, kw_only=True):
    spec: str
    vocab_size: int
    table_sha256: str | None


class _Length(_Struct, frozen=True, kw_only=True):
    warmup: int | None = None
    changes: list[dict[str, int]] = []


class _Init(_Struct, frozen=True, kw_only=True):
    run: str
    weights_sha256: str


class _Facts(_Struct, frozen=True, kw_only=True):
    config: _Config
    store_digest: str
    plan_digest: str | None = None
    tokenizer_sha256: str
    dtype: str
    parameters: int
    domain: str = "causal-lm"
    softlabels: str = ""
    torch: str = ""
    view: _View | None = None
    length: _Length = _Length()
    init: _Init | None = None
    trust: list[dict[str, Any]] = []


def read_run_record(run: Path) -> dict[str, Any]:
    """What a run recorded of itself, as plain values.

    Raises:
        RunError: it is not there, or not the record of a run.
        UnreadableError: it is there, and cannot be read now.
    """
    path = run / RUN_RECORD
    try:
        facts = json.loads(read_record_file(path))
        msgspec.convert(facts, _Facts)
    except UnreadableError:
        raise
    except (FileNotFoundError, NotADirectoryError) as e:
        raise RunError(
            f"{run}: not a run ({RUN_RECORD}: {e.strerror}); give a folder that `softtrain run --out` made"
        ) from e
    except (StoreError, ValueError, RecursionError) as e:
        raise RunError(
            f"{path}: not the record of a run ({e}); take another copy of the run"
        ) from e
    return dict(facts)


def is_of_plan(recorded: Mapping[str, Any]) -> bool:
    """Whether a run calls its store by the plan, since it has not seen it finished."""
    return bool(recorded["store_digest"] == recorded.get("plan_digest"))


def named_store(recorded: Mapping[str, Any]) -> dict[str, str]:
    """What tells others what a run was trained on: `store_digest`, or `plan_digest` where that alone is known."""
    if is_of_plan(recorded):
        return {"plan_digest": recorded["plan_digest"]}
    return {"store_digest": recorded["store_digest"]}
