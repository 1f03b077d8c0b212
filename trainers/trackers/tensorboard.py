"""`--track tensorboard`: event files in RUN/tensorboard. Where it is installed, also without being asked for."""

from __future__ import annotations

from collections.abc import Mapping

from softlabels.errors import MissingExtraError
from trainers.trackers import Tracked

FOLDER = "tensorboard"
"""Of a run: where its event files lie."""


class TensorBoard:
    """A curve for each number; steps that a resumed run takes again are purged."""

    def __init__(self, tracked: Tracked) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as e:
            raise MissingExtraError("tensorboard", "tensorboard", "--track tensorboard") from e
        self._writer = SummaryWriter(str(tracked.run / FOLDER), purge_step=tracked.step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take a step's numbers."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write what is waiting."""
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        self._writer.close()
