"""`job.toml`, `heldout.toml` and `run.toml`: settings with their reasons, as people will edit them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from softlabels.start.presets import Chosen

HEAD = """# {command}
#
# Written by `softlabels init`. Every flag of `{program}` can stand here, under its own name with underscores; flags on
# the command line win. Paths are read from the folder in which the command is run.
"""


def toml(program: str, place: str, settings: Sequence[Chosen | None]) -> str:
    """A file of settings, each with its reason above it; None is an empty line.

    Args:
        program: that reads it, e.g. `softlabels build`.
        place: the file's own path.
    """
    lines = [HEAD.format(command=f"{program} {place}", program=program)]
    for setting in settings:
        if setting is None:
            lines.append("")
            continue
        if setting.why:
            lines.append(f"# {setting.why}")
        lines.append(f"{setting.key} = {_value(setting.value)}")
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    """As TOML has it: strings, numbers and lists of them are written as in JSON."""
    if isinstance(value, list) and len(value) > 3:
        return "[\n" + "".join(f"  {json.dumps(v, ensure_ascii=False)},\n" for v in value) + "]"
    if isinstance(value, float):
        return (
            f"{value:g}" if float(f"{value:g}") == value and value != round(value) else repr(value)
        )
    return json.dumps(value, ensure_ascii=False)
