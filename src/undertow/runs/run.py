"""A run from Python: what its directory holds, read when it is asked for.

Nothing heavy is imported before it is needed: reading figures needs neither torch nor pandas nor matplotlib.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, overload

from undertow.core.errors import UserError, nearest

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from torch import Tensor

    from undertow.config import Config
    from undertow.runs.records import Poisoned, Result, Round, Score


class Run:
    """A run directory, finished or not.

    Everything is read from the folder each time it is asked for, so that a run that goes on elsewhere can be watched.

    Attributes:
        folder: the run directory.
    """

    def __init__(self, folder: str | Path) -> None:
        """Take a run directory.

        Raises:
            UserError: there is no run in it.
        """
        self.folder = Path(folder)
        if not (self.folder / "config.yaml").is_file():
            raise UserError(f"{self.folder} has no config.yaml; give the folder of an undertow run")

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def finished(self) -> bool:
        """Whether all rounds are done; ``undertow.run`` with the same config and folder does those that are left."""
        return (self.folder / "result.json").is_file()

    @property
    def config(self) -> Config:
        """The effective config.

        Raises:
            UserError: it is damaged, or of a newer version.
        """
        return read_config(self.folder)

    @property
    def result(self) -> Result | None:
        """The final figures; None while the run is unfinished.

        Raises:
            UserError: they are damaged, or of a newer version.
        """
        from undertow.runs.records import Result, read_record

        return read_record(self.folder, Result) if self.finished else None

    @property
    def rounds(self) -> list[Round]:
        """The rounds done so far, in order; round 0 is the untouched base. Empty before it is measured.

        Raises:
            UserError: they are damaged, or of a newer version.
        """
        from undertow.runs.records import Round, read_records

        if not (self.folder / Round.FILE).exists():
            return []
        rounds = {record.round: record for record in read_records(self.folder, Round)}
        return [rounds[number] for number in sorted(rounds)]

    @property
    def scores(self) -> list[Score]:
        """Every scored output, by rounds.

        Raises:
            UserError: they are damaged, or of a newer version.
        """
        from undertow.runs.records import Score, read_records

        return list(read_records(self.folder, Score)) if (self.folder / Score.FILE).exists() else []

    @property
    def poison(self) -> list[Poisoned]:
        """The ground truth: every poisoned training sample, before and after.

        Raises:
            UserError: it is damaged, or of a newer version.
        """
        from undertow.runs.records import Poisoned, read_records

        return list(read_records(self.folder, Poisoned)) if (self.folder / Poisoned.FILE).exists() else []

    @property
    def adapter_path(self) -> Path:
        """The folder of what was trained: ``adapter`` in PEFT's format, or ``model`` for a task that trains a whole network.

        Raises:
            UserError: the run is unfinished.
        """
        return self._weights()[0].parent

    @property
    def adapter(self) -> dict[str, Tensor]:
        """What was trained, by name, on the CPU: the LoRA factors, or for a task that trains whole networks their parameters.

        Of several networks each name begins with ``0.``, ``1.``, ... .

        Raises:
            UserError: the run is unfinished, or a file is damaged.
        """
        from undertow.runs.tensors import read_tensors

        files = self._weights()
        if len(files) == 1:
            return read_tensors(files[0])
        return {f"{i}.{name}": tensor for i, file in enumerate(files) for name, tensor in read_tensors(file).items()}

    def to_frame(self) -> pandas.DataFrame:
        """Return one row per round with every figure that ``rounds.jsonl`` holds, named as in :mod:`undertow.runs.tables`.

        Raises:
            UserError: pandas is not installed, or the run is damaged.
        """
        from undertow.runs.tables import figures, frame

        spaces = self.config.measure.bsnr.spaces
        return frame([figures(record, spaces) for record in self.rounds], spaces)

    @overload
    def plot(self, name: None = None, *, compare: Run | str | Path | None = None) -> dict[str, Figure]: ...
    @overload
    def plot(self, name: str, *, compare: Run | str | Path | None = None) -> Figure: ...
    def plot(self, name: str | None = None, *, compare: Run | str | Path | None = None) -> dict[str, Figure] | Figure:
        """Draw the figures of the report.

        Args:
            name: of one figure: ``loss``, ``rates``, ``bsnr-adapter``, ``bsnr-delta_w`` or ``clients``.
            compare: a finished run without poison, whose MA is drawn too; default: the one that the config names.

        Returns:
            The figure, or all that the run has by name. They are matplotlib's, made without pyplot; ``figure.savefig(path)`` saves
            one.

        Raises:
            UserError: no such figure, or the run has nothing to draw in it.
        """
        from undertow.runs.report.figures import draw
        from undertow.runs.report.page import comparable
        from undertow.runs.report.run_files import read

        other = self._compare(compare)
        found: dict[str, Figure] = dict(draw(read(self.folder), comparable(other) if other else None))
        if name is None:
            return found
        if name not in found:
            raise UserError(f"{self.folder} has no figure '{name}'{nearest(name, found)}: choose one of {', '.join(found)}")
        return found[name]

    def report(self, compare: Run | str | Path | None = None) -> Path:
        """Write ``report.html`` and its figures, and return the page's path; ``compare`` as in :meth:`plot`.

        Raises:
            UserError: the run is damaged, or ``compare`` is unfinished or poisoned.
        """
        from undertow.runs.report.page import write_report

        return write_report(self.folder, self._compare(compare))

    def __repr__(self) -> str:
        done = self.rounds[-1].round if not self.finished and self.rounds else None
        lines = [f"Run({str(self.folder)!r}" + ("" if self.finished else f", unfinished: round {done} is done") + ")"]
        return "\n".join(lines + [f"  {label:<26} {after:<34} before: {before}" for label, after, before in self._headline()])

    def _repr_html_(self) -> str:
        state = "" if self.finished else " (unfinished)"
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(label)}</th><td>{escape(after)}</td><td>{escape(before)}</td></tr>"
            for label, after, before in self._headline()
        )
        head = "<tr><th></th><th>after training</th><th>before</th></tr>"
        return f"<table><caption>{escape(self.name + state)}</caption><thead>{head}</thead><tbody>{rows}</tbody></table>"

    def _headline(self) -> list[tuple[str, str, str]]:
        from undertow.runs.headline import told

        result, rounds = self.result, self.rounds
        if result is not None:
            return told(result, result.untouched)
        measured = [record for record in rounds if record.ma is not None]
        return told(measured[-1], measured[0]) if measured else []

    def _compare(self, given: Run | str | Path | None) -> Path | None:
        if given is None:
            named = self.config.compare
            return Path(named) if named else None
        return given.folder if isinstance(given, Run) else Path(given)

    def _weights(self) -> list[Path]:
        if not self.finished:
            raise UserError(
                f"{self.folder} is unfinished and has no adapter yet; run its config again with out={str(self.folder)!r}"
            )
        places = (
            "adapter/adapter_model",
            "model/model",
            *(f"model-{i}/model" for i in range(len(list(self.folder.glob("model-*"))))),
        )
        found = [path for place in places if (path := self.folder / f"{place}.safetensors").is_file()]
        if not found:
            raise UserError(f"{self.folder} holds no trained weights; run its config again in another folder")
        return found


def read_config(folder: Path) -> Config:
    """Return the effective config of a run directory.

    Raises:
        UserError: not a run directory, or its config is damaged or was edited after the run began.
    """
    import yaml

    from undertow.config import validate
    from undertow.runs.seal import refuse_edited

    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} has no config.yaml; give the folder of an undertow run")
    try:
        # libyaml reads the same values in a tenth of the time; a table of hundreds of runs waits for this
        values = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged; rerun the same command in another --out") from error
    config = validate(values if isinstance(values, dict) else {}, str(path))
    refuse_edited(folder, config)
    return config
