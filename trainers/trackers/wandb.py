"""`--track wandb`, `--track 'wandb?project=NAME&entity=TEAM'`: Weights & Biases.

Offline with the library's own WANDB_MODE=offline; its files then lie in RUN/wandb, for `wandb sync`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softlabels.errors import MissingExtraError
from trainers.trackers import Tracked


class WandB:
    """One run there, which a resumed run goes on with.

    What was logged of steps that are taken again stays as it was: the service takes no step twice.
    """

    def __init__(
        self, tracked: Tracked, *, project: str = "softtrain", entity: str | None = None
    ) -> None:
        try:
            import wandb
        except ImportError as e:
            raise MissingExtraError("wandb", "wandb", "--track wandb") from e
        self._run: Any = wandb.init(
            project=project,
            entity=entity,
            name=tracked.name,
            id=tracked.id,
            resume="allow",
            dir=str(tracked.run),
            config=tracked.settings,
            reinit="create_new",
            settings=wandb.Settings(console="off", quiet=True, x_disable_stats=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take a step's numbers."""
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Nothing: the library writes as it goes."""

    def close(self) -> None:
        """End; waits for what is being sent."""
        self._run.finish()
