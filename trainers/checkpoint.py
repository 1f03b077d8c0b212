"""Checkpoints: safetensors and JSON, published whole, enough to continue to the bit.

RUN/
run.json                    config, store digest, student, versions
metrics.jsonl               one line per logged step
tensorboard/
checkpoints/step-00000200/  model.safetensors, optimizer.safetensors, ema.safetensors (with --ema), state.json
student/                    the finished student: config.json, model.safetensors, tokenizer files
student-ema/                with --ema: likewise, its averaged weights
best/                       with --heldout: likewise, the best of the evaluations

Nothing in a checkpoint depends on how many processes made it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from softlabels.errors import RunError
from trainers.students import Student

if TYPE_CHECKING:
    from trainers.ema import Ema

__all__ = [
    "latest_checkpoint",
    "load_checkpoint",
    "publish_folder",
    "save_checkpoint",
    "write_json",
]

PREFIX = "step-"


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file, whole or not at all."""
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, sort_keys=True)
        f.write("\n")
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)


def publish_folder(temporary: Path, final: Path) -> None:
    """Make a filled folder appear under its final name, durably."""
    for path in temporary.iterdir():
        with path.open("rb") as f:
            os.fsync(f.fileno())
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    handle = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_checkpoint(
    run: Path,
    step: int,
    student: Student,
    optimizer: torch.optim.Optimizer,
    stream: Mapping[str, Any],
    *,
    keep_last: int,
    ema: Mapping[str, Tensor] | None = None,
    heldout: Mapping[str, Any] | None = None,
) -> Path:
    """Write `checkpoints/step-NNNNNNNN`, then remove those beyond the newest `keep_last`.

    Args:
        run: its folder.
        step: how many were taken.
        student: and its optimiser, after that step.
        optimizer: of the student's parameters.
        stream: state of the stream.
        keep_last: checkpoints to keep.
        ema: averaged weights by name.
        heldout: state of the evaluations.
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{PREFIX}{step:08d}"
    temporary = folder / f".tmp-{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_file(_untied(student), temporary / "model.safetensors")
    tensors = {}
    for name, state in _optimizer_state(student, optimizer):
        for key, value in state.items():
            tensors[f"{name}/{key}"] = value.contiguous()
    save_file(tensors, temporary / "optimizer.safetensors")
    if ema is not None:
        save_file({n: t.contiguous() for n, t in ema.items()}, temporary / "ema.safetensors")
    write_json(temporary / "state.json", {"step": step, "stream": stream, "heldout": heldout})
    publish_folder(temporary, final)
    for old in _checkpoints(run)[:-keep_last]:
        shutil.rmtree(old)
    return final


def _untied(student: Student) -> dict[str, Tensor]:
    """Parameters and buffers, each storage once (safetensors refuses shared ones)."""
    named = dict(student.named_parameters()) | dict(student.named_buffers())
    return {name: tensor.detach().contiguous() for name, tensor in named.items()}


def _optimizer_state(
    student: Student, optimizer: torch.optim.Optimizer
) -> list[tuple[str, dict[str, Tensor]]]:
    return [(n, optimizer.state[p]) for n, p in student.named_parameters() if p in optimizer.state]


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob(f"{PREFIX}*"))


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run; None before the first."""
    found = _checkpoints(run)
    return found[-1] if found else None


class Loaded(NamedTuple):
    """What a checkpoint says besides weights and optimiser."""

    step: int
    """After which it was made."""
    stream: dict[str, Any]
    """State of the stream."""
    heldout: dict[str, Any] | None
    """State of the evaluations; None without any."""


def load_checkpoint(
    folder: Path, student: Student, optimizer: torch.optim.Optimizer, ema: Ema | None = None
) -> Loaded:
    """Restore student, optimiser and averaged weights in place.

    Raises:
        RunError: a file is missing, damaged, or of another student.
    """
    try:
        model = load_file(folder / "model.safetensors")
        tensors = load_file(folder / "optimizer.safetensors")
        averaged = None if ema is None else load_file(folder / "ema.safetensors")
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        heldout = state.get("heldout")
        loaded = Loaded(
            int(state["step"]), dict(state["stream"]), None if heldout is None else dict(heldout)
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as e:
        raise RunError(
            f"{folder}: cannot be read ({e}); delete it to resume from the one before"
        ) from e
    own = dict(student.named_parameters()) | dict(student.named_buffers())
    _check_shapes(folder, model, own)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(model[name])
    if ema is not None and averaged is not None:
        _check_shapes(folder, averaged, ema.weights)
        ema.load(averaged)
    tensors.pop("rng", None)  # of checkpoints that were made before each step seeded its own
    parameters = dict(student.named_parameters())
    for key, value in tensors.items():
        name, _, what = key.rpartition("/")
        where = parameters[name].device if what != "step" else torch.device("cpu")
        optimizer.state[parameters[name]][what] = value.to(where)
    return loaded


def _check_shapes(folder: Path, found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    if set(own) != set(found) or any(own[n].shape != found[n].shape for n in own):
        raise RunError(f"{folder}: holds another student than the run's config makes")
