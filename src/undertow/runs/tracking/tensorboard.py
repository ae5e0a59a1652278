"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from undertow.runs.tracking.contract import Start, Tracker

FOLDER = "tensorboard"


class TensorBoard(Tracker):
    """Writes event files to ``tensorboard/`` in the run's folder: ``tensorboard --logdir runs`` shows all runs below it.

    Rounds that a resumed run does again replace those before. The report page lies beside the folder; TensorBoard keeps no pages.
    """

    def __init__(self, start: Start) -> None:
        from torch.utils.tensorboard import SummaryWriter

        again = start.next if start.run else None
        self._writer = SummaryWriter(str(start.folder / FOLDER), purge_step=again)
        self.run = FOLDER
        if start.run is None:
            table = "".join(f"| {key} | {json.dumps(value, ensure_ascii=False)} |\n" for key, value in start.config.items())
            self._writer.add_text("config", f"| field | value |\n| --- | --- |\n{table}", start.next)

    def log(self, round: int, figures: Mapping[str, float]) -> None:
        """Record scalars at the step of the round."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, round)
        self._writer.flush()

    def end(self, result: Mapping[str, float], report: Path | None) -> None:
        """Record the final figures as a text, and where the page is."""
        told = dict(result) | ({"report": str(report)} if report else {})
        self._writer.add_text("result", "".join(f"    {key}: {value}\n" for key, value in told.items()))
        self._writer.close()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
