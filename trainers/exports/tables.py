"""Embedding tables of an ONNX graph in 8 bits, a scale for each row.

A quantiser of matrix products leaves the tables as they are, and they are most of a small language model. Where the
head is the transposed table (tied weights), the quantised head's columns are the table's rows, with their scales: then
one copy serves both. V rows of width D.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trainers.exports.products import drop_unused, initializers, quantised, replace_node

SMALLEST = 64
"""Rows: a smaller table is not worth it."""


def quantise_tables(model: Any, plain: Any) -> dict[str, str]:
    """Put the tables of a quantised model in 8 bits.

    Args:
        model: it, changed in place.
        plain: the float model that it was quantised from.

    Returns:
        Of each table, by name: `shared`, with the head, or `own`.
    """
    from onnx import numpy_helper

    floats = {
        name: numpy_helper.to_array(i)
        for name, i in initializers(plain).items()
        if i.data_type == 1 and len(i.dims) == 2
    }
    known = initializers(model)
    found: dict[str, str] = {}
    for gather in [n for n in model.graph.node if _is_lookup(n, known)]:
        table = gather.input[0]
        twin = next(
            (
                name
                for name, w in floats.items()
                if f"{name}_quantized" in known
                and f"{name}_scale" in known
                and len(known[f"{name}_scale"].dims) == 1
                and w.shape == floats[table].shape[::-1]
                and np.array_equal(w, floats[table].T)
            ),
            None,
        )
        if twin is not None:
            _replace(model, gather, f"{twin}_quantized", f"{twin}_scale", axis=1)
            found[table] = "shared"
        else:
            rows, scales = quantised(floats[table])
            names = f"{table}_rows", f"{table}_row_scales"
            for name, value in zip(names, (rows, scales[:, 0]), strict=True):
                if name not in known:
                    model.graph.initializer.append(numpy_helper.from_array(value, name))
            known = initializers(model)
            _replace(model, gather, *names, axis=0)
            found[table] = "own"
    drop_unused(model)
    return found


def _is_lookup(node: Any, known: dict[str, Any]) -> bool:
    table = known.get(node.input[0]) if node.op_type == "Gather" else None
    return (
        table is not None
        and table.data_type == 1
        and len(table.dims) == 2
        and table.dims[0] >= SMALLEST
        and all(a.i == 0 for a in node.attribute if a.name == "axis")
    )


def _replace(model: Any, gather: Any, values: str, scales: str, *, axis: int) -> None:
    """Ids `[...]` -> the rows, or with `axis` 1 columns, at them, times their scales: `[..., D]` float32."""
    from onnx import TensorProto, helper, numpy_helper

    ids, out = gather.input[1], gather.output[0]
    last = f"{out}_last_axis"
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), last))
    nodes = [helper.make_node("Gather", [values, ids], [f"{out}_int8"], axis=axis)]
    taken = f"{out}_int8"
    if axis == 1:  # [D, ...] -> [..., D]
        rank = 1 + _rank(model, ids)
        order = [*range(1, rank), 0]
        nodes.append(helper.make_node("Transpose", [taken], [f"{out}_turned"], perm=order))
        taken = f"{out}_turned"
    nodes += [
        helper.make_node("Cast", [taken], [f"{out}_float"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [scales, ids], [f"{out}_scale"], axis=0),
        helper.make_node("Unsqueeze", [f"{out}_scale", last], [f"{out}_scales"]),
        helper.make_node("Mul", [f"{out}_float", f"{out}_scales"], [out]),
    ]
    replace_node(model.graph, gather, nodes)


def _rank(model: Any, name: str) -> int:
    for value in [*model.graph.input, *model.graph.value_info]:
        if value.name == name:
            return len(value.type.tensor_type.shape.dim)
    raise AssertionError(f"{name}: its shape is not in the graph")
