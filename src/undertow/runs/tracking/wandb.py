"""Weights & Biases: offline unless ``WANDB_MODE`` says otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from undertow.runs.tracking.contract import Start, Tracker


class WeightsAndBiases(Tracker):
    """A run of the project ``undertow`` (``WANDB_PROJECT`` takes another) in the folder ``wandb/`` of the run's own.

    Nothing leaves the machine until ``wandb sync`` or ``WANDB_MODE=online``; a resumed run has the same id.
    """

    def __init__(self, start: Start) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "undertow"),
            name=start.name,
            id=start.run,
            resume="allow" if start.run else None,
            dir=str(start.folder),
            config=dict(start.config),
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",
        )
        self.run = str(self._run.id)

    def log(self, round: int, figures: Mapping[str, float]) -> None:
        """Record the figures at the step of the round."""
        self._run.log(dict(figures), step=round)

    def end(self, result: Mapping[str, float], report: Path | None) -> None:
        """Record the final figures as the summary, and the page as an artifact."""
        self._run.summary.update(dict(result))
        if report is not None:
            artifact = self._wandb.Artifact(f"report-{self.run}", type="report")
            artifact.add_file(str(report))
            self._run.log_artifact(artifact)
        self._run.finish()

    def close(self) -> None:
        """End what was begun here; the same id goes on."""
        self._run.finish(exit_code=1)
