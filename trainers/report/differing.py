"""The settings in which runs differ: what a table of them shows, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from softlabels.core.settings import flag_of
from trainers.report.entries import Entry, settings_of
from trainers.run.config import RunConfig

DEFAULTS = {f.name: f.default for f in fields(RunConfig) if f.default is not MISSING}
FACTS = {
    "store_digest": "digest of the store",
    "parameters": "parameters",
    "dtype": "computed in",
    "torch": "torch",
    "softlabels": "softlabels",
}
"""What a run records besides its settings."""


class Setting(NamedTuple):
    """A line of the table."""

    name: str
    values: list[str]
    """Of each entry."""


def differing(entries: Sequence[Entry]) -> list[Setting]:
    """The settings, by their flags, that are not the same in all entries; and the seeds, where an entry has several."""
    if len(entries) < 2 and not any(e.several for e in entries):
        return []
    records = [e.runs[0].record for e in entries]
    configs = [settings_of(record) for record in records]
    names = dict.fromkeys(name for config in configs for name in config if name != "seed")
    found = [
        Setting(flag_of(name), [_spelled(value) for value in values])
        for name in names
        if _differ(values := [c.get(name, DEFAULTS.get(name)) for c in configs])
    ]
    seeds = [sorted(settings_of(run.record).get("seed", 0) for run in e.runs) for e in entries]
    if len(entries) == 1 or _differ(seeds):
        found.append(Setting("--seed", [", ".join(map(str, s)) for s in seeds]))
    return found + [
        Setting(words, [_spelled(value)[:64] for value in values])
        for name, words in FACTS.items()
        if _differ(values := [record.get(name) for record in records])
    ]


def _differ(values: Sequence[Any]) -> bool:
    plain = [list(v) if isinstance(v, list | tuple) else v for v in values]
    return any(v != plain[0] for v in plain)


def _spelled(value: Any) -> str:
    """A setting as a person would write it."""
    if value is None or value == [] or value == ():
        return "not given"
    if isinstance(value, list | tuple):
        return ", ".join(_spelled(v) for v in value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
