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
from trainers.shards import copy_into, whole
from trainers.students import Student

if TYPE_CHECKING:
    from trainers.ema import Ema

__all__ = [
    "latest_checkpoint",
    "load_checkpoint",
    "publish_folder",
    "save_checkpoint",
    "take_snapshot",
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


class Snapshot(NamedTuple):
    """Whole tensors by name: the files of a checkpoint."""

    model: dict[str, Tensor]
    """Parameters and buffers, tied ones once."""
    optimizer: dict[str, Tensor]
    """`PARAMETER/exp_avg` and so on."""
    ema: dict[str, Tensor] | None
    """Averaged weights; None without any."""


def take_snapshot(
    student: Student, optimizer: torch.optim.Optimizer, ema: Ema | None, *, keep: bool
) -> Snapshot:
    """What a checkpoint holds. Of a dealt-out student, every process must ask; those that `keep` it get it."""

    def all_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: whole(tensor, keep=keep) for name, tensor in tensors.items()}

    named = dict(student.named_parameters())
    state = {
        f"{name}/{key}": value
        for name, parameter in named.items()
        if parameter in optimizer.state
        for key, value in optimizer.state[parameter].items()
    }
    return Snapshot(
        all_of({**named, **dict(student.named_buffers())}),
        all_of(state),
        None if ema is None else all_of(ema.weights),
    )


def save_checkpoint(
    run: Path,
    step: int,
    snapshot: Snapshot,
    stream: Mapping[str, Any],
    *,
    keep_last: int,
    heldout: Mapping[str, Any] | None = None,
) -> Path:
    """Write `checkpoints/step-NNNNNNNN`, then remove those beyond the newest `keep_last`.

    Args:
        run: its folder.
        step: how many were taken.
        snapshot: of the student after that step.
        stream: state of the stream.
        keep_last: checkpoints to keep.
        heldout: state of the evaluations.
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{PREFIX}{step:08d}"
    temporary = folder / f".tmp-{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for name, tensors in snapshot._asdict().items():
        if tensors is not None:
            contiguous = {n: t.contiguous() for n, t in tensors.items()}
            save_file(contiguous, temporary / f"{name}.safetensors")
    write_json(temporary / "state.json", {"step": step, "stream": stream, "heldout": heldout})
    publish_folder(temporary, final)
    for old in _checkpoints(run)[:-keep_last]:
        shutil.rmtree(old)
    return final


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
            copy_into(tensor, model[name])
    if ema is not None and averaged is not None:
        _check_shapes(folder, averaged, ema.weights)
        ema.load(averaged)
    tensors.pop("rng", None)  # of checkpoints that were made before each step seeded its own
    parameters = dict(student.named_parameters())
    for key, value in tensors.items():
        name, _, what = key.rpartition("/")
        parameter = parameters[name]
        if what == "step":
            optimizer.state[parameter][what] = value
        else:
            moment = torch.zeros_like(parameter)
            copy_into(moment, value)
            optimizer.state[parameter][what] = moment
    return loaded


def _check_shapes(folder: Path, found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    if set(own) != set(found) or any(own[n].shape != found[n].shape for n in own):
        raise RunError(f"{folder}: holds another student than the run's config makes")
