"""What each choice in an int8 export costs in score: which products, how many bits, ranges measured or of the batch.

python tests/benchmarks/int8.py ONNX_EXPORT --store TRAINING_STORE --heldout HELDOUT_STORE

ONNX_EXPORT is a folder of `softtrain export --format onnx`. Sizes are without the embedding tables' int8, which no
choice here changes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnxruntime import quantization as q

from softlabels.store.reader import open_store
from trainers.exports.domains import exported, spread
from trainers.exports.onnx_float import FILE, ort_runner, quiet
from trainers.exports.onnx_int8 import _Reader
from trainers.exports.products import fold_transposes, products, split_gemms

LM = exported("causal-lm")


def score(path: Path, examples) -> tuple[float, float]:
    """Negative log-likelihood and accuracy over the labels of examples, each alone."""
    run = ort_runner(path, 1)
    nll, right = [], []
    for e in examples:
        z = run(LM.lay([e]).inputs)[0][e.labelled].astype(np.float64)
        top = z.max(axis=1, keepdims=True)
        lse = np.log(np.exp(z - top).sum(axis=1)) + top[:, 0]
        nll.append(lse - z[np.arange(len(z)), e.labels])
        right.append(z.argmax(axis=1) == e.labels)
    return float(np.concatenate(nll).mean()), float(np.concatenate(right).mean())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("export", type=Path)
    parser.add_argument("--store", required=True)
    parser.add_argument("--heldout", required=True)
    parser.add_argument("--rows", type=int, default=60)
    a = parser.parse_args()
    training, heldout = open_store(a.store), open_store(a.heldout)
    examples = LM.examples(heldout, spread(len(heldout), a.rows))
    calibration = LM.examples(training, spread(len(training), 32))
    nll, accuracy = score(a.export / FILE, examples)
    print(f"| float32 | {nll:.4f} | {accuracy:.4f} |")
    with tempfile.TemporaryDirectory() as scratch:
        plain, out = Path(scratch) / "plain.onnx", Path(scratch) / "int8.onnx"
        model = onnx.load(a.export / FILE)
        split_gemms(model)
        fold_transposes(model)
        weighted = products(model, ("MatMul",))
        every = [n.name for n in model.graph.node if n.op_type == "MatMul"]
        q.quant_utils.add_pre_process_metadata(model)
        onnx.save(model, plain)
        for name, static, nodes, seven in (
            ("dynamic, 8 bits of weights", False, weighted, False),
            ("dynamic, 7 bits (`onnx-int8`)", False, weighted, True),
            ("static, 8 bits", True, weighted, False),
            ("static, 7 bits (`onnx-int8-static`)", True, weighted, True),
            ("static, 7 bits, attention's products too", True, every, True),
            ("static, 8 bits, attention's products too", True, every, False),
        ):
            common = {
                "nodes_to_quantize": nodes,
                "op_types_to_quantize": ["MatMul"],
                "per_channel": True,
                "reduce_range": seven,
                "weight_type": q.QuantType.QInt8,
            }
            with quiet():
                if static:
                    q.quantize_static(
                        plain,
                        out,
                        _Reader(LM, calibration),
                        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
                        **common,
                    )
                else:
                    q.quantize_dynamic(plain, out, **common)
            n, c = score(out, examples)
            print(f"| {name} | {n / nll - 1:+.3%} | {c / accuracy - 1:+.3%} |", flush=True)


if __name__ == "__main__":
    main()
