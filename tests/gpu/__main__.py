"""Every path of this project that a GPU takes, checked and measured, in at most eight minutes.

    python -m tests.gpu --json gpu.json
    python -m tests.gpu --json gpu.json --device cpu --small      # the same code, small: what the test suite runs

Each piece compares with the CPU, or with what it replaces, and says what it found; the JSON is written after each, so
that a machine which is taken away leaves what was done. Exit 1 if a check failed. Needs the extras `hf` and, to be
compared, `liger`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from tests.gpu import kernels, losses, runs
from tests.gpu.bench import Bench, Found

PIECES: dict[str, Callable[[Bench], Found]] = {
    "not finite": kernels.not_finite,
    "selection": kernels.selection,
    "head": kernels.head,
    "loss": losses.loss,
    "build": runs.build,
    "step": runs.step,
    "fsdp": runs.fsdp,
}
"""The checks that are over in seconds come first."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    parser.add_argument("--minutes", type=float, default=8, help="begin no piece after these")
    parser.add_argument("--pieces", nargs="+", choices=list(PIECES), default=list(PIECES))
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    bench = Bench(torch.device(args.device), small=args.small)
    about = {"device": bench.name, "torch": torch.__version__, "small": args.small}
    begin, found, failed = time.monotonic(), {}, []
    for name in args.pieces:
        if time.monotonic() - begin > 60 * args.minutes:
            found[name] = {"left out": "no time was left"}
            continue
        start = time.monotonic()
        try:
            found[name] = PIECES[name](bench)
        except Exception as e:
            traceback.print_exc()
            failed.append(name)
            found[name] = {"failed": f"{type(e).__name__}: {e}"}
        found[name]["seconds"] = round(time.monotonic() - start, 1)
        print(f"{name}: {json.dumps(found[name])}", flush=True)
        args.json.write_text(json.dumps({**about, "pieces": found}, indent=1) + "\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
