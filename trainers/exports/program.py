"""`torch-export`: a `torch.export` program, which PyTorch runs without transformers or the model's code."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlabels.errors import ExportError
from trainers.exports.formats import Format, Job, Runner, Written, in_torch

if TYPE_CHECKING:
    from trainers.exports.domains import Exported, Origin

FILE = "model.pt2"


def trace(job: Job) -> Any:
    """The model as a `torch.export.ExportedProgram` whose free axes take any length from 1 on.

    Raises:
        ExportError: PyTorch cannot trace it.
    """
    import torch

    domain = job.domain
    laid = domain.lay(job.samples[:2])
    arguments = {name: torch.from_numpy(laid.inputs[name]) for name in domain.inputs}
    # AUTO, and not the names of `axes`: a name would demand that no length be special, while 1 is.
    free = {n: dict.fromkeys(domain.axes[n], torch.export.Dim.AUTO) for n in domain.inputs}
    try:
        with warnings.catch_warnings(action="ignore"):  # of PyTorch's own code about itself
            return torch.export.export(
                domain.module(job.model), (), kwargs=arguments, dynamic_shapes=free
            )
    except Exception as e:  # of any kind: it runs the model's own code
        raise ExportError(
            f"{job.folder}: PyTorch cannot trace this model ({type(e).__name__}: {str(e).splitlines()[0]}); "
            "--format safetensors needs no tracing"
        ) from e


class Program(Format):
    """Written by `torch.export.save`."""

    name = "torch-export"

    def write(self, job: Job, folder: Path) -> Written:
        """Trace and save."""
        import torch

        with warnings.catch_warnings(action="ignore"):
            torch.export.save(trace(job), folder / FILE)
        return Written(model=FILE, libraries=("torch", *job.origin.libraries))

    def load(self, folder: Path, *, domain: Exported | None, threads: int | None) -> Runner:
        """In PyTorch."""
        import torch

        with warnings.catch_warnings(action="ignore"):
            return in_torch(torch.export.load(folder / FILE).module(), threads)

    def needs(self, origin: Origin) -> str:
        """PyTorch alone."""
        return "torch"

    def snippet(self, origin: Origin) -> str:
        """PyTorch alone."""
        return (
            "import torch\n"
            f'model = torch.export.load("PATH/{FILE}").module()\n'
            "logits = model(**{k: torch.from_numpy(v) for k, v in inputs.items()}).detach().numpy()\n"
        )


FORMAT = Program()
