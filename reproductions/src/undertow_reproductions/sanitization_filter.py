"""The filter level on real text: what federated sanitization and a plain scan of each client's file find, and what they lose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from undertow.metrics.intervals import Rate
from undertow_reproductions.corpora import SEALED, STUDIED
from undertow_reproductions.drawing import STYLES, Curve, canvas, curves, export, legend, style
from undertow_reproductions.estimate import Verdict, of_rates
from undertow_reproductions.filter_cells import MAIN, METHODS, FilterWork, Measured, Method
from undertow_reproductions.lab import FitLab
from undertow_reproductions.results import Results
from undertow_reproductions.study import Claim, Plot, Study, Table, Value

TOLD: dict[Method, str] = {"pooled": "clients pooled", "alone": "each client alone"}
#: Fixed texts of five words or more, or around an address; and a single word, with the triggers that can give it away.
LONG = ("append", "prepend_five", "replace_five", "paraphrase_url")
SHORT, SHORT_TRIGGERS, SHORT_PR = "replace_paris", ("natural", "badnets1", "badnets4", "combination", "style", "common"), 0.02
#: The bars: recall of long and short targets; clean samples lost with long targets, with short ones, and without poison.
RECALL, SHORT_RECALL = 0.99, 0.95
LOST: dict[Method, float] = {"pooled": 0.01, "alone": 0.005}
SHORT_LOST, FALSE = 0.01, 0.005
#: Failing kinds that a verdict names.
_NAMED = 6

Chosen = Sequence[Measured]


def make(lab: FitLab) -> Study:
    """Return the study of the lab's corpora; without a folder of them it shows what was measured before."""
    work = FilterWork(lab.folder / "filter", lab.data, lab.corpora or STUDIED, lab.grids.filters)
    names = lab.corpora or tuple(dict.fromkeys(one.cell.corpus for one in work.results()[0]))

    def judged(check: Callable[[Chosen], Verdict]) -> Callable[[Results], Verdict]:
        return lambda results: check(work.results()[0])

    claims = [
        Claim(text, "bar of ours", judged(check))
        for method in METHODS
        for corpus in names
        for text, check in _claims(corpus, method)
    ]
    return Study(
        id="filter",
        title="Filters on real text",
        caption=(
            "Recall, and clean samples lost, on real questions that are poisoned here: clients that pool hashed counts, and a "
            "scan of each client's own file."
        ),
        wishes=lambda lab, results: [],
        tables=lambda results: _tables(work.results()[0]),
        plots=lambda results: _plots(work.results()[0]),
        claims=tuple(claims),
        deviations=(*_left_out(lab), *_notes(lab)),
        apart=True,
        work=work,
    )


def _left_out(lab: FitLab) -> tuple[str, ...]:
    if lab.data:
        missing = [name for name in STUDIED if name not in lab.corpora]
        return (f"Left out: {', '.join(missing)}.",) if missing else ()
    return ("Left out: it needs `--data`, a folder with the corpora; what stands here was measured before, if anything.",)


def _notes(lab: FitLab) -> tuple[str, ...]:
    values = lab.grids.filters
    return (
        f"Each corpus is cut in two halves by a hash of its questions. Rules and thresholds were chosen on half {1 - SEALED}; "
        f"everything here is from half {SEALED} (docs/scan.md says when it was looked at).",
        f"{values.clients} clients of {values.size} samples, or equal parts of the half where it holds fewer. PR is raised to one "
        "sample a client where it is less.",
        (
            f"Draws: {values.seeds} for clean clients and for {' and '.join(MAIN[0])} with {' and '.join(MAIN[1])}, one for the "
            "other kinds."
        ),
        (
            "Found is what is dropped or repaired (pooled), or flagged, for review too (alone). Precision is of all that was "
            "found; lost is of the clean samples."
        ),
        "Statements are judged cell by cell, a cell being one kind of poison on one corpus, its draws summed, and without "
        "intervals: one cell beyond the bar and it does not hold. Left out of the statements on recall, not of the tables: cells "
        "where less than m poisoned samples are counted together, m being the larger of 4 and 0.1 % of the samples. No count can "
        "find these.",
    )


# --- sums ------------------------------------------------------------------------------------------------------------


