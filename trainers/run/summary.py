"""What a finished run came to, from its own files: for whoever reads the end of a log, and for machines."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softlabels.core.progress import duration
from softlabels.errors import RunError
from trainers.run.metrics import read_metrics
from trainers.run.record import read_run_record

HELDOUT = "heldout_nll"


def summary_of(run: Path) -> dict[str, Any]:
    """What was trained, how long, and where it ended.

    `loss`, `soft` and `hard` are of the last step's batch; `heldout` and `best`, in a run with --heldout, the last and
    the lowest evaluation, each `step`, `nll` and, where the store knows it, `kl`. What was not finite is None.

    Raises:
        RunError: not a finished run.
    """
    try:
        facts = read_run_record(run)
        records = read_metrics(run)
        last, config = records[-1], facts["config"]
        evaluated = [r for r in records if HELDOUT in r]
        found = {
            "run": str(run),
            "student": str(run / "student"),
            "parameters": facts["parameters"],
            "trained": facts.get("trained", facts["parameters"]),
            "steps": last["step"],
            "rows": last["step"] * config["batch_size"],
            "epochs": last["epoch"],
            **{name: last.get(name) for name in ("loss", "soft", "hard")},
        }
    except (OSError, ValueError, KeyError, IndexError, TypeError) as e:
        raise RunError(
            f"{run}: cannot be summed up, for run.json or metrics.jsonl there is damaged or gone ({e}); the student "
            f"in {run / 'student'} is not touched by that, and a copy put back is read again"
        ) from e
    if evaluated:
        known = [r for r in evaluated if r[HELDOUT] is not None]
        best = min(known, key=lambda r: r[HELDOUT], default=evaluated[-1])
        found |= {"heldout": _evaluation(evaluated[-1]), "best": _evaluation(best)}
    return found


def _evaluation(record: Mapping[str, Any]) -> dict[str, Any]:
    names = {"step": "step", "nll": HELDOUT, "kl": "heldout_kl"}
    return {short: record[name] for short, name in names.items() if name in record}


def summary_text(found: Mapping[str, Any], config: Mapping[str, Any], seconds: float) -> str:
    """The same for people, with the `seconds` that this command took, and what can be done next."""
    stores = config["store"] if isinstance(config["store"], list | tuple) else [config["store"]]
    begun = config["student"] if config.get("student") else f"from {config['init']}"
    whole = f"{found['parameters']:,}"
    trained = (
        whole if found["trained"] == found["parameters"] else f"{found['trained']:,} of {whole}"
    )
    lines = [
        f"student: {found['student']}",
        f"  trained   {trained} parameters ({begun}) on {', '.join(map(str, stores))}",
        f"  steps     {found['steps']:,} of {config['batch_size']} rows ({found['epochs']:.2f} epochs); "
        f"{duration(seconds)} in this command",
        f"  loss      {_number(found['loss'])} in the last step (soft {_number(found['soft'])}, hard "
        f"{_number(found['hard'])})",
    ]
    if "heldout" in found:
        now, best = found["heldout"], found["best"]
        lines.append(
            f"  held-out  {_number(now['nll'])} nats a label after step {now['step']:,}; lowest "
            f"{_number(best['nll'])} after step {best['step']:,}, kept in {found['run']}/best"
        )
    run, heldout = shlex.quote(found["run"]), config.get("heldout")
    return "\n".join(
        [
            *lines,
            "next:",
            f"  softtrain eval {run} --store {shlex.quote(heldout) if heldout else 'HELDOUT-STORE'}",
            f"  softtrain export {run} --format safetensors --out student",
            f"  softtrain report {run} --out report.html",
        ]
    )


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"
