"""Checkpoints: safetensors and JSON, sealed and published whole, enough to continue to the bit.

RUN/
run.json                    config, store digest, student, versions
metrics.jsonl               one line per logged step
tensorboard/
checkpoints/step-00000200/  model.safetensors, optimizer.safetensors, ema.safetensors (with --ema), state.json
student/                    the finished student: config.json, model.safetensors, tokenizer files
student-ema/                with --ema: likewise, its averaged weights
best/                       with --heldout: likewise, the best of the evaluations

Each checkpoint and student holds `softlabels.json`, too: size and sha256 of its files. What was written is read back
and compared with the tensors in memory before older checkpoints go; a checkpoint whose bytes are others is passed over,
and said. Only folders named `step-` and digits are checkpoints.

Nothing in a checkpoint depends on how many processes made it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from softlabels.core.folder_record import check_folder, seal_folder
from softlabels.core.folders import filling, publish_folder, remove_folder
from softlabels.errors import FormatError, IntegrityError, RunError
from trainers.run.saved import compare_saved
from trainers.run.sharded import copy_into, whole
from trainers.students import Student

if TYPE_CHECKING:
    from trainers.run.ema import Ema

CHECKPOINTS = "checkpoints"
STATE = "state.json"
_NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,})")


Snapshot = dict[str, dict[str, Tensor]]
"""Whole tensors by name, of each file of a checkpoint.

`model` has `Student.learnt`, tied ones once; `optimizer` `PARAMETER/exp_avg` and so on; `ema` averaged weights.
"""


def take_snapshot(
    student: Student, optimizer: torch.optim.Optimizer, ema: Ema | None, *, keep: bool
) -> Snapshot:
    """What a checkpoint holds. Of a sharded student, every process must ask; those that `keep` it get it."""
    named = dict(student.named_parameters())
    state = {
        f"{name}/{key}": value
        for name, parameter in named.items()
        if parameter in optimizer.state
        for key, value in optimizer.state[parameter].items()
    }
    files = {"model": student.learnt(), "optimizer": state}
    if ema is not None:
        files["ema"] = ema.weights
    return {
        file: {name: whole(tensor, keep=keep) for name, tensor in tensors.items()}
        for file, tensors in files.items()
    }


def save_checkpoint(
    run: Path,
    step: int,
    snapshot: Snapshot,
    stream: Mapping[str, Any],
    *,
    keep_last: int,
    notice: Callable[[str], None],
    heldout: Mapping[str, Any] | None = None,
    unlogged: Mapping[str, float] | None = None,
) -> Path:
    """Write `checkpoints/step-NNNNNNNN`, read it back, then remove those before it beyond the newest `keep_last`.

    Args:
        heldout: the state of the evaluations.
        unlogged: of a step whose evaluation is still to come, what is to be logged beside it; JSON has no NaN, so null
            stands for what is not finite.

    Raises:
        StoreError: the disk is full, read-only, …
        IntegrityError: what was read back is not what was written.
    """
    final = run / CHECKPOINTS / f"step-{step:08d}"
    with filling(final) as temporary:
        for name, tensors in snapshot.items():
            path = temporary / f"{name}.safetensors"
            save_file({n: t.contiguous() for n, t in tensors.items()}, path)
            compare_saved(path, tensors)
        state = {"step": step, "stream": stream, "heldout": heldout}
        if unlogged is not None:
            finite = {n: v if math.isfinite(v) else None for n, v in unlogged.items()}
            state["unlogged"] = finite
        text = json.dumps(state, indent=2, sort_keys=True, allow_nan=False)
        (temporary / STATE).write_text(f"{text}\n", encoding="utf-8")
        seal_folder(temporary, kind="checkpoint", step=step)
        publish_folder(temporary, final, notice)
    before = [folder for at, folder in _checkpoints(run) if at <= step]
    for old in before[:-keep_last]:
        remove_folder(old, notice)
    return final


def _checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Those of a run, each with its step, oldest first."""
    folder = run / CHECKPOINTS
    paths = folder.iterdir() if folder.is_dir() else ()
    named = [(match, p) for p in paths if (match := _NAME.fullmatch(p.name)) and p.is_dir()]
    return sorted((int(match[1]), p) for match, p in named)


