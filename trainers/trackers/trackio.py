"""`--track trackio`, `--track 'trackio?project=NAME'`: Hugging Face's local tracker; `trackio show` shows it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from softlabels.errors import MissingExtraError
from trainers.trackers import Tracked


class Trackio:
    """One run in the library's own folder (TRACKIO_DIR), which a resumed run goes on with."""

    def __init__(self, tracked: Tracked, *, project: str = "softtrain") -> None:
        try:
            import trackio
        except ImportError as e:
            raise MissingExtraError("trackio", "trackio", "--track trackio") from e
        with redirect_stdout(sys.stderr):  # it prints; our stdout is the command's result
            self._run: Any = trackio.init(
                project=project,
                name=f"{tracked.name}-{tracked.id}",
                config=tracked.settings,
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take a step's numbers."""
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Nothing: the library writes as it goes."""

    def close(self) -> None:
        """End; waits for what is being written."""
        with redirect_stdout(sys.stderr):
            self._run.finish()
