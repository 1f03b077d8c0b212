"""Many runs that differ in a few settings, on the same rows in the same order, and one table of what they came to.

Each run is a process and a folder of its own, so that one may fail, or all be killed, and the same sweep goes on. The
folder of the sweep holds nothing else: what a run is, its own record says.
"""

from __future__ import annotations

import re
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from softlabels.core.own_process import own_environment, own_module
from softlabels.core.progress import Reporter
from softlabels.core.settings import flag_of, flags_of, from_sources, read_toml
from softlabels.errors import ConfigError, RunError
from trainers.run.config import RunConfig
from trainers.run.folder import is_run
from trainers.run.summary import summary_of

VARY = "vary"
"""Table of a config file, and flag, that names what differs."""
STDERR = 2


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    name: str
    """Of its folder."""
    settings: Mapping[str, Any]
    """In which it differs from others."""
    config: RunConfig


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    member: Member
    summary: Mapping[str, Any] | None
    """As `summary_of`; None of one that failed."""


def read_vary(toml: Path | None, flags: Sequence[str]) -> dict[str, list[Any]]:
    """What is varied: `KEY=VALUE` flags, which win over the table `vary` of a config file, key by key.

    Raises:
        ConfigError: no such setting, a value that it cannot have, or nothing to vary.
    """
    written = {} if toml is None else read_toml(toml).get(VARY, {})
    if not isinstance(written, dict) or not all(isinstance(v, list) for v in written.values()):
        raise ConfigError(
            f"{toml}: key {VARY!r}: expected a table of lists, as in `lr = [1e-3, 2e-3]`"
        )
    given: dict[str, list[Any]] = {}
    for flag in flags:
        name, equals, text = flag.partition("=")
        name = name.replace("-", "_")
        if not equals:
            raise ConfigError(f"--vary {flag}: expected SETTING=VALUE, as in --vary lr=0.001")
        given.setdefault(name, []).append(_value(name, text))
    found = written | given
    if not found or not all(found.values()):
        raise ConfigError(
            "--vary is missing (or the table 'vary' in the config file): nothing differs"
        )
    for name, values in found.items():
        if name not in RunConfig.__dataclass_fields__:
            raise ConfigError(f"--vary {name}: is no setting of softtrain run")
        if len({str(v) for v in values}) < len(values):
            raise ConfigError(f"--vary {name}: has a value twice")
    return found


def _value(name: str, text: str) -> Any:
    hint = get_type_hints(RunConfig).get(name)
    if hint is None:
        raise ConfigError(f"--vary {name}: is no setting of softtrain run")
    try:
        return msgspec.convert(text, hint, strict=False)
    except msgspec.ValidationError as e:
        raise ConfigError(f"--vary {name}={text}: {str(e)[:1].lower()}{str(e)[1:]}") from None


def members_of(
    toml: Path | None, flags: Mapping[str, Any], vary: Mapping[str, Sequence[Any]]
) -> list[Member]:
    """A run for each combination of what is varied, the last setting first to change.

    Raises:
        ConfigError: one of them cannot be; there are no held-out rows to compare on; two have one name.
    """
    found: list[Member] = []
    for values in product(*vary.values()):
        settings = dict(zip(vary, values, strict=True))
        config = from_sources(
            RunConfig, toml, {**flags, **settings}, either=[("steps", "epochs")], aside=(VARY,)
        )
        found.append(Member(_name(settings), settings, config))
    if any(m.config.heldout is None for m in found):
        raise ConfigError("--heldout is missing: a sweep compares its runs on held-out rows")
    names = [m.name.lower() for m in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"--vary: two runs would both be kept in {name}; their values must differ in letters or digits"
            )
    return found


def _name(settings: Mapping[str, Any]) -> str:
    """Of a folder: letters, digits, and what stands between them."""
    parts = (f"{name}-{_short(value)}" for name, value in settings.items())
    return ",".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in parts)


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.rstrip("/").rpartition("/")[2] or text


def in_a_process(member: Member, out: Path) -> bool:
    """Train a member, or go on with it; whether it ended well. What it says goes where this process's words go."""
    words = flags_of(RunConfig, vars(member.config))
    command = own_module("trainers", "run", *words, "--out", out, "--resume")
    ended = subprocess.run(command, stdout=STDERR, check=False, env=own_environment())
    return ended.returncode == 0


def check_sweep(out: Path) -> None:
    """Refuse a folder that holds anything but runs.

    Raises:
        RunError: names what was found.
    """
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file; choose another --out")
    for path in sorted(out.iterdir()) if out.is_dir() else ():
        if not is_run(path):
            raise RunError(
                f"{out}: holds {path.name}, which is no run of a sweep; choose another --out"
            )


def sweep(
    members: Sequence[Member],
    out: Path,
    *,
    reporter: Reporter,
    run: Callable[[Member, Path], bool] = in_a_process,
) -> list[Outcome]:
    """Train each member in a folder of `out`, one after the other; what fails does not stop the others.

    Raises:
        RunError: `out` holds something else than runs.
    """
    check_sweep(out)
    found = []
    for i, member in enumerate(members):
        reporter.notice(f"run {i + 1} of {len(members)}: {member.name}")
        ended = run(member, out / member.name)
        found.append(Outcome(member, summary_of(out / member.name) if ended else None))
    return found


@dataclass(frozen=True)
class Entry:
    """One setting, over its seeds."""

    settings: Mapping[str, Any]
    """In which it differs, but for the seed."""
    runs: int
    failed: int
    parameters: int | None
    nll: tuple[float, ...]
    """Of each run's best evaluation, in nats a label."""
    kl: tuple[float, ...]
    """Likewise, where the held-out store knows it."""
    steps: tuple[int, ...]
    """After which these were."""


def entries_of(outcomes: Sequence[Outcome]) -> list[Entry]:
    """Runs that differ in their seed alone as one; the lowest held-out KL first, or loss where there is none."""
    groups: dict[tuple[tuple[str, str], ...], list[Outcome]] = {}
    for o in outcomes:
        key = tuple((n, str(v)) for n, v in o.member.settings.items() if n != "seed")
        groups.setdefault(key, []).append(o)
    found = []
    for key, runs in groups.items():
        done = [o.summary for o in runs if o.summary is not None]
        best = [s["best"] for s in done if s["best"].get("nll") is not None]
        found.append(
            Entry(
                settings=dict(key),
                runs=len(runs),
                failed=len(runs) - len(done),
                parameters=done[0]["parameters"] if done else None,
                nll=tuple(b["nll"] for b in best),
                kl=tuple(b["kl"] for b in best if b.get("kl") is not None),
                steps=tuple(b["step"] for b in best),
            )
        )
    by_kl = all(e.kl for e in found if e.nll)

    def worth(entry: Entry) -> tuple[bool, float]:
        values = entry.kl if by_kl else entry.nll
        return not values, statistics.mean(values) if values else 0.0

    return sorted(found, key=worth)


def rows_of(entries: Sequence[Entry]) -> list[list[str]]:
    """The table's cells: settings, parameters, held-out KL and loss with the deviation over seeds, step, runs."""
    return [
        [
            ", ".join(f"{flag_of(n)} {v}" for n, v in e.settings.items()) or "(the seed alone)",
            "-" if e.parameters is None else f"{e.parameters:,}",
            _spread(e.kl),
            _spread(e.nll),
            "-" if not e.steps else f"{statistics.mean(e.steps):,.0f}",
            f"{e.runs}" if not e.failed else f"{e.runs - e.failed} of {e.runs}",
        ]
        for e in entries
    ]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    sd = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{sd}"
