"""A process that has imported everything and forks for each job: a case costs its work, not an interpreter's start.

It is started with the shim in LD_PRELOAD. It reads requests from its input, one JSON object a line, and answers each
with one when the jobs of the request, which run beside each other, have ended. It does no work itself: whatever starts
threads would not outlive a fork.
"""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tests.faults import trace

REPOSITORY = Path(__file__).parents[2]
LIMIT = 120.0
"""Seconds after which a job hangs."""


@dataclass(frozen=True)
class Ended:
    """A job that ran."""

    status: int
    """Exit code; minus the signal that killed it."""
    output: str
    calls: list[trace.Call]
    hung: bool
    functions: frozenset[str]
    """`FILE:FUNCTION` of each of ours that was called, if it was watched."""

    @property
    def fired(self) -> trace.Call | None:
        """The first call that went wrong."""
        return next((c for c in self.calls if c.fired), None)

    @property
    def refused(self) -> bool:
        """Whether it said in a sentence why it could not go on."""
        return any(line.lower().startswith("error:") for line in self.output.splitlines())

    def why(self) -> str:
        """For people."""
        end = "hung" if self.hung else f"exit {self.status}"
        return f"{end}: {self.output.strip()[-600:]}"


class Warm:
    """The other side: a warm process to send jobs to."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        scratch.mkdir(parents=True, exist_ok=True)
        one = dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1"
        )
        environment = (
            os.environ
            | one
            | {
                "LD_PRELOAD": str(trace.shim()),
                "PYTHONPATH": str(REPOSITORY),
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "NO_COLOR": "1",
            }
        )
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.faults.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=REPOSITORY,
            text=True,
        )

    def run(
        self,
        *jobs: tuple[str, Path, trace.Order],
        watched: bool = False,
        environment: Mapping[str, str],
    ) -> list[Ended]:
        """Run jobs beside each other, each `(name, root, order)`; returns how they ended.

        `watched`: note which of our functions are called, too.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        files = [self._scratch / f"{i}" for i in range(len(jobs))]
        for file in files:
            file.with_suffix(".log").unlink(missing_ok=True)
        request = [
            {
                "job": job,
                "root": str(root),
                "file": str(file),
                "order": [order.series, order.at, order.action, order.error, order.spared],
                "environment": dict(environment),
                "watched": watched,
            }
            for (job, root, order), file in zip(jobs, files, strict=True)
        ]
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the warm process died"
        return [
            Ended(
                status,
                file.with_suffix(".txt").read_text(encoding="utf-8", errors="replace"),
                trace.read_log(file.with_suffix(".log"), root),
                hung,
                frozenset(json.loads(file.with_suffix(".json").read_text()))
                if watched
                else frozenset(),
            )
            for (status, hung), file, (_, root, _) in zip(
                json.loads(answer), files, jobs, strict=True
            )
        ]

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


# -- inside ----------------------------------------------------------------------------------------------------------


OPTIONAL = (
    *(
        "softlabels.teachers.",
        "softlabels.integrations",
        "trainers.integrations",
        "trainers.exports.onnx",
        "trainers.exports.latency_worker",
    ),
    *("trainers.evaluation.hf", "softlabels.store.remote.hub"),
)
"""Modules of libraries that no job asks for, or that start threads."""


def _import_all() -> None:
    import importlib
    import pkgutil

    import pyarrow.parquet  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401
    import zarr  # noqa: F401
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401
    from transformers import PreTrainedTokenizerFast  # noqa: F401

    import softlabels
    import tests.faults.jobs
    import tests.faults.promises
    import trainers
    from softlabels.core.registry import Registry

    for package in (softlabels, trainers):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.startswith(OPTIONAL) and not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for registry in [o for o in gc.get_objects() if isinstance(o, Registry)]:
        registry.names()  # looks through all that is installed
    tests.faults.promises.note_promises()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # what all share is not looked at again: a child copies each page that it touches


def _child(request: dict[str, Any]) -> None:
    from tests.faults.jobs import JOBS

    file, root = Path(request["file"]), Path(request["root"])
    output = os.open(file.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0), encoding="utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0), encoding="utf-8", write_through=True)
    os.environ.update(request["environment"])
    os.chdir(root)
    series, at, action, error, spared = request["order"]
    trace.arm(
        root,
        file.with_suffix(".log"),
        trace.Order(trace.Series(series), at, trace.Action(action), error, spared),
    )
    called: set[str] = set()
    if request["watched"]:
        watch = _watch(called)
        threading.settrace(watch)
        sys.settrace(watch)
    status = 0
    try:
        JOBS[request["job"]]()
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 1
    except BaseException:  # as the interpreter would
        traceback.print_exc()
        status = 1
    if status == 0:
        trace.mark(root)
    sys.settrace(None)
    trace.disarm()
    if request["watched"]:
        file.with_suffix(".json").write_text(json.dumps(sorted(called)))
    os._exit(status)


def _watch(called: set[str]) -> Callable[[FrameType, str, object], None]:
    """A tracer that notes which of our functions are called; it asks for no lines, and hears of nothing else."""
    own = tuple(str(REPOSITORY / package) for package in ("softlabels", "trainers"))
    skip = len(str(REPOSITORY)) + 1

    def watch(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(own):
            called.add(f"{code.co_filename[skip:]}:{code.co_qualname}")

    return watch


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an import prints is no answer
    _import_all()
    for line in sys.stdin:
        pids = []
        for request in json.loads(line):
            pid = os.fork()
            if pid == 0:
                try:
                    _child(request)
                finally:
                    os._exit(70)
            pids.append(pid)
        answers.write(json.dumps([_wait(pid) for pid in pids]) + "\n")
        answers.flush()


def _wait(pid: int) -> tuple[int, bool]:
    end, hung = time.monotonic() + LIMIT, False
    pause = 0.001
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), hung
        if time.monotonic() > end:
            hung = True
            os.kill(pid, signal.SIGKILL)
        time.sleep(pause)
        pause = min(0.01, pause * 1.5)


if __name__ == "__main__":
    _serve()
