"""`onnx-int8` and `onnx-int8-static`: weights and activations of the matrix products in 8 bits.

    onnx-int8         an activation's range is taken from the batch as it comes
    onnx-int8-static  from rows of the training store, once

What keeps the student's answers, measured in docs/benchmarks.md: a scale for each output column; seven bits of weights,
because products of eight can overflow in 16-bit sums on processors without VNNI, where answers would then differ;
products of two activations stay in float32, because attention's probabilities in steps of 1/255 cost 40 times as much
as all else; embedding tables in 8 bits too, and one table for input and head where the student has one (`tables.py`).
Kernels of convolutions are in 8 bits; `onnx-int8` computes with them in float32 (`convolutions.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlabels.errors import ConfigError
from trainers.exports.convolutions import quantise_kernels
from trainers.exports.formats import Job, Written
from trainers.exports.onnx_float import EXTERNAL, FILE, OnnxFloat, export_onnx, quiet, require
from trainers.exports.products import fold_transposes, products, split_gemms
from trainers.exports.tables import quantise_tables

if TYPE_CHECKING:
    from trainers.exports.domains import Arrays, Example, Exported

PRODUCTS = {False: ("MatMul",), True: ("MatMul", "Gemm", "Conv")}
"""Operators whose weights are quantised: dynamic, static. (Dynamic convolutions are slower than float ones.)"""
FLOAT_OUTPUTS = ("MatMul", "Gemm")
"""Of a static convolution the output is quantised, too: ONNX Runtime has no other in whole numbers."""


class OnnxInt8(OnnxFloat):
    """The float model, quantised by ONNX Runtime.

    Args:
        calibrates: measure ranges of activations on rows beforehand.
    """

    rule = "score"
    tolerance = 0.01

    def __init__(self, *, calibrates: bool) -> None:
        self.calibrates = calibrates
        self.name = "onnx-int8-static" if calibrates else "onnx-int8"

    def write(self, job: Job, folder: Path) -> Written:
        """Export in float32 into a folder that goes again, then quantise."""
        onnx, quantization = require("onnx"), require("onnxruntime.quantization")
        size = sum(p.numel() * p.element_size() for p in job.model.parameters())
        if size > EXTERNAL:
            raise ConfigError(
                f"--format {self.name}: the student has {size:,} bytes of float32 weights, at most {EXTERNAL:,} can be "
                "quantised here; export it with --format onnx"
            )
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-onnx-") as scratch:
            plain, quantised = Path(scratch) / "plain.onnx", Path(scratch) / "int8.onnx"
            export_onnx(job, plain)
            model = onnx.load(plain)
            split_gemms(model)
            fold_transposes(model)
            nodes = products(model, PRODUCTS[self.calibrates])
            quantization.quant_utils.add_pre_process_metadata(model)  # what it would do is done
            onnx.save(model, plain)
            options: dict[str, Any] = {
                "op_types_to_quantize": list(PRODUCTS[self.calibrates]),
                "nodes_to_quantize": nodes,
                "per_channel": True,
                "reduce_range": True,
                "weight_type": quantization.QuantType.QInt8,
            }
            with quiet():
                if self.calibrates:
                    quantization.quantize_static(
                        plain,
                        quantised,
                        _Reader(job.domain, job.calibration),
                        quant_format=quantization.QuantFormat.QDQ,
                        activation_type=quantization.QuantType.QUInt8,
                        extra_options={"OpTypesToExcludeOutputQuantization": list(FLOAT_OUTPUTS)},
                        **options,
                    )
                else:
                    quantization.quantize_dynamic(plain, quantised, **options)
            model = onnx.load(quantised)
            tables = quantise_tables(model, onnx.load(plain))
            kernels = 0 if self.calibrates else quantise_kernels(model)
            onnx.checker.check_model(model)
            onnx.save(model, folder / FILE)
        return self.written(
            job,
            products=len(nodes),
            weights="int8 in 7 bits, a scale for each output",
            activations=f"uint8, ranges {'measured beforehand' if self.calibrates else 'of each batch'}",
            tables=tables,
            calibration_examples=len(job.calibration),
            **({"convolutions_in_float32": kernels} if kernels else {}),
        )


class _Reader:
    """Calibration rows as ONNX Runtime asks for them: one example at a time, unpadded."""

    def __init__(self, domain: Exported, examples: Sequence[Example]) -> None:
        self._left = iter([domain.lay([e]).inputs for e in examples])

    def get_next(self) -> Arrays | None:
        return next(self._left, None)


DYNAMIC = OnnxInt8(calibrates=False)
STATIC = OnnxInt8(calibrates=True)
