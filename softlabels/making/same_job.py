"""Whether two commands are the same job: what a plan says and what a command would plan, field by field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from softlabels.errors import PlanError
from softlabels.format.dictionaries import FOLDER
from softlabels.format.files import Address
from softlabels.format.identity import Identity
from softlabels.format.manifest import Plan
from softlabels.format.pages import Pages
from softlabels.format.shard_records import PlannedShard
from softlabels.making.plan import command_of

NAMES = ("teacher spec", "teacher name", "corpus specs")
"""Where files lie is not part of a job; what they hold is."""
OBSERVED = (
    *(*NAMES, "images images", "images software", "images replay"),
    *("encoding relative_error", "encoding absolute_error"),
)
"""What a command finds out, and does not choose."""
RAN_ON = (
    *(*NAMES, "teacher revision", "teacher device", "teacher engine", "teacher parameters"),
    *("tokenizer vocab_size", "tokenizer special_ids"),
)
"""What may differ between two stores of one teacher: where it ran, and what versions say of one and the same files."""
FOLLOWING = {
    *("corpus fingerprint", "corpus documents", "corpus rows", "corpus tokens"),
    *("corpus positions", "corpus skipped_empty", "corpus skipped_short", "corpus truncated"),
    *("encoding dictionary_shards", "dictionaries", "shards"),
}
"""What follows from the text and from the other fields."""
FLAGS: Mapping[str, str] = {
    "teacher": "--teacher",
    "teacher dtype": "--dtype",
    "teacher device": "--device",
    "tokenizer": "--teacher",
    "classes": "--teacher",
    "corpus": "--corpus",
    "corpus seq_len": "--seq-len",
    "corpus limit_rows": "--limit-rows",
    "label_shift": "--domain",
    "targets temperatures": "--temperature",
    "encoding dictionary_sha256": "--dictionary",
    "encoding dictionary_shards": "--dictionary",
    "masking share": "--mask-share",
    "masking targets": "--mask-targets",
    "hidden": "--hidden",
    "images size": "--image-size",
    "images mean": "--teacher",
    "images std": "--teacher",
}
"""The flag that decides a field, or all of a part, where it is not called like the field."""


class Difference(NamedTuple):
    """A field that two jobs do not have in common; None: it is not there."""

    field: str
    """Part and name, e.g. `targets k`."""
    first: Any
    second: Any

    @property
    def flag(self) -> str:
        """What decides it."""
        part, _, name = self.field.rpartition(" ")
        return FLAGS.get(self.field) or FLAGS.get(part) or f"--{name.replace('_', '-')}"


def differences(
    first: Identity, second: Identity, *, without: Iterable[str] = ()
) -> Iterator[Difference]:
    """The fields in which two identities differ: first what was chosen, then what follows from it.

    Args:
        without: fields, and whole parts, that are not compared.
    """
    return _differences(_fields(first), _fields(second), without)


def check_command(store: Path | Address | str, planned: Plan, command: str) -> None:
    """Refuse to go on with what another command began.

    Raises:
        PlanError: names it.
    """
    if (theirs := command_of(planned)) != command:
        raise PlanError(
            f"{store}: was begun by `softlabels {theirs}`; run that again, or choose another --out"
        )


def check_same_job(
    store: Path | Address | str, planned: Plan, asked: Plan, *, command: str
) -> None:
    """Refuse to go on with a plan that was made for another job.

    Args:
        planned: what is there.
        asked: what this command would plan.

    Raises:
        PlanError: names what differs, and the flag that decides it.
    """
    check_command(store, planned, command)
    ours, theirs = _of_plan(planned), _of_plan(asked)
    ours["shards"], theirs["shards"] = True, same_shards(planned.shards, asked.shards)
    for found in _differences(ours, theirs, OBSERVED):
        raise PlanError(f"{store}: {_sentence(store, found, command)}, or choose another --out")


def _sentence(store: Path | Address | str, found: Difference, command: str) -> str:
    field, first, second, flag = *found, found.flag
    if field.startswith("summary"):
        planned_with = "without" if first is None else "with"
        flag = f"--{'no-' if first is None else ''}position-summary"
        return f"was planned {planned_with} summaries of positions; run it with {flag}, as planned"
    if field.startswith("encoding dictionary") and second is None:
        return f"was planned with a dictionary, this {command} has --dictionary none; run it as planned"
    if field == "corpus fingerprint":
        return "was planned from another corpus; give all builders the same --corpus"
    if field in ("dictionaries", "shards"):
        return f"was planned with other {field}; repeat the command that began it, with the version that began it"
    if field == "sources":
        return (
            f"was planned from {first}, this {command} is from {second}; give it the same sources"
        )
    later = ""
    if field == "licence":
        later = f", and state it afterwards (`softlabels card {store} --licence …`)"
    return f"was planned with {field} = {first!r}, this {command} has {second!r} ({flag}); run it as planned{later}"


def _differences(
    a: Mapping[str, Any], b: Mapping[str, Any], without: Iterable[str]
) -> Iterator[Difference]:
    left_out = set(without)
    for field in sorted(dict.fromkeys([*a, *b]), key=FOLLOWING.__contains__):
        if left_out.isdisjoint((field, field.split()[0])) and a.get(field) != b.get(field):
            yield Difference(field, a.get(field), b.get(field))  # either may leave defaults out


def _fields(identity: Identity) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for part, value in msgspec.to_builtins(identity).items():
        parts = value.items() if isinstance(value, dict) else ()
        fields |= {f"{part} {name}": own for name, own in parts} or {part: value}
    return fields


def same_shards(a: Sequence[PlannedShard], b: Sequence[PlannedShard]) -> bool:
    """Whether shards are the same but for where their files lie, which plans of before do not say."""
    if isinstance(a, Pages) and a == b:
        return True
    return len(a) == len(b) and all(map(_same, a, b))


def _same(a: PlannedShard, b: PlannedShard) -> bool:
    return a == b or a == msgspec.structs.replace(b, source=a.source)


def _of_plan(plan: Plan) -> dict[str, Any]:
    """What its user chose, and where its rows come from; that decides all else."""
    fields = {**_fields(plan.identity), "shard_rows": plan.shard_rows}
    books = sorted(f.sha256 for name, f in plan.files.items() if name.startswith(f"{FOLDER}/"))
    fields["dictionaries"] = books
    if (made := plan.provenance) is None:
        return fields
    sources = [f"{s.name} ({s.rows:,} rows, {s.content_digest[:12]}…)" for s in made.sources]
    return {
        "sources": " and ".join(sources),
        **{f"parameters {name}": value for name, value in made.parameters.items()},
        **fields,
    }
