"""What each process of an FSDP2 run holds of a student: parameters, optimiser state, and the process's peak memory.

    python -m tests.benchmarks.fsdp_memory --processes 1 2 4

Each run is `softtrain run --parallel fsdp` of two steps under torchrun over gloo (one process: without FSDP). After
the last step each rank adds up the bytes of its own pieces; the table has the rank that holds most.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from tests.fakes import build_tiny, write_corpus
from tests.students import llama
from trainers.run.config import RunConfig
from trainers.run.setup import train

MB = 1e6
STEPS = 2


def held(tensor: torch.Tensor) -> int:
    """Bytes of what is here of a tensor."""
    here = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return here.numel() * here.element_size()


def peak() -> int:
    """Bytes that this process has had at most."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024


def rank(spec: dict[str, Any]) -> None:
    """One process of a run."""
    number, seen = os.environ.get("RANK", "0"), {"libraries": peak()}
    step = torch.optim.AdamW.step

    def watched(optimizer: torch.optim.AdamW, *args: Any, **settings: Any) -> Any:
        result = step(optimizer, *args, **settings)
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        state = [t for p in weights for t in optimizer.state[p].values()]
        seen["parameters"] = sum(map(held, weights))
        seen["optimiser"] = sum(held(t) for t in state if isinstance(t, torch.Tensor))
        seen["peak"] = peak()
        return result

    torch.optim.AdamW.step = watched  # type: ignore[method-assign]
    train(RunConfig(**spec["config"]), Path(spec["run"]))
    Path(f"{spec['run']}.rank{number}").write_text(json.dumps(seen))


def measured(folder: Path, processes: int, config: dict[str, Any]) -> dict[str, Any]:
    """Of the rank that holds most."""
    run = folder / f"run-{processes}"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    if processes > 1:
        config = config | {"parallel": "fsdp"}
    spec = json.dumps({"config": config, "run": str(run)})
    subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), __file__, "--rank", spec],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    ranks = [json.loads(p.read_text()) for p in folder.glob(f"{run.name}.rank*")]
    assert len(ranks) == processes
    most = {name: max(r[name] for r in ranks) for name in ranks[0]}
    state = most["parameters"] + most["optimiser"]
    return {
        "processes": processes,
        "parameters_MB": round(most["parameters"] / MB, 1),
        "optimiser_MB": round(most["optimiser"] / MB, 1),
        "both_MB": round(state / MB, 1),
        "peak_MB": round(most["peak"] / MB),
        "of_which_libraries_MB": round(most["libraries"] / MB),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.fsdp_memory", description=__doc__
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is not None:
        rank(json.loads(args.rank))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_tiny(folder / "store", write_corpus(folder / "corpus"), temperature=(1.0, 2.0))
        (folder / "student.json").write_text(
            json.dumps(llama(layers=args.layers, width=args.width))
        )
        config = {
            "store": str(folder / "store"),
            "student": f"hf-config:{folder / 'student.json'}",
            "temperature": 2.0,
            "steps": STEPS,
            "batch_size": 4,
            "accumulate": 1,
            "dtype": "float32",
            "device": "cpu",
            "threads": 1,
        }
        rows = []
        for processes in args.processes:
            rows.append(measured(folder, processes, config))
            print(json.dumps(rows[-1]), flush=True)
    print("\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()
