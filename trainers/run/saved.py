"""What was saved, compared with what is in memory: to the bit, whatever library wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softlabels.errors import IntegrityError, SoftLabelsError
from trainers.data.tasks import Task
from trainers.students import Student, load_student


def compare_saved(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read a safetensors file back, one tensor at a time, and compare it with what it was to hold, and no more.

    Raises:
        IntegrityError: it does not.
    """
    try:
        with safe_open(path, "pt") as file:
            there = set(file.keys())
            if there != set(tensors):
                raise _differs(path, min(there ^ set(tensors)))
            for name, tensor in tensors.items():
                if not same_bits(file.get_tensor(name), tensor):
                    raise _differs(path, name)
    except SafetensorError as e:
        raise IntegrityError(
            f"{path}: cannot be read back ({e}); check the disk, then run again"
        ) from e


def _differs(path: Path, name: str) -> IntegrityError:
    return IntegrityError(
        f"{path}: what was read back of {name} is not what was written; check the disk, then run again"
    )


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors, on whatever device, hold the same bytes in the same shape and dtype."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    x, y = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(x, y)


def student_tensors(student: Student, weights: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """What a student is to be saved as, by the model's own names: its present state, or other `weights`."""
    return student.saved_state(weights)


def holds_student(
    folder: Path, student: Student, task: Task, weights: dict[str, Tensor] | None
) -> bool:
    """Whether a folder holds a student as it is in memory, to the bit.

    Its files are read one tensor at a time. Where a library saved under other names than the model's own, the student
    is loaded back: as much memory again.
    """
    wanted = student_tensors(student, weights)
    missing = dict(wanted)
    renamed = False
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if name not in wanted:
                        renamed = True
                    elif not same_bits(file.get_tensor(name), missing.pop(name)):
                        return False
    except (SafetensorError, KeyError):
        return False
    found = [wanted[name] for name in wanted.keys() - missing.keys()]
    if not renamed and all(_is_tied(tensor, found) for tensor in missing.values()):
        return True
    return _loads_back(folder, task, wanted)


def _is_tied(tensor: Tensor, found: list[Tensor]) -> bool:
    """Whether a tensor that was not saved is one that was."""
    return any(
        other.shape == tensor.shape
        and (other.data_ptr() == tensor.data_ptr() or same_bits(other, tensor))
        for other in found
    )


def _loads_back(folder: Path, task: Task, wanted: Mapping[str, Tensor]) -> bool:
    try:
        again = load_student(folder, task).saved_state()
    except SoftLabelsError:
        return False
    return again.keys() == wanted.keys() and all(same_bits(again[n], wanted[n]) for n in wanted)