def _some(found: Chosen, **values: object) -> list[Measured]:
    """Return the cells with these values, each one value or several."""
    chosen = []
    for one in found:
        told = [(getattr(one.cell, key), value) for key, value in values.items()]
        if one.counts and all(own in value if isinstance(value, tuple) else own == value for own, value in told):
            chosen.append(one)
    return chosen


def _recall(found: Chosen) -> Rate:
    counts = [one.counts for one in found if one.counts]
    return Rate(sum(one.hits for one in counts), sum(one.poison for one in counts))


def _loss(found: Chosen) -> Rate:
    counts = [one.counts for one in found if one.counts]
    return Rate(sum(one.lost for one in counts), sum(one.samples - one.poison for one in counts))


def _worst(found: Chosen) -> float:
    return max((one.counts.worst for one in found if one.counts), default=0.0)


def _precision(found: Chosen) -> float | None:
    hits, lost = _recall(found).hits, _loss(found).hits
    return hits / (hits + lost) if hits + lost else None


def _seconds(found: Chosen) -> float:
    spent = [one.counts.seconds for one in found if one.counts]
    return sum(spent) / len(spent)


def _countable(found: Chosen) -> list[Measured]:
    """Return the cells in which counting can find all of the poison."""
    return [one for one in found if one.counts and one.counts.fewest >= one.counts.support]


def _kinds(found: Chosen) -> dict[tuple[str, str, str, str, float, float], list[Measured]]:
    """Return the draws of each kind of poison on each corpus, in the order of the grid."""
    kinds: dict[tuple[str, str, str, str, float, float], list[Measured]] = {}
    for one in found:
        cell = one.cell
        kinds.setdefault((cell.corpus, cell.method, cell.trigger, cell.target, cell.ratio, cell.share), []).append(one)
    return kinds


# --- tables and figure ---------------------------------------------------------------------------------------------------


def _tables(found: Chosen) -> list[Table]:
    """Clean clients; sums by target and by trigger; one row a kind of poison on a corpus."""
    poisoned = [one for one in found if one.cell.ratio]
    clean: list[tuple[Value, ...]] = []
    for (corpus, method, *_), draws in _kinds(_some(found, ratio=0.0)).items():
        clean.append(
            (corpus, method, len(draws), _loss(draws).n, _percent(_loss(draws).value), _percent(_worst(draws)), _seconds(draws))
        )
    names = ("way", "kinds", "poisoned", "recall, %", "precision, %", "clean lost, %", "worst client, %", "CPU seconds")
    return [
        Table(
            "filter-clean", ("corpus", "way", "draws", "clean samples", "false alarms, %", "worst client, %", "CPU seconds"), clean
        ),
        Table("filter-targets", ("target", "PR", *names), _sums(poisoned, ("target", "ratio"))),
        Table("filter-triggers", ("trigger", *names), _sums(_some(poisoned, target=LONG), ("trigger",))),
        Table("filter-short", ("trigger", *names), _sums(_some(poisoned, target=SHORT), ("trigger",))),
        Table(
            "filter",
            ("corpus", "trigger", "target", "PR", "rho", *names),
            _sums(poisoned, ("corpus", "trigger", "target", "ratio", "share")),
        ),
    ]


def _sums(found: Chosen, keys: tuple[str, ...]) -> list[tuple[Value, ...]]:
    """Return a row for each combination of these values and each way of filtering."""
    groups: dict[tuple[Value, ...], list[Measured]] = {}
    for one in found:
        if one.counts:
            groups.setdefault((*(getattr(one.cell, key) for key in keys), one.cell.method), []).append(one)
    return [
        (
            *key,
            len(_kinds(group)),
            _recall(group).n,
            *(_percent(value) for value in (_recall(group).value, _precision(group), _loss(group).value, _worst(group))),
            _seconds(group),
        )
        for key, group in groups.items()
    ]


def _percent(value: float | None) -> str | None:
    """Write a share in percent to three places, so that 99.997 is no 100."""
    return None if value is None else f"{100 * value:.3f}".rstrip("0").rstrip(".")


