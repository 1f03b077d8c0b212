"""What students, exports and a teacher cost to run on this CPU: size, memory, latency, throughput, side by side.

Each model runs in a process of its own, all in turn, `rounds` times, so that whatever else the machine does falls on
all of them. A teacher is a folder that transformers loads, as a student is.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from softlabels.core.own_process import own_environment, own_module
from softlabels.core.progress import Reporter
from softlabels.errors import ConfigError, RunError
from softlabels.store.reader import open_store
from trainers.data.tasks import Task, check_rows
from trainers.exports import FORMATS
from trainers.exports.domains import Example, Exported, exported, spread
from trainers.exports.formats import Job
from trainers.exports.latency_config import LatencyConfig
from trainers.exports.record import RECORD, read_export
from trainers.exports.weights import weight_files
from trainers.run.finished import open_finished

SINGLE, MANY = 8, 2
"""Examples at batch 1, and larger batches, that are gone round."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One thing to measure."""

    name: str
    engine: str
    """`torch` or `onnxruntime`."""
    format: str
    parameters: int
    model_bytes: int


@dataclass(frozen=True, kw_only=True)
class Figures(Subject):
    """What it costs."""

    peak_bytes: int
    """Most memory of the process up to the end of the calls at batch 1: libraries, model and all."""
    empty_bytes: int
    """Of that, before engine and model were loaded."""
    peak_bytes_of_batches: int
    p50: float
    """Of one call at batch 1, wall seconds."""
    p95: float
    cpu_p50: float
    """Likewise, CPU seconds of the process."""
    throughput: float
    """`unit` per wall second in larger batches, at the median."""
    cpu_throughput: float
    """Likewise, per CPU second of the process: what a busy machine blurs less."""
    unit: str
    """What the domain counts, e.g. `tokens`."""
    calls: int
    """At batch 1."""
    loading: float
    """Seconds, median of the rounds."""


def measure(subjects: Sequence[str], config: LatencyConfig, report: Reporter) -> list[Figures]:
    """Measure runs, exports and models.

    Args:
        subjects: folder of a run or of an export, or `hf:PATH`, a model's.
        config: on what, and how often.
        report: receives the progress.

    Raises:
        ConfigError: not a folder that can be measured.
        RunError: a run that has not finished; a process failed.
        IntegrityError: an export was altered.
    """
    size = config.batch_size
    report.stage("convert", None, "models")
    opened = open_store(config.store, vocab=config.vocab, images=config.images)
    check_rows(opened)
    name = opened.identity.domain
    domain = exported(name)
    examples = domain.examples(opened, spread(len(opened), max(SINGLE, MANY * size)))
    while len(examples) < size:
        examples = examples * 2
    single = [[examples[i]] for i in spread(len(examples), SINGLE)]
    many = [examples[i * size : (i + 1) * size] for i in range(min(MANY, len(examples) // size))]
    amount = float(np.mean([sum(map(domain.size, batch)) for batch in many]))
    with tempfile.TemporaryDirectory(prefix="softtrain-latency-") as scratch:
        work = Path(scratch)
        found = [
            s
            for spec in [*subjects, *([config.teacher] if config.teacher else [])]
            for s in _subjects(spec, config, domain, examples, work)
        ]
        report.stage("measure", len(found) * config.rounds, "processes")
        inputs = {
            "single": _write_inputs(work / "single.npz", domain, single),
            "many": _write_inputs(work / "many.npz", domain, many),
        }
        results: list[list[dict[str, Any]]] = [[] for _ in found]
        for _ in range(config.rounds):
            for (subject, folder), own in zip(found, results, strict=True):
                spec = {
                    **inputs,
                    "format": subject.format,
                    "folder": str(folder),
                    "domain": name if subject.format == "safetensors" else None,
                    "threads": config.threads,
                    "repeats": config.repeats,
                }
                own.append(_in_a_process(subject, spec, work))
                report.advance(1)
        return [
            _figures(subject, own, amount, domain.unit)
            for (subject, _), own in zip(found, results, strict=True)
        ]


def _subjects(
    spec: str, config: LatencyConfig, domain: Exported, examples: Sequence[Example], work: Path
) -> list[tuple[Subject, Path]]:
    """What is to be measured of a run, an export or a model, each with its folder."""
    kind, _, argument = spec.partition(":")
    path = Path(argument if kind == "hf" else spec)
    if kind != "hf" and (path / RECORD).is_file():
        record = read_export(path)
        subject = Subject(
            name=str(path),
            engine="onnxruntime" if record.kind.startswith("onnx") else "torch",
            format=record.kind,
            parameters=record.parameters,
            model_bytes=record.model_bytes,
        )
        return [(subject, path)]
    folder = path if kind == "hf" else open_finished(path, config.weights).folder
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{spec}: no config.json there; give a run, an export, or hf: and a model's folder"
        )
    return [_converted(spec, folder, e, domain, examples, work) for e in config.engine]


def _converted(
    spec: str, folder: Path, engine: str, domain: Exported, examples: Sequence[Example], work: Path
) -> tuple[Subject, Path]:
    from trainers.students import load_student

    model = load_student(folder, Task.saved(domain.name, folder)).model.eval()
    target, files = folder, weight_files(folder)
    if engine != "torch":
        target = Path(tempfile.mkdtemp(dir=work))
        samples = sorted(examples, key=domain.size)[-2:]
        job = Job(model=model, folder=folder, domain=domain, samples=samples)
        FORMATS.load("onnx").write(job, target)
        files = list(target.iterdir())
    subject = Subject(
        name=spec,
        engine=engine,
        format="safetensors" if engine == "torch" else "onnx",
        parameters=sum(p.numel() for p in model.parameters()),
        model_bytes=sum(p.stat().st_size for p in files),
    )
    return subject, target


def _write_inputs(path: Path, domain: Exported, batches: Sequence[Sequence[Example]]) -> str:
    arrays: dict[str, Any] = {
        f"{i}/{name}": v
        for i, batch in enumerate(batches)
        for name, v in domain.lay(batch).inputs.items()
    }
    np.savez(path, **arrays)
    return str(path)


def _in_a_process(subject: Subject, spec: dict[str, Any], work: Path) -> dict[str, Any]:
    path = work / "spec.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    threads = str(spec["threads"])
    done = subprocess.run(
        own_module("trainers.exports.latency_worker", path),
        capture_output=True,
        text=True,
        check=False,
        env=own_environment(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads),
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(
            f"{subject.name}: measuring it in {subject.engine} failed with exit code {done.returncode}: {last}"
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _figures(
    subject: Subject, rounds: Sequence[dict[str, Any]], amount: float, unit: str
) -> Figures:
    wall = np.concatenate([r["wall"] for r in rounds])
    p50, p95 = np.percentile(wall, [50, 95])
    batches = np.median(np.concatenate([r["batch_wall"] for r in rounds]))
    return Figures(
        **vars(subject),
        peak_bytes=max(r["peak_bytes"] for r in rounds),
        empty_bytes=max(r["empty_bytes"] for r in rounds),
        peak_bytes_of_batches=max(r["peak_bytes_of_batches"] for r in rounds),
        p50=float(p50),
        p95=float(p95),
        cpu_p50=float(np.median(np.concatenate([r["cpu"] for r in rounds]))),
        throughput=amount / float(batches),
        cpu_throughput=amount / float(np.median(np.concatenate([r["batch_cpu"] for r in rounds]))),
        unit=unit,
        calls=len(wall),
        loading=float(np.median([r["loading"] for r in rounds])),
    )
