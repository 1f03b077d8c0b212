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
from trainers.data.tasks import Task, check_pixels
from trainers.exports import FORMATS
from trainers.exports.domains import Arrays, Example, Exported, exported, spread
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
    format: str
    folder: Path
    parameters: int
    model_bytes: int


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What it costs."""

    name: str
    engine: str
    """`torch` or `onnxruntime`."""
    format: str
    parameters: int
    model_bytes: int
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
    batch_size = config.batch_size
    report.stage("convert", None, "models")
    opened = open_store(config.store, vocab=config.vocab, images=config.images)
    check_pixels(opened)
    name = opened.manifest.identity.domain
    domain = exported(name)
    examples = domain.examples(opened, spread(len(opened), max(SINGLE, MANY * batch_size)))
    while len(examples) < batch_size:
        examples = examples * 2
    with tempfile.TemporaryDirectory(prefix="softtrain-latency-") as scratch:
        work = Path(scratch)
        found = [
            s
            for spec in [*subjects, *([config.teacher] if config.teacher else [])]
            for s in _subjects(spec, config.engine, config.weights, domain, examples, work)
        ]
        report.stage("measure", len(found) * config.rounds, "processes")
        files = _write_inputs(work, domain, examples, batch_size)
        results: list[list[dict[str, Any]]] = [[] for _ in found]
        for _ in range(config.rounds):
            for subject, own in zip(found, results, strict=True):
                spec = {
                    **files,
                    "format": subject.format,
                    "folder": str(subject.folder),
                    "domain": name if subject.format == "safetensors" else None,
                    "threads": config.threads,
                    "repeats": config.repeats,
                }
                own.append(_in_a_process(subject, spec, work))
                report.advance(1)
        sizes = [
            sum(domain.size(e) for e in examples[i * batch_size : (i + 1) * batch_size])
            for i in range(_many(examples, batch_size))
        ]
        return [
            _figures(s, own, float(np.mean(sizes)), domain.unit)
            for s, own in zip(found, results, strict=True)
        ]


def _subjects(
    spec: str,
    engines: Sequence[str],
    weights: str,
    domain: Exported,
    examples: Sequence[Example],
    work: Path,
) -> list[Subject]:
    kind, _, argument = spec.partition(":")
    path = Path(argument if kind == "hf" else spec)
    if kind != "hf" and (path / RECORD).is_file():
        record = read_export(path)
        engine = "onnxruntime" if record.kind.startswith("onnx") else "torch"
        return [
            Subject(
                name=str(path),
                engine=engine,
                format=record.kind,
                folder=path,
                parameters=record.parameters,
                model_bytes=record.model_bytes,
            )
        ]
    folder = path if kind == "hf" else open_finished(path, weights).folder
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{spec}: no config.json there; give a run, an export, or hf: and a model's folder"
        )
    return [_converted(spec, folder, engine, domain, examples, work) for engine in engines]


def _converted(
    spec: str, folder: Path, engine: str, domain: Exported, examples: Sequence[Example], work: Path
) -> Subject:
    from trainers.students import load_student

    model = load_student(folder, Task.saved(domain.name, folder)).model.eval()
    parameters = sum(p.numel() for p in model.parameters())
    if engine == "torch":
        size = sum(p.stat().st_size for p in weight_files(folder))
        return Subject(
            name=spec,
            engine=engine,
            format="safetensors",
            folder=folder,
            parameters=parameters,
            model_bytes=size,
        )
    target = Path(tempfile.mkdtemp(dir=work))
    samples = sorted(examples, key=domain.size)[-2:]
    FORMATS.load("onnx").write(
        Job(
            model=model,
            folder=folder,
            domain=domain,
            origin=domain.origin(folder),
            samples=samples,
            calibration=(),
        ),
        target,
    )
    size = sum(p.stat().st_size for p in target.iterdir())
    return Subject(
        name=spec,
        engine=engine,
        format="onnx",
        folder=target,
        parameters=parameters,
        model_bytes=size,
    )


def _many(examples: Sequence[Example], batch_size: int) -> int:
    return min(MANY, len(examples) // batch_size)


def _write_inputs(
    work: Path, domain: Exported, examples: Sequence[Example], batch_size: int
) -> dict[str, str]:
    chosen = [examples[i] for i in spread(len(examples), SINGLE)]
    single = [domain.lay([e]).inputs for e in chosen]
    many = [
        domain.lay(examples[i * batch_size : (i + 1) * batch_size]).inputs
        for i in range(_many(examples, batch_size))
    ]
    return {
        name: str(_save(work / f"{name}.npz", v))
        for name, v in (("single", single), ("many", many))
    }


def _save(path: Path, batches: Sequence[Arrays]) -> Path:
    arrays: dict[str, Any] = {
        f"{i}/{name}": v for i, batch in enumerate(batches) for name, v in batch.items()
    }
    np.savez(path, **arrays)
    return path


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
        name=subject.name,
        engine=subject.engine,
        format=subject.format,
        parameters=subject.parameters,
        model_bytes=subject.model_bytes,
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
