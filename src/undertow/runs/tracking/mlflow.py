"""MLflow: its own tracking store, ``MLFLOW_TRACKING_URI`` or the default of MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from undertow.runs.tracking.contract import Start, Tracker

#: Parameters and metrics that a store takes at a time.
_BATCH = 100


class MLflow(Tracker):
    """A run of the experiment ``undertow`` (``MLFLOW_EXPERIMENT_NAME`` takes another), through a client of its own: no run is made
    active, so that runs side by side and the caller's own do not meet."""

    def __init__(self, start: Start) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        if start.run is not None:
            self.run = start.run
            self._client.set_terminated(self.run, "RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "undertow")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self.run = str(self._client.create_run(experiment, run_name=start.name).info.run_id)
        fields = [Param(key, str(value)[:500]) for key, value in start.config.items()]
        for at in range(0, len(fields), _BATCH):
            self._client.log_batch(self.run, params=fields[at : at + _BATCH])

    def log(self, round: int, figures: Mapping[str, float]) -> None:
        """Record the figures at the step of the round."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, round) for name, value in figures.items()]
        for at in range(0, len(metrics), _BATCH):
            self._client.log_batch(self.run, metrics=metrics[at : at + _BATCH])

    def end(self, result: Mapping[str, float], report: Path | None) -> None:
        """Record the final figures as metrics ``final.*``, and the page as an artifact."""
        for name, value in result.items():
            self._client.log_metric(self.run, f"final.{name}", value)
        if report is not None:
            self._client.log_artifact(self.run, str(report))
        self._client.set_terminated(self.run)

    def close(self) -> None:
        """Leave the run unfinished."""
        self._client.set_terminated(self.run, "KILLED")
