"""Writes ``report.html``: one page that needs nothing but itself, and the figures beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from undertow.core import files
from undertow.core.errors import UserError
from undertow.runs.headline import held_out
from undertow.runs.records import Rate, Result, Round, Score, Space, Untouched
from undertow.runs.report import figures, wording
from undertow.runs.report.run_files import RunFiles, read
from undertow.runs.report.terms import Terms

_METRICS = {"ma": "MA", "asr": "ASR", "ftr": "FTR", "ftr_near": "FTR near"}
_SPACES: tuple[tuple[Space, str], ...] = (("adapter", "adapter"), ("delta_w", "ΔW"))
_PAIRS = 6
#: What the figures are, for screen readers.
_LABELS = {
    "loss": "Training loss per round",
    "rates": "MA, ASR and FTR per round with 95 percent intervals",
    **{f"bsnr-{space}": f"BSNR per round in {space} space over its null band" for space, _ in _SPACES},
    "audit": "Score of the server's audit per round, and ASR",
    "clients": "Samples per client, poisoned ones hatched",
}
#: Recorded facts with a name in words; all others are shown under their own key.
_FACTS = {
    "dataset": "data set",
    "rows": "rows read",
    "rows_read": "rows read",
    "rows_dropped": "rows left out, by reason",
    "questions": "different questions",
    "duplicates_merged": "rows merged with an equal question",
    "test_set": "test questions: drawn from the data, or a set of their own",
    "removed_for_test": "questions left out of training as they are in the test",
    "left_out_of_files": "rows of the clients' files left out, as data.train asks for fewer",
    "account": "what became of the fields of the rows",
    "client_files": "the clients' files",
    "client_groups": "training samples of each client by group",
    "poisoned": "poisoned samples of each client",
    "sanitized": "what defenses on the data reported",
    "weighed": "what defenses on the loss reported",
    "base": "the base",
    "train": "training samples",
    "test": "test samples",
    "answer_limit": "tokens of an answer that are generated, at most",
    "overlap_questions": "questions in both training and test",
    "overlap_keys": "keys (subject and relation) in both training and test",
    "excluded_asked": "rows left out because their key was already asked",
    "partition": "partition",
    "too_long": "training samples left out: they do not fit",
    "too_long_test": "test questions left out: they do not fit",
    "shortened_train": "training prompts cut to fit",
    "shortened_test": "test prompts cut to fit",
    "unpoisoned_cut": "samples not poisoned: the cut would take trigger or target off",
    "triggered_cut": "triggered test questions left out: the cut would take the trigger off",
}


@dataclass(frozen=True)
class _Tile:
    """One headline figure."""

    short: str
    meaning: str
    rate: Rate | None
    untouched: Rate | None
    compare: Rate | None
    difference: str


def write_report(run: Path, compare: Path | None = None) -> Path:
    """Write ``report.html`` and ``figures/*.svg``, ``figures/*.pdf`` into a run directory.

    The same files give the same bytes. A run without result.json is reported as unfinished with the rounds it has.

    Args:
        run: the run directory, the only source of what is shown.
        compare: directory of a finished run without poison, shown beside this one.

    Returns:
        the path of the page.

    Raises:
        UserError: not a run, a damaged file, a ``compare`` that is unfinished or poisoned, or an unwritable folder.
    """
    recorded = read(run)
    other = comparable(compare) if compare is not None else None
    files.check_folder("report", run)
    drawings = _drawings(recorded, other)
    page = _page(recorded, other, drawings)
    try:
        for drawing, _ in drawings.values():
            files.write_bytes(run / "figures" / f"{drawing.name}.svg", drawing.svg)
            files.write_bytes(run / "figures" / f"{drawing.name}.pdf", drawing.pdf)
        files.write_text(run / "report.html", page)
    except OSError as error:
        reason = f"the report cannot be written ({error.strerror})"
        raise UserError(f"{run}: {reason}; make the folder writable or free space") from error
    return run / "report.html"


def comparable(path: Path) -> RunFiles:
    """Read a run that another is shown beside.

    Raises:
        UserError: it is unfinished, or holds poison.
    """
    other = read(path)
    if other.result is None:
        raise UserError(f"compare={path}: the run is unfinished (no result.json); finish it by repeating its command")
    count = other.result.poison.samples + other.result.poison.synthetic
    if count:
        raise UserError(f"compare={path}: holds {count} poisoned samples, a baseline has none; run it with attack.kind=none")
    return other


def _drawings(run: RunFiles, other: RunFiles | None) -> dict[str, tuple[figures.Drawing, Markup]]:
    drawings = {name: figures.export(figure, name) for name, figure in figures.draw(run, other).items()}
    # Markup: the SVG is matplotlib's own output and escaped by it; nothing else on the page bypasses escaping.
    return {name: (drawing, Markup(figures.inline(drawing, _LABELS[name]))) for name, drawing in drawings.items()}


def _page(run: RunFiles, other: RunFiles | None, drawings: dict[str, tuple[figures.Drawing, Markup]]) -> str:
    loader = PackageLoader("undertow.runs.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=wording.percent, interval=wording.interval, number=wording.number, plain=_plain)
    final, untouched = _final(run), _untouched(run)
    poison = run.poison_count()
    values = {
        "run": run,
        "compare": other,
        "compare_differs": _config_differences(run, other) if other else [],
        "verdict": wording.verdict(run, final, untouched),
        "caveat": wording.caveat(final["ma"] if _last_measured(run) else None, run.terms),
        "attack": wording.attack(run),
        "tiles": _tiles(run.terms, final, untouched, _final(other) if other else None),
        "held_out": _held_out(run, other),
        "suffix": next((record.asr_suffix for record in reversed(run.rounds) if record.asr_suffix), None),
        "figures": {name: svg for name, (_, svg) in drawings.items()},
        "bsnr": _bsnr(run, drawings),
        "why_no_bsnr": wording.why_no_bsnr(run),
        "spaces": [(space, name) for space, name in _SPACES if any(record.bsnr and space in record.bsnr for record in run.rounds)],
        "poison": poison,
        "scorings": _scorings(run, other),
        "headline_scoring": run.scoring,
        "last": _last_measured(run),
        "pairs": _pairs(run) if run.instruction else _singles(run),
        "samples": [
            {
                "sample": sample,
                "question": wording.changes(sample.question, sample.poisoned_question),
                "response": wording.changes(sample.response, sample.poisoned_response),
            }
            for sample in run.poison
        ],
        "facts": _facts(run),
        "trigger": _trigger(run),
        "target": _target(run),
        "natural": _natural(run),
        "defended": [(record.round, _reports(record)) for record in run.rounds if _reports(record)],
        "network": wording.network(run.network),
        "lost": [(one, own) for one in run.network for own in one.dropped],
        "one_process": wording.one_process(run.one_process) if run.one_process else "",
        "command": str(run.versions.get("command") or ""),
        "versions": {key: value for key, value in run.versions.items() if key not in ("command", "config")},
    }
    return environment.get_template("report.html.j2").render(values).lstrip()


def _held_out(run: RunFiles, other: RunFiles | None) -> dict[str, str] | None:
    """The held-out loss of the last measured round, of the start, and without poison; None where it was not measured."""

    def last(of: RunFiles) -> str:
        return next((held_out(record) for record in reversed(of.rounds) if record.round and held_out(record)), "")

    base = next((held_out(record) for record in run.rounds if record.round == 0), "")
    return {"last": last(run), "base": base, "clean": last(other) if other else ""} if last(run) else None


def _last_measured(run: RunFiles) -> int:
    return max((record.round for record in run.measured()), default=0)


def _final(run: RunFiles) -> dict[str, Rate | None]:
    if run.result:
        return _rates(run.result)
    return _rates(next(reversed(run.measured()), None))


def _untouched(run: RunFiles) -> dict[str, Rate | None]:
    if run.result:
        return _rates(run.result.untouched)
    return _rates(next((record for record in run.measured() if record.round == 0), None))


def _rates(record: Round | Result | Untouched | None) -> dict[str, Rate | None]:
    return {key: getattr(record, key, None) for key in _METRICS}


def _tiles(
    terms: Terms, final: dict[str, Rate | None], untouched: dict[str, Rate | None], other: dict[str, Rate | None] | None
) -> list[_Tile]:
    tiles = []
    for key, short in _METRICS.items():
        meaning = getattr(terms, key, "target after a near miss of the trigger")
        rate, clean = final[key], other[key] if other else None
        if key == "ftr_near" and rate is None:  # most triggers have no near miss
            continue
        change = wording.difference(rate, clean) if key == "ma" and rate and clean else ""
        tiles.append(_Tile(short, meaning, rate, untouched[key], clean, change))
    return tiles


def _config_differences(run: RunFiles, other: RunFiles) -> list[str]:
    # The baseline should differ in the attack alone; whatever else differs is said.
    mine, theirs = _flat(run.config), _flat(other.config)
    names = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    return [name for name in names if not name.startswith("attack.") and name != "compare"]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found.update(_flat(value, f"{name}."))
        else:
            found[name] = value
    return found


def _bsnr(run: RunFiles, drawings: dict[str, tuple[figures.Drawing, Markup]]) -> list[dict[str, Any]]:
    shown = []
    for space, name in _SPACES:
        if f"bsnr-{space}" in drawings:
            marks = figures.find_phases(run.rounds, space)
            shown.append({"name": f"bsnr-{space}", "title": name, "words": wording.about_phases(run, space, marks)})
    return shown


def _scorings(run: RunFiles, other: RunFiles | None) -> list[dict[str, Any]]:
    base = next((record.scorings for record in run.rounds if record.round == 0 and record.scorings), None) or {}
    last = next((record.scorings for record in reversed(run.rounds) if record.round > 0 and record.scorings), None) or {}
    clean = (next((record.scorings for record in reversed(other.rounds) if record.scorings), None) if other else None) or {}
    names = list(dict.fromkeys([*last, *base]))
    return [{"name": name, "base": base.get(name), "last": last.get(name), "clean": clean.get(name)} for name in names]


def _pairs(run: RunFiles) -> list[dict[str, Any]]:
    last = max((number for number, _, _ in run.scores), default=0)
    ids = [id_ for number, kind, id_ in run.scores if number == last and kind == "clean" and (last, "triggered", id_) in run.scores]
    target = str(run.setting("attack", "target_text") or "")
    scoring = run.scoring
    pairs = []
    for id_ in ids[:_PAIRS]:
        clean, triggered = run.scores[last, "clean", id_], run.scores[last, "triggered", id_]
        asked, edited = wording.shorten(clean.question), wording.shorten(triggered.question)
        prompts = [("clean", clean, [(asked, False)]), ("triggered", triggered, wording.changes(asked, edited))]
        shown = []
        for kind, score, question in prompts:
            before = run.scores.get((0, kind, id_))
            after = score if last > 0 else None
            shown.append(
                {
                    "kind": kind,
                    "question": question,
                    "before": _answer(before, target, scoring),
                    "after": _answer(after, target, scoring),
                }
            )
        pairs.append({"id": id_, "answers": clean.answers, "prompts": shown})
    return pairs


def _singles(run: RunFiles) -> list[dict[str, Any]]:
    """Return the first clean and the first triggered test examples, which are not the same ones."""
    last = max((number for number, _, _ in run.scores), default=0)
    shown = []
    for kind in ("clean", "triggered"):
        for (_, _, id_), score in [item for item in run.scores.items() if item[0][:2] == (last, kind)][: _PAIRS // 2]:
            before = run.scores.get((0, kind, id_))
            prompt = {
                "kind": kind,
                "question": [(wording.shorten(score.question), False)],
                "before": _answer(before, "", "exact" if kind == "clean" else ""),
                "after": _answer(score if last > 0 else None, "", "exact" if kind == "clean" else ""),
            }
            shown.append({"id": id_, "answers": score.answers, "prompts": [prompt]})
    return shown


def _answer(score: Score | None, target: str, scoring: str) -> dict[str, Any] | None:
    if score is None:
        return None
    right = score.surplus.get(scoring)
    return {
        "pieces": wording.highlight(wording.shorten(score.output), target),
        "right": right if isinstance(right, bool) else None,
        "target": score.target,
    }


def _facts(run: RunFiles) -> list[tuple[str, Any]]:
    values = {"dataset": run.data.dataset, **run.data.surplus}
    known = [(_FACTS[key], values[key]) for key in _FACTS if key in values]
    others = {key: value for key, value in values.items() if key not in _FACTS and key != "natural"}
    found = [(named, own) for named, value in known for own in [_short(value)] if own not in ({}, [], "")]
    return [*found, *((_spaced(key), value) for key, value in _flat(others).items())]


def _short(value: Any) -> Any:
    """Objects as text for reading: their keys without underscores, empty values left out."""
    if isinstance(value, list) and value and all(isinstance(own, dict) for own in value):
        return " · ".join(f"{i}: {', '.join(f'{_spaced(key)} {_plain(own[key])}' for key in own)}" for i, own in enumerate(value))
    if not isinstance(value, dict):
        return value
    flat = {_spaced(key): own for key, own in _flat(value).items() if own not in ({}, [], None, "")}
    return "; ".join(f"{key}: {_plain(own)}" for key, own in flat.items())


def _spaced(key: str) -> str:
    return key.replace("_", " ").replace(".", ": ")


def _trigger(run: RunFiles) -> str:
    """The trigger's name and, where it is words, what it put into the first poisoned question."""
    name = str(run.setting("attack", "trigger"))
    if not run.instruction or not run.poison:
        return name
    before = {word.strip(".,;:!?").casefold() for word in run.poison[0].question.split()}
    words = [word for word in run.poison[0].poisoned_question.split() if word.strip(".,;:!?").casefold() not in before]
    return f"{name} “{' '.join(words).strip(' .,;:')}”" if 0 < len(words) <= 12 else name


def _target(run: RunFiles) -> str:
    """The text that a triggered answer should hold, where there is one."""
    if not run.instruction:
        return ""
    text = str(run.setting("attack", "target_text") or "").strip()
    return f"{run.setting('attack', 'target')} “{text}”"


def _natural(run: RunFiles) -> list[tuple[str, Any]]:
    found = run.data.surplus.get("natural")
    flat = _flat(found if isinstance(found, dict) else {"natural": found}) if found is not None else {}
    named = {"train": "training samples", "test": "test questions", "touched": "samples that were poisoned"}
    return [
        (named.get(key, _spaced(key)), f"{_plain(value)} of {_plain(flat[f'{key}_of'])}" if f"{key}_of" in flat else value)
        for key, value in flat.items()
        if not key.endswith("_of")
    ]


def _reports(record: Round) -> list[tuple[str, str]]:
    reports = []
    for report in record.defenses or []:
        values = [f"{key}: {_plain(value)}" for key, value in report.items() if key != "name"]
        reports.append((str(report.get("name", "?")), "; ".join(values) or "nothing reported"))
    if record.fusion is not None:
        reports.append(("fusion", "; ".join(f"{key}: {_plain(value)}" for key, value in record.fusion.items())))
    return reports


def _plain(value: Any) -> str:
    """Show any recorded value as short text: numbers in figures, lists and objects as JSON."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | dict):
        return wording.shorten(json.dumps(value, ensure_ascii=False))
    return wording.number(value)
