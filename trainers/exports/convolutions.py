"""Kernels of an ONNX graph's convolutions in 8 bits, a scale for each output channel; computed in float32.

The dynamic quantiser leaves convolutions alone, for their integer form is slower than the float one, and kernels are
most of a small network of images. ONNX Runtime multiplies them out once, when it opens the model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trainers.exports.products import drop_unused, initializers, quantised

SMALLEST = 256
"""Weights: a smaller kernel is not worth it."""


def quantise_kernels(model: Any) -> int:
    """Put the kernels of a model, changed in place, in 8 bits; returns how many."""
    from onnx import TensorProto, helper, numpy_helper

    graph, known = model.graph, initializers(model)
    names = {n.input[1] for n in graph.node if n.op_type == "Conv" and n.input[1] in known}
    kernels = {
        name: value
        for name in sorted(names)
        if (value := numpy_helper.to_array(known[name])).dtype == np.float32
        and value.size >= SMALLEST
    }
    nodes = []
    for name, kernel in kernels.items():
        values, scales = quantised(kernel)
        for suffix, array in (("int8", values), ("scales", scales)):
            graph.initializer.append(numpy_helper.from_array(array, f"{name}_{suffix}"))
        nodes += [
            helper.make_node("Cast", [f"{name}_int8"], [f"{name}_cast"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}_cast", f"{name}_scales"], [f"{name}_float"]),
        ]
    for node in graph.node:
        if node.op_type == "Conv" and node.input[1] in kernels:
            node.input[1] = f"{node.input[1]}_float"
    for i, node in enumerate(nodes):
        graph.node.insert(i, node)
    drop_unused(model)
    return len(kernels)
