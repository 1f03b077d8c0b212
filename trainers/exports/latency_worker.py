"""The process in which one model is measured: nothing else is in its memory, and no PyTorch under ONNX Runtime.

`python -m trainers.exports.latency_worker SPEC.json` prints one JSON object.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainers.exports import FORMATS
from trainers.exports.formats import Runner


def peak_bytes() -> int:
    """The most memory that this process had resident.

    Linux's own count of it, where there is one: `getrusage` of a child begins with its parent's.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _timed(runner: Runner, inputs: dict[str, npt.NDArray[Any]]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    runner(inputs)
    return time.perf_counter() - wall, time.process_time() - cpu


def _batches(path: str) -> list[dict[str, npt.NDArray[Any]]]:
    """What `latency.py` wrote: `NUMBER/INPUT` to array."""
    found: dict[int, dict[str, npt.NDArray[Any]]] = {}
    with np.load(path) as arrays:
        for name in arrays.files:
            number, _, key = name.partition("/")
            found.setdefault(int(number), {})[key] = arrays[name]
    return [found[i] for i in sorted(found)]


def _measure(spec: dict[str, Any]) -> dict[str, Any]:
    single, many = _batches(spec["single"]), _batches(spec["many"])
    domain = None
    if spec["domain"] is not None:
        from trainers.exports.domains import exported

        domain = exported(spec["domain"])
    empty = peak_bytes()
    begin = time.perf_counter()
    runner = FORMATS.load(spec["format"]).load(
        Path(spec["folder"]), domain=domain, threads=spec["threads"]
    )
    loading = time.perf_counter() - begin
    for inputs in single[:2]:  # the first calls allocate
        runner(inputs)
    one = [_timed(runner, single[i % len(single)]) for i in range(spec["repeats"])]
    peak = peak_bytes()
    runner(many[0])
    batches = [_timed(runner, many[i % len(many)]) for i in range(max(1, spec["repeats"] // 8))]
    return {
        "loading": loading,
        "empty_bytes": empty,
        "peak_bytes": peak,
        "peak_bytes_of_batches": peak_bytes(),
        "wall": [w for w, _ in one],
        "cpu": [c for _, c in one],
        "batch_wall": [w for w, _ in batches],
        "batch_cpu": [c for _, c in batches],
        "torch": "torch" in sys.modules,
    }


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
