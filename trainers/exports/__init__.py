"""What a student can be exported as: one file for each format.

A format is an object with the members of `Format` (`formats.py`) and a line in `FORMATS`. What it must know of a kind
of student is `Exported` (`domains.py`), which `trainers/domains/` implements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from softlabels.core.registry import Registry

if TYPE_CHECKING:
    from trainers.exports.formats import Format

FORMATS: Registry[Format] = Registry(
    "trainers.exports",
    {
        "safetensors": "trainers.exports.weights:FORMAT",
        "torch-export": "trainers.exports.program:FORMAT",
        "onnx": "trainers.exports.onnx_float:FORMAT",
        "onnx-int8": "trainers.exports.onnx_int8:DYNAMIC",
        "onnx-int8-static": "trainers.exports.onnx_int8:STATIC",
        "compressed-tensors": "trainers.exports.compressed:FORMAT",
    },
)
