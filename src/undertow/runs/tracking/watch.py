"""A tracker as an observer: it hears of every finished round, beside whoever looks on anyway."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from undertow.config import Config
from undertow.config.names import leaves
from undertow.core.errors import UserError
from undertow.core.files import write_json
from undertow.core.observer import Observer
from undertow.core.registry import defense_text
from undertow.runs.records import Result, Round, check, read_json, read_record
from undertow.runs.tables import figures, text
from undertow.runs.tracking.contract import Start, Tracker

#: By the value of ``tracking``: module and class here, the package that it needs.
TRACKERS = {
    "tensorboard": ("tensorboard", "TensorBoard", "tensorboard"),
    "wandb": ("wandb", "WeightsAndBiases", "wandb"),
    "mlflow": ("mlflow", "MLflow", "mlflow"),
}
#: What a run directory keeps of its tracker, so that a resumed run goes on with it.
FILE = "tracking.json"


@contextmanager
def tracked(config: Config, folder: Path, observer: Observer) -> Iterator[Observer]:
    """Give the observer of a run: the one that is given, and the tracker that ``tracking`` names, if any.

    What fails in a tracker is a warning: a run is not lost for it.

    Raises:
        UserError: the tracker's package is not installed.
    """
    if config.tracking is None:
        yield observer
        return
    package = TRACKERS[config.tracking][2]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"tracking={config.tracking} needs {package}: pip install -e '.[{config.tracking}]' in the clone")
    tracking = _Tracking(config, folder, observer)
    try:
        yield tracking
    except BaseException:
        tracking.leave()
        raise
    tracking.finish()


class _Tracking:
    """Tells a tracker what the observer hears; the tracker begins with the first finished round."""

    def __init__(self, config: Config, folder: Path, observer: Observer) -> None:
        assert config.tracking is not None
        self._config, self._folder, self._observer = config, folder, observer
        self._kind: str = config.tracking
        self._tracker: Tracker | None = None
        self._failed = False
        self._kept: dict[str, Any] = {}
        self.phase, self.warn = observer.phase, observer.warn

    def round(self, row: dict[str, Any], of: int) -> None:
        """Record a finished round that the tracker does not have yet."""
        self._observer.round(row, of)
        if self._failed:
            return
        with self._warned():
            tracker = self._begun(row["round"])
            if row["round"] > self._kept.get("round", -1):
                spaces = self._config.measure.bsnr.spaces
                tracker.log(row["round"], _numbers(figures(check(Round, row, Path(Round.FILE)), spaces)))
                self._keep(round=row["round"])

    def finish(self) -> None:
        """Record the result, once."""
        with self._warned():
            if self._failed or not (self._folder / Result.FILE).is_file() or (self._tracker is None and not self._unended()):
                return
            tracker = self._begun(0)
            result = read_record(self._folder, Result).model_dump(exclude={"bsnr", "neighbourhood", "filtering"})
            report = self._folder / "report.html"
            tracker.end(_numbers(dict(leaves(result))), report if report.is_file() else None)
            self._keep(ended=True)

    def leave(self) -> None:
        """Close the tracker of a run that ends unfinished."""
        with self._warned():
            if self._tracker is not None:
                self._tracker.close()

    def _begun(self, first: int) -> Tracker:
        if self._tracker is None:
            kept = read_json(self._folder / FILE) if (self._folder / FILE).is_file() else {}
            self._kept = kept if kept.get("tracker") == self._kind else {}
            module, name, _ = TRACKERS[self._kind]
            make = getattr(importlib.import_module(f"undertow.runs.tracking.{module}"), name)
            values = self._config.short_values()
            values["defenses"] = defense_text(values["defenses"])
            config = {key: text(value) for key, value in leaves(values)}
            again = max(first, self._kept.get("round", -1) + 1)
            self._tracker = make(Start(self._folder.resolve(), self._folder.resolve().name, config, self._kept.get("run"), again))
            self._keep(tracker=self._kind, run=self._tracker.run)
        return self._tracker

    def _unended(self) -> bool:
        """Whether a tracker was told of the rounds and not of the result: the run was stopped between them."""
        kept = read_json(self._folder / FILE) if (self._folder / FILE).is_file() else {}
        return kept.get("tracker") == self._kind and not kept.get("ended")

    def _keep(self, **values: Any) -> None:
        self._kept |= values
        write_json(self._folder / FILE, self._kept)

    @contextmanager
    def _warned(self) -> Iterator[None]:
        """Let what fails in a tracker be one warning, and the last."""
        try:
            yield
        except Exception as error:
            self._failed = True
            told = " ".join(str(error).split())[:200]
            self._observer.warn(f"tracking={self._kind} stopped ({type(error).__name__}: {told}); the run goes on without it")


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return what a tracker can draw: finite numbers."""
    numbers = {key: value for key, value in values.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    return {key: float(value) for key, value in numbers.items() if math.isfinite(value) and key not in ("round", "format")}
