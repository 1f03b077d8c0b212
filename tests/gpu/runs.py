"""Whole builds and runs, on the device and on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import softlabels
import trainers
from softlabels.store.reader import open_store
from tests.gpu.bench import Bench, Found
from tests.teachers.tiny import write_model, write_texts

SAME = 0.999
STEPS = 6


def build(bench: Bench) -> Found:
    """A build keeps on the device what it keeps on a CPU."""
    with tempfile.TemporaryDirectory() as name:
        ground = Path(name)
        stores = {d: _store(ground, d, "topk", 8) for d in ("cpu", bench.device.type)}
        one, two = (open_store(stores[d]) for d in ("cpu", bench.device.type))
        same = total = 0
        worst = 0.0
        for a, b in zip(one, two, strict=True):
            same += int((np.sort(a.targets.ids, 1) == np.sort(b.targets.ids, 1)).sum())
            total += a.targets.ids.size
            worst = max(worst, float(np.abs(a.targets.log_odds - b.targets.log_odds).max()))
    assert same / total >= SAME, f"{same} of {total} ids"
    assert worst <= 5e-3, f"log-odds {worst:.2g} apart"  # a float16 of a store is 2^-9 of a nat
    return {"same ids": same / total, "log-odds apart": worst, "ids": total}


def step(bench: Bench) -> Found:
    """Steps in bfloat16 from a sampled store: the loss falls, and is near that in float32."""
    with tempfile.TemporaryDirectory() as name:
        ground = Path(name)
        store = _store(ground, "cpu", "sampled", 6)
        found = {
            dtype: _run(ground, store, f"run-{dtype}", device=bench.device.type, dtype=dtype)
            for dtype in ("float32", "bfloat16")
        }
    full, half = found["float32"], found["bfloat16"]
    assert half[-1] < half[0], f"the loss does not fall: {half}"
    apart = max(abs(a - b) for a, b in zip(full, half, strict=True))
    assert apart < 0.1, f"{apart:.2g} nats between float32 and bfloat16"
    return {"float32": full, "bfloat16": half}


def fsdp(bench: Bench) -> Found:
    """One process of FSDP takes the steps of a run without it."""
    with tempfile.TemporaryDirectory() as name:
        ground = Path(name)
        store = _store(ground, "cpu", "topk", 8)
        settings = {"device": bench.device.type, "dtype": "float32"}
        alone = _run(ground, store, "alone", **settings)
        sharded = _sharded(ground, store, **settings)
    apart = max(abs(a - b) for a, b in zip(alone, sharded, strict=True))
    assert apart < 1e-4, f"losses {apart:.2g} apart"
    return {"apart": apart}


def _store(ground: Path, device: str, estimator: str, k: int) -> Path:
    out = ground / f"store-{device}-{estimator}"
    if not (ground / "model").exists():
        write_model(ground / "model")
        write_texts(ground / "texts")
    softlabels.build(
        teacher=f"hf:{ground / 'model'}",
        corpus=(f"text:{ground / 'texts'}/*.txt",),
        seq_len=48,
        dtype="float32",
        device=device,
        estimator=estimator,
        k=k,
        out=out,
    )
    return out


def _run(ground: Path, store: Path, name: str, **settings: Any) -> list[float]:
    """The losses of a run's steps."""
    trainers.train(**_settings(ground, store), **settings, out=ground / name)
    return _losses(ground / name)


def _sharded(ground: Path, store: Path, **settings: Any) -> list[float]:
    """Those of a run in a process of torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1"]
    command += ["-m", "trainers", "run", "--out", str(ground / "sharded")]
    for key, value in {**_settings(ground, store), **settings, "parallel": "fsdp"}.items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    return _losses(ground / "sharded")


def _settings(ground: Path, store: Path) -> dict[str, Any]:
    return {
        "store": str(store),
        "student": f"hf:{ground / 'model'}",
        "steps": STEPS,
        "batch_size": 4,
        "log_every": 1,
    }


def _losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    found = [values["loss"] for line in lines if "loss" in (values := json.loads(line))]
    assert len(found) == STEPS
    return found
