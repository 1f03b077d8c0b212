"""`torch-export`: a `torch.export` program, which PyTorch runs without transformers or the model's code."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from softlabels.errors import ExportError
from trainers.exports.formats import Job, Runner, Written

if TYPE_CHECKING:
    from trainers.exports.domains import Arrays, Exported
    from trainers.exports.origin import Origin

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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch's own code about itself
            return torch.export.export(
                domain.module(job.model), (), kwargs=arguments, dynamic_shapes=free
            )
    except Exception as e:  # of any kind: it runs the model's own code
        raise ExportError(
            f"{job.folder}: PyTorch cannot trace this model ({type(e).__name__}: {str(e).splitlines()[0]}); "
            "--format safetensors needs no tracing"
        ) from e


class Program:
    """Written by `torch.export.save`."""

    name = "torch-export"
    rule = "log-probability"
    tolerance = 1e-3
    calibrates = False

    def write(self, job: Job, folder: Path) -> Written:
        """Trace and save."""
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(trace(job), folder / FILE)
        return Written(model=FILE, libraries=("torch", *job.origin.libraries))

    def load(self, folder: Path, *, domain: Exported | None, threads: int | None) -> Runner:
        """The inputs go in by name, in the order in which they were traced."""
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.export.load(folder / FILE).module()

        def run(inputs: Arrays) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
            with torch.inference_mode():
                out = module(**{name: torch.from_numpy(v) for name, v in inputs.items()})
            return np.asarray(out.numpy())

        return run

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
