"""What each process of `test_parallel.py` runs: a training run, with a fault on one rank if asked."""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

from softlabels.errors import SoftLabelsError
from trainers.run.config import RunConfig
from trainers.run.setup import train
from trainers.students import Student


def main() -> int:
    spec = json.loads(sys.argv[1])
    run = Path(spec["run"])
    rank = int(os.environ.get("RANK", "0"))
    run.with_name(f"{run.name}.pid{rank}").write_text(str(os.getpid()))
    fault = spec.get("fault", {})
    if fault.get("rank") == rank:
        body, calls = Student.hidden, 0

        def broken(self, batch):
            nonlocal calls
            calls += 1
            if calls == fault["call"]:
                if fault["kind"] == "nan":
                    return body(self, batch) * float("nan")
                raise MemoryError("no more")
            return body(self, batch)

        Student.hidden = broken
    try:
        train(RunConfig(**spec["config"]), run, resume=True)
    except SoftLabelsError as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        return e.exit_code
    except KeyboardInterrupt:
        return 130
    assert not dist.is_initialized()
    return 0


sys.exit(main())
