"""`--track mlflow`, `--track 'mlflow?experiment=NAME'`: MLflow, at MLFLOW_TRACKING_URI or else its own default."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from softlabels.errors import MissingExtraError
from trainers.trackers import Tracked

TAG = "softtrain.id"
"""By which a resumed run finds itself."""


class MLflow:
    """One run of an experiment, which a resumed run goes on with."""

    def __init__(self, tracked: Tracked, *, experiment: str = "softtrain") -> None:
        try:
            from mlflow.entities import Metric, Param, RunTag
            from mlflow.tracking import MlflowClient
        except ImportError as e:
            raise MissingExtraError("mlflow", "mlflow", "--track mlflow") from e
        self._metric = Metric
        self._client: Any = MlflowClient()
        there = self._client.get_experiment_by_name(experiment)
        number = (
            self._client.create_experiment(experiment) if there is None else there.experiment_id
        )
        found = self._client.search_runs([number], filter_string=f"tags.`{TAG}` = '{tracked.id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(number, run_name=tracked.name).info.run_id
        settings = [Param(k, str(v)) for k, v in tracked.settings.items() if v is not None]
        self._client.log_batch(self._id, params=settings, tags=[RunTag(TAG, tracked.id)])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take a step's numbers."""
        now = int(time.time() * 1000)
        metrics = [self._metric(name, float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def flush(self) -> None:
        """Nothing: each step is written at once."""

    def close(self) -> None:
        """End."""
        self._client.set_terminated(self._id)
