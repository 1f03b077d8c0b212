"""JSON files of a run: replaced whole or not at all, and JSON to every reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from softlabels.core.durable import replace


def write_json(path: Path, value: Any) -> None:
    """Replace a file of a run, whose lock is held.

    Raises:
        StoreError: the disk is full, read-only, …
    """
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    replace(path, f"{text}\n".encode())
