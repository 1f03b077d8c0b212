"""`half`: the weights in half precision, for whoever has little room."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from trainers.exports.formats import Job, Runner, Written
from trainers.exports.weights import torch_runner, weight_files

if TYPE_CHECKING:
    from trainers.exports.domains import Exported, Origin


class Half:
    name = "half"
    rule = "log-probability"
    tolerance = 0.1
    calibrates = False

    def write(self, job: Job, folder: Path) -> Written:
        for path in weight_files(job.folder):
            halved = {n: t.half() for n, t in load_file(path).items()}
            save_file(halved, folder / path.name, metadata={"format": "pt"})
        return Written(model=".", libraries=("torch", *job.origin.libraries))

    def load(self, folder: Path, *, domain: Exported | None, threads: int | None) -> Runner:
        assert domain is not None
        return torch_runner(folder, domain, threads)

    def needs(self, origin: Origin) -> str:
        return origin.needs

    def snippet(self, origin: Origin) -> str:
        return origin.code


FORMAT = Half()
