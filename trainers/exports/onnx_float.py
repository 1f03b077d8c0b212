"""`onnx`: the model in float32 for ONNX Runtime, any batch and length."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from softlabels.errors import ExportError, MissingExtraError
from trainers.exports.formats import Format, Job, Runner, Written

if TYPE_CHECKING:
    from trainers.exports.domains import Arrays, Exported, Origin

FILE = "model.onnx"
OPSET = 20
EXTERNAL = 1_500_000_000
"""Bytes of parameters from which on weights lie in a file beside the graph: a protobuf holds 2 GiB at most."""


def require(name: str) -> Any:
    """Import `onnx`, `onnxruntime` or `onnxscript`.

    Raises:
        MissingExtraError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as e:
        raise MissingExtraError(name.split(".")[0], "onnx", "an ONNX export") from e


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what exporter and quantiser say about themselves and about libraries that a student does not use."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def export_onnx(job: Job, path: Path) -> None:
    """Write the float32 model to a file."""
    for name in ("onnx", "onnxscript", "onnxruntime"):  # now, and not after minutes of work
        require(name)
    import torch
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    from trainers.exports.program import trace

    size = sum(p.numel() * p.element_size() for p in job.model.parameters())
    with quiet():
        traced = trace(job)
        try:
            program = torch.onnx.export(
                traced,
                (),
                input_names=list(job.domain.inputs),
                output_names=["logits"],
                opset_version=OPSET,
                dynamo=True,
                external_data=size > EXTERNAL,
                verbose=False,
            )
        except Exception as e:  # of any kind: each operator has its own
            raise ExportError(
                f"{job.folder}: PyTorch cannot translate this model to ONNX ({type(e).__name__}); --format safetensors "
                "and torch-export need no translation"
            ) from e
        assert program is not None
        _name_axes(program.model, job.domain)
        # The tracer's notes name paths of this machine, and are larger than a small model.
        ClearMetadataAndDocStringPass()(program.model)
        program.save(path, external_data=size > EXTERNAL)


def _name_axes(model: Any, domain: Exported) -> None:
    """Give the free axes the domain's names; the tracer's are numbers."""
    names = {}
    for value in model.graph.inputs:
        for axis, name in domain.axes[value.name].items():
            names[str(value.shape[axis])] = name
    for value in [*model.graph.inputs, *model.graph.outputs]:
        for axis, size in enumerate(value.shape):
            if str(size) in names:
                value.shape[axis] = names[str(size)]


def ort_runner(path: Path, threads: int | None) -> Runner:
    """A model in ONNX Runtime on the CPU, on as many threads as it likes if None are given. Needs no PyTorch."""
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Arrays) -> npt.NDArray[np.float32]:
        return np.asarray(session.run(["logits"], dict(inputs))[0])

    return run


class OnnxFloat(Format):
    """As it is, in float32."""

    name = "onnx"

    def write(self, job: Job, folder: Path) -> Written:
        """Trace and translate."""
        export_onnx(job, folder / FILE)
        return self.written(job)

    def written(self, job: Job, **details: Any) -> Written:
        """What was written, and what else decided it."""
        libraries = ("torch", *job.origin.libraries, "onnx", "onnxscript", "onnxruntime")
        return Written(model=FILE, opset=OPSET, details=details, libraries=libraries)

    def load(self, folder: Path, *, domain: Exported | None, threads: int | None) -> Runner:
        """In ONNX Runtime."""
        return ort_runner(folder / FILE, threads)

    def needs(self, origin: Origin) -> str:
        """ONNX Runtime alone."""
        return "onnxruntime"

    def snippet(self, origin: Origin) -> str:
        """ONNX Runtime alone."""
        return (
            "import onnxruntime\n"
            f'session = onnxruntime.InferenceSession("PATH/{FILE}")\n'
            'logits = session.run(["logits"], inputs)[0]\n'
        )


FORMAT = OnnxFloat()
