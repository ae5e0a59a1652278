"""What a study is: the runs it wants, how to read them, and what the paper says that they can confirm or refute.

A study is one table or figure. It names its runs as changes to a base config; two studies that name the same run
share it. After each batch of runs a study is asked again what it wants, so that a search can go on from what it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from undertow_reproductions.estimate import Estimate, Verdict
from undertow_reproductions.results import Results

#: A cell of a table: text, a number, a share with its intervals, or nothing.
Value = str | float | int | Estimate | None


@dataclass(frozen=True)
class Wish:
    """One run that a study needs.

    Attributes:
        axes: what the study calls it, such as ``{"pr": 0.02, "seed": 0}``; the columns of its table.
        changes: dotted config names and values over the setting's config; ``seed`` is taken from ``axes``.
        setting: index of the profile's setting (data and base); 0 is the main one.
    """

    axes: dict[str, Any]
    changes: dict[str, Any]
    setting: int = 0


@dataclass(frozen=True)
class FilterGrid:
    """What filters are measured on; names as in :mod:`undertow_reproductions.kinds`.

    Attributes:
        clients, size: how many, and samples of each.
        seeds: draws of the main kinds of poison and of clean clients; the other kinds have one.
        ratios: PR.
        rhos: where clients pool their counts.
        triggers, targets: every combination.
    """

    clients: int = 10
    size: int = 500
    seeds: int = 5
    ratios: tuple[float, ...] = (0.002, 0.02, 0.1)
    rhos: tuple[float, ...] = (0.1, 0.5, 1.0)
    triggers: tuple[str, ...] = (
        "natural",
        "badnets1",
        "badnets4",
        "sentence",
        "style",
        "combination",
        "common",
        "passive",
        "upper",
        "topic",
    )
    targets: tuple[str, ...] = (
        "append",
        "prepend_five",
        "replace_five",
        "paraphrase_url",
        "paraphrase_plain",
        "adaptive",
        "replace_paris",
    )


@dataclass(frozen=True)
class Grids:
    """How fine a profile measures; PR and rho as in :class:`undertow.config.Attack`.

    Attributes:
        prs: Fig. 2a.
        rhos: Fig. 2b, 4 and the undefended curve of Fig. 5.
        global_rhos: Fig. 2b, other scope.
        defended_rhos: Fig. 5.
        search_rhos: Fig. 3.
        search_top: largest PR that Fig. 3 tries, in steps of 0.01.
        search_seeds: at most this many seeds in Fig. 3.
        null_rhos: label groups in runs without poison.
        matrix_rhos: the study of all defenses; 0 is no poison.
        slow_rhos: Fig. 4a again, with steps ``slow_lr`` over ``slow_rounds`` rounds; empty for no such runs.
        guarded_rhos: as ``matrix_rhos``, in the study of defenses on samples and losses.
        long_rounds: how long the recommended default, and what only delays a backdoor, are watched.
        filters: filters on real text.
        counted: Fig. 2a names poison by its count in the federation where a client's share of it is no whole number of samples.
        sizes: training samples of the whole federation, in the study of counts.
        counts: poisoned samples among them.
    """

    prs: tuple[float, ...]
    rhos: tuple[float, ...]
    global_rhos: tuple[float, ...]
    defended_rhos: tuple[float, ...]
    search_rhos: tuple[float, ...]
    search_top: int
    search_seeds: int
    null_rhos: tuple[float, ...]
    matrix_rhos: tuple[float, ...] = ()
    slow_rhos: tuple[float, ...] = ()
    slow_lr: float = 0.0
    slow_rounds: int = 0
    guarded_rhos: tuple[float, ...] = (0.0, 0.1, 0.3, 0.6, 1.0)
    long_rounds: int = 100
    filters: FilterGrid = FilterGrid()
    counted: bool = False
    sizes: tuple[int, ...] = (500, 1000, 1800)
    counts: tuple[int, ...] = (10, 14, 20, 28, 40)


class Lab(Protocol):
    """What a study may know about where it runs."""

    @property
    def grids(self) -> Grids:
        """The profile's grids."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of every point."""

    @property
    def clients(self) -> int:
        """K of the main setting."""

    @property
    def settings(self) -> Sequence[Labelled]:
        """The pairs of data and base; the first is the main one."""

    @property
    def defenses(self) -> list[dict[str, Any]]:
        """What the user put into ``defenses`` with ``--set``."""

    @property
    def questions(self) -> int:
        """Test questions of the main setting."""

    @property
    def samples(self) -> int:
        """Training samples of the main setting, in all."""

    def trusted(self, seed: int) -> str | None:
        """The file of trusted samples of the runs of a seed; None where defenses get none."""


class Labelled(Protocol):
    """A setting's names: its own, and which of the paper's it is or stands for (empty if none)."""

    @property
    def dataset(self) -> str:
        """Data set, as shown."""

    @property
    def model(self) -> str:
        """Base, as shown."""

    @property
    def paper_dataset(self) -> str:
        """The same data set in the paper."""

    @property
    def paper_model(self) -> str:
        """The same base in the paper."""


@dataclass(frozen=True)
class Claim:
    """One statement with its source, and how it is judged."""

    text: str
    source: str
    check: Callable[[Results], Verdict]


@dataclass(frozen=True)
class Table:
    """Rows under named columns; every row has every column."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Value, ...]]


@dataclass(frozen=True)
class Plot:
    """One figure: its file name without ending, SVG, and words for those who cannot see it."""

    name: str
    svg: bytes
    label: str


class Work(Protocol):
    """What a study measures that is no run of a federation."""

    def complete(self) -> bool:
        """Tell whether all of it is there."""

    def todo(self) -> int:
        """Return how many pieces :meth:`run` would make."""

    def told(self) -> str:
        """Say how much of it is there."""

    def run(self, jobs: int, say: Callable[[str], None]) -> dict[str, str]:
        """Make what is missing, ``jobs`` pieces at a time, and return the errors of those that failed, by name."""


@dataclass(frozen=True)
class Study:
    """A table, a figure, a pair of hypotheses, or a question of ours.

    Attributes:
        id: what ``--only`` takes, and the prefix of its files.
        title, caption: as in the paper, in our words.
        wishes: the runs it needs, given what is known so far; asked until nothing new comes.
        tables, plots: what the document shows; empty lists where there is nothing to show.
        claims: what the paper states and this study can judge.
        deviations: where ours differs from the paper's, and why; beside those of the profile.
        extra: about how many runs will be wished for later, for the prediction of time.
        apart: its claims are about different things, so that they are counted and not judged as one.
        work: what it measures beside its runs.
    """

    id: str
    title: str
    caption: str
    wishes: Callable[[Lab, Results], list[Wish]]
    tables: Callable[[Results], list[Table]]
    plots: Callable[[Results], list[Plot]]
    claims: tuple[Claim, ...]
    deviations: tuple[str, ...] = ()
    extra: Callable[[Lab], int] = lambda lab: 0
    apart: bool = False
    work: Work | None = None
