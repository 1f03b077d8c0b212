"""Matrix products of an ONNX graph in the one form that quantisers know: an activation times a constant, `MatMul`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def initializers(model: Any) -> dict[str, Any]:
    """The graph's constants by name."""
    return {i.name: i for i in model.graph.initializer}


def fold_transposes(model: Any) -> None:
    """Replace each transposed weight by a weight, for a quantiser only knows weights."""
    from onnx import helper, numpy_helper

    graph, known = model.graph, initializers(model)
    for node in [n for n in graph.node if n.op_type == "Transpose" and n.input[0] in known]:
        order = helper.get_node_attr_value(node, "perm")
        value = numpy_helper.to_array(known[node.input[0]]).transpose(order)
        graph.initializer.append(
            numpy_helper.from_array(np.ascontiguousarray(value), node.output[0])
        )
        graph.node.remove(node)
    drop_unused(model)


def split_gemms(model: Any) -> None:
    """Replace each A W + b, `Gemm` with a weight, by `MatMul` and `Add`: the dynamic quantiser leaves `Gemm` alone."""
    from onnx import helper, numpy_helper

    graph, known = model.graph, initializers(model)
    for node in [n for n in graph.node if n.op_type == "Gemm" and n.input[1] in known]:
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if settings.get("transA", 0) or {settings.get("alpha", 1.0), settings.get("beta", 1.0)} != {
            1.0
        }:
            continue
        weight, bias, out = node.input[1], node.input[2:3], node.output[0]
        if settings.get("transB", 0):
            value = np.ascontiguousarray(numpy_helper.to_array(known[weight]).T)
            weight = f"{out}_weight"
            graph.initializer.append(numpy_helper.from_array(value, weight))
        product = f"{out}_product" if bias else out
        new = [helper.make_node("MatMul", [node.input[0], weight], [product], name=f"{out}_matmul")]
        if bias:
            new.append(helper.make_node("Add", [product, bias[0]], [out]))
        replace_node(graph, node, new)
    drop_unused(model)


def products(model: Any, operators: Sequence[str]) -> list[str]:
    """Names of the nodes that multiply by a constant, which all get one."""
    weights = initializers(model)
    found = []
    for i, node in enumerate(model.graph.node):
        if node.op_type in operators and node.input[1] in weights:
            node.name = node.name or f"product_{i}"
            found.append(node.name)
    return found


def replace_node(graph: Any, node: Any, new: Sequence[Any]) -> None:
    """Put nodes in the place of one."""
    place = list(graph.node).index(node)
    graph.node.remove(node)
    for i, n in enumerate(new):
        graph.node.insert(place + i, n)


def quantised(array: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """`[C, ...]` float32 as int8 of the same shape and scales `[C, 1, ...]`."""
    scales = np.abs(array).max(axis=tuple(range(1, array.ndim)), keepdims=True) / 127
    values = np.rint(array / np.where(scales > 0, scales, 1)).astype(np.int8)
    return values, scales.astype(np.float32)


def drop_unused(model: Any) -> None:
    """Remove constants that no node uses."""
    used = {name for node in model.graph.node for name in node.input}
    used |= {o.name for o in model.graph.output}
    for i in [i for i in model.graph.initializer if i.name not in used]:
        model.graph.initializer.remove(i)
