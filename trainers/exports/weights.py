"""`safetensors`: the weights as the run saved them, in a folder that `from_pretrained` or `small_cnn.load` loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.exports.formats import Format, Job, Runner, Written, in_torch

if TYPE_CHECKING:
    from trainers.exports.domains import Exported, Origin


def weight_files(folder: Path) -> list[Path]:
    """The files of a saved model that hold weights, or say which file holds which."""
    return sorted(
        p for p in folder.iterdir() if p.name.endswith((".safetensors", ".safetensors.index.json"))
    )


def torch_runner(folder: Path, domain: Exported, threads: int | None) -> Runner:
    """The model of a folder in PyTorch, float32."""
    from trainers.data.tasks import Task
    from trainers.students import load_student

    model = load_student(folder, Task.saved(domain.name, folder)).model.eval()
    return in_torch(domain.module(model), threads)


class Safetensors(Format):
    """The run's own files, copied."""

    name = "safetensors"
    takes_adapters = True

    def write(self, job: Job, folder: Path) -> Written:
        """Copy."""
        for path in [*weight_files(job.folder), *job.origin.sources]:
            shutil.copyfile(path, folder / path.name)
        return Written(model=".", libraries=("torch", *job.origin.libraries))

    def load(self, folder: Path, *, domain: Exported | None, threads: int | None) -> Runner:
        """As the trainer does."""
        assert domain is not None
        return torch_runner(folder, domain, threads)

    def needs(self, origin: Origin) -> str:
        """As the model does."""
        return origin.needs

    def snippet(self, origin: Origin) -> str:
        """The model's own."""
        return origin.code


FORMAT = Safetensors()