def newest_intact(run: Path, notice: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a run whose bytes are those that were written; None before the first.

    Raises:
        RunError: there are some, and none is intact.
        StoreError: a file cannot be read now.
    """
    damage = []
    for step, folder in reversed(_checkpoints(run)):
        try:
            sealed = _check(folder, step)
        except (IntegrityError, FormatError) as e:
            damage.append(str(e))
            continue
        for said in damage:
            notice(f"passed over a damaged checkpoint, for {folder.name}: {said}")
        if not sealed:
            notice(
                f"{folder}: was made by an earlier version, without digests; whether it is intact cannot be told"
            )
        return folder
    if damage:
        raise RunError(
            f"{run}: none of its {len(damage)} checkpoints is intact ({damage[0]}); put back a copy of one, or begin "
            "again in another --out"
        )
    return None


def _check(folder: Path, step: int) -> bool:
    """Compare a checkpoint with its record, or see that it can be read; returns whether it has a record.

    Raises:
        IntegrityError: it is damaged, or of another step than its name says.
    """
    try:
        record = check_folder(folder)
    except FileNotFoundError:
        record = None
    try:
        if record is None:
            for name in ("model", "optimizer"):
                with safe_open(folder / f"{name}.safetensors", "pt"):
                    pass  # its header is that of a file of this size
        holds = int(json.loads((folder / STATE).read_text(encoding="utf-8"))["step"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as e:
        raise IntegrityError(f"{folder}: cannot be read ({e})") from e
    if holds != step:
        raise IntegrityError(f"{folder}: holds the state after step {holds}; it was renamed")
    return record is not None


class Resumed(NamedTuple):
    """What a checkpoint says beside its tensors."""

    step: int
    """After which it was made."""
    stream: dict[str, Any]
    heldout: dict[str, Any] | None
    """State of the evaluations, if there are any."""
    unlogged: dict[str, float] | None
    """As of `save_checkpoint`."""


def load_checkpoint(
    folder: Path,
    student: Student,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None = None,
    *,
    checked: bool = True,
) -> Resumed:
    """Restore student, optimiser and averaged weights in place, from a checkpoint that `newest_intact` chose.

    Args:
        checked: False to compare its bytes with its record once more, as another process must that reads them itself.

    Raises:
        RunError: a file is missing, damaged, or of another student.
        IntegrityError: its bytes are not those that were written.
    """
    if not checked:
        with suppress(FileNotFoundError):  # one without a record
            check_folder(folder)
    try:
        model = load_file(folder / "model.safetensors")
        tensors = load_file(folder / "optimizer.safetensors")
        averaged = None if ema is None else load_file(folder / "ema.safetensors")
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        unlogged = state.get("unlogged")
        if unlogged is not None:
            unlogged = {n: math.nan if v is None else v + 0 for n, v in unlogged.items()}
        resumed = Resumed(int(state["step"]), dict(state["stream"]), state.get("heldout"), unlogged)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise RunError(
            f"{folder}: cannot be read ({e}); move it away to resume from the one before"
        ) from e
    own = student.learnt()
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
        if name not in parameters:
            raise RunError(f"{folder}: holds another student than the run's config makes")
        parameter = parameters[name]
        if what == "step":
            optimizer.state[parameter][what] = value
        else:
            moment = torch.zeros_like(parameter)
            copy_into(moment, value)
            optimizer.state[parameter][what] = moment
    return resumed


def _check_shapes(folder: Path, found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    if set(own) != set(found) or any(own[n].shape != found[n].shape for n in own):
        raise RunError(f"{folder}: holds another student than the run's config makes")