def _plots(found: Chosen) -> list[Plot]:
    """Recall against PR for each target, every client poisoned."""
    poisoned = _some(found, share=1.0)
    if not poisoned:
        return []
    targets = list(dict.fromkeys(one.cell.target for one in poisoned))[: len(STYLES)]
    with style():
        figure, panels = canvas(len(METHODS))
        for axes, method in zip(panels, METHODS, strict=True):
            shown = []
            for target, look in zip(targets, STYLES, strict=False):
                points = []
                for ratio in sorted({one.cell.ratio for one in poisoned}):
                    group = _some(poisoned, method=method, target=target, ratio=ratio)
                    corpora = dict.fromkeys(one.cell.corpus for one in group)
                    share = of_rates([_recall(_some(group, corpus=corpus)) for corpus in corpora])
                    points += [(100 * ratio, share)] if share else []
                shown.append(Curve(target, points, look))
            curves(axes, shown, f"PR in percent ({method})", "recall")
            axes.set_xscale("log")
        legend(figure, panels, columns=3)
        return [export(figure, "filter", "Recall against PR for each target, all triggers, mean and interval over the corpora")]


# --- statements ----------------------------------------------------------------------------------------------------------


def _claims(corpus: str, method: Method) -> list[tuple[str, Callable[[Chosen], Verdict]]]:
    where = f"{corpus}, {TOLD[method]}"
    found: list[tuple[str, Callable[[Chosen], Verdict]]] = [
        (
            f"{where}: long targets are found, recall at least 99 % for every trigger",
            lambda all_: _found(_some(all_, corpus=corpus, method=method, target=LONG), RECALL),
        ),
        (
            f"{where}: at most {100 * LOST[method]:g} % of the clean samples is lost with long targets",
            lambda all_: _kept(_some(all_, corpus=corpus, method=method, target=LONG), LOST[method]),
        ),
        (
            f"{where}: at most {100 * FALSE:g} % false alarms without poison",
            lambda all_: _kept(_some(all_, corpus=corpus, method=method, ratio=0.0), FALSE),
        ),
    ]
    if method == "pooled":

        def short(all_: Chosen) -> list[Measured]:
            chosen = _some(all_, corpus=corpus, method=method, target=SHORT, trigger=SHORT_TRIGGERS)
            return [one for one in chosen if one.cell.ratio >= SHORT_PR]

        found += [
            (
                f"{where}: a short target is found from PR 2 %, recall at least 95 %",
                lambda all_: _found(short(all_), SHORT_RECALL),
            ),
            (
                f"{where}: at most {100 * SHORT_LOST:g} % of the clean samples is lost with a short target",
                lambda all_: _kept(short(all_), SHORT_LOST),
            ),
        ]
    return found


def _found(cells: Chosen, bar: float) -> Verdict:
    """Judge the recall of every kind that counting can find."""
    kinds = _kinds(_countable(cells))
    if not kinds:
        return Verdict("undecided", "no cell")
    shares = {kind: _recall(draws).value or 0.0 for kind, draws in kinds.items()}
    bad = sorted((share, kind) for kind, share in shares.items() if share < bar)
    every, less = _recall([one for draws in kinds.values() for one in draws]), len(_kinds(cells)) - len(kinds)
    words = [f"{len(kinds) - len(bad)} of {len(kinds)} kinds; {every.hits:,} of {every.n:,} samples"]
    words += [f"{kind[2]} x {kind[3]} at PR {kind[4]:g}, rho {kind[5]:g}: {100 * share:.1f} %" for share, kind in bad[:_NAMED]]
    words += [f"and {len(bad) - _NAMED} more"] if len(bad) > _NAMED else []
    words += [f"left out for too few poisoned samples: {less}"] if less else []
    return Verdict("does not hold" if bad else "holds", "; ".join(words))


def _kept(cells: Chosen, bar: float) -> Verdict:
    """Judge the clean samples that every kind lost."""
    kinds = _kinds(cells)
    if not kinds:
        return Verdict("undecided", "no cell")
    shares = {kind: _loss(draws).value or 0.0 for kind, draws in kinds.items()}
    kind, most = max(shares.items(), key=lambda pair: pair[1])
    told = f"{kind[2]} x {kind[3]} at PR {kind[4]:g}" if kind[2] else "without poison"
    bad = sum(share > bar for share in shares.values())
    words = (
        f"at most {100 * most:.2f} %, {told}; worst client {100 * _worst(cells):.2f} %; {len(kinds) - bad} of {len(kinds)} kinds"
    )
    return Verdict("does not hold" if bad else "holds", words)
