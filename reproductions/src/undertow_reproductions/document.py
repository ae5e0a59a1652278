"""A collection of studies as a document: Markdown, one HTML page that needs nothing but itself, figures as SVG, tables as CSV.

The same finished runs give the same bytes: nothing of the clock or of this machine's folders is written.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from undertow import __version__
from undertow.config import Config, InstructionTask
from undertow.core import files
from undertow.runs.records import read_json
from undertow_reproductions.collection import Collection
from undertow_reproductions.corpora import present
from undertow_reproductions.estimate import Answer, Estimate, Verdict, overall
from undertow_reproductions.lab import FitLab
from undertow_reproductions.results import Results
from undertow_reproductions.study import Plot, Study, Table, Value

#: Tables longer than this stand in their CSV file only.
_ROWS = 45


@dataclass(frozen=True)
class Judged:
    """A statement and its verdict."""

    text: str
    source: str
    verdict: Verdict


@dataclass(frozen=True)
class Section:
    """One item of the document."""

    study: Study
    claims: list[Judged]
    tables: list[Table]
    plots: list[Plot]
    made: str
    failed: list[tuple[str, str]]
    command: str

    @property
    def answer(self) -> Answer:
        """The verdict on all its statements."""
        return overall([claim.verdict.answer for claim in self.claims])

    @property
    def told(self) -> str:
        """The verdict in words; how many of its statements hold where they are apart."""
        if not self.study.apart:
            return self.answer
        if not self.claims:
            return "nothing was measured"
        return f"{sum(claim.verdict.answer == 'holds' for claim in self.claims)} of {len(self.claims)} hold"


def write_document(lab: FitLab, collection: Collection, sections: Sequence[Section]) -> Path:
    """Write the collection's Markdown file, ``index.html``, ``figures/*.svg`` and ``tables/*.csv`` into the lab's folder.

    Returns:
        the path of the Markdown file.
    """
    facts = _facts(lab, sections)
    for section in sections:
        for plot in section.plots:
            files.write_bytes(lab.folder / "figures" / f"{plot.name}.svg", plot.svg)
        for table in section.tables:
            files.write_text(lab.folder / "tables" / f"{table.name}.csv", csv_of(table))
    files.write_text(lab.folder / collection.document, _markdown(lab, collection, sections, facts))
    files.write_text(lab.folder / "index.html", _page(lab, collection, sections, facts))
    return lab.folder / collection.document


def make_section(lab: FitLab, study: Study, results: Results) -> Section:
    """Judge a study and draw it."""
    return Section(
        study=study,
        claims=[Judged(claim.text, claim.source, claim.check(results)) for claim in study.claims],
        tables=study.tables(results),
        plots=study.plots(results),
        made=study.work.told() if study.work else _made(lab, study, results),
        failed=list(results.failed),
        command=command(lab, study),
    )


def _made(lab: FitLab, study: Study, results: Results) -> str:
    """Say of how many runs an item is made, and of how many it should be where some are missing."""
    there, wanted = len(results.runs), len(study.wishes(lab.of(study.id), results))
    return f"{there} runs" if there >= wanted else f"{there} of {wanted} runs, the others are missing"


def command(lab: FitLab, study: Study | None = None) -> str:
    """Return what remakes one item, or the whole; places of this machine are left out."""
    words = ["undertow", "reproduce", lab.collection, "--profile", lab.profile.name]
    if study:
        words += ["--only", study.id]
    if not lab.usual:
        words += ["--seeds", str(len(lab.seeds))]
    if lab.rules:
        words += ["--rules", ",".join(lab.rules)]
    if lab.rhos:
        words += ["--rhos", ",".join(f"{rho:g}" for rho in lab.rhos)]
    if lab.data or any(setting.raw for setting in lab.settings):
        words += ["--data", "DATA"]
    if lab.base:
        words += ["--base", lab.base]
    if lab.data and lab.corpora != present(lab.data):
        words += ["--corpora", ",".join(lab.corpora)]
    for word in lab.given:
        key, _, value = word.partition("=")
        words += ["--set", f"{key}={Path(value).name}" if value.startswith(("/", "~", ".")) else word]
    return shlex.join(words)


def _facts(lab: FitLab, sections: Sequence[Section]) -> list[tuple[str, str]]:
    """What the document says about the whole."""
    seconds, count = 0.0, 0
    made: dict[str, Any] = {}
    for folder in sorted((lab.folder / "cells").glob("*/result.json")):
        seconds += float(read_json(folder).get("seconds") or 0.0)
        count += 1
        if not made and (folder.parent / "versions.json").exists():
            made = read_json(folder.parent / "versions.json")
    left_out = []
    if lab.profile.real and not any(setting.raw for setting in lab.settings):
        names = " and ".join(sorted({setting.dataset for setting in lab.profile.real}))
        left_out.append(("left out", f"{names} rows of Table 1: they need --data, a folder with the real questions"))
    main = lab.main
    attack, tuned, values = main.attack, main.training, main.short_values()
    train, target = values["data"].get("train"), values["attack"].get("target")
    known = [f"{name} {made[name]}" for name in ("python", "torch", "transformers") if isinstance(made.get(name), str)]
    return [
        ("profile", f"{lab.profile.name}: {lab.profile.purpose}"),
        ("main setting", f"{lab.settings[0].dataset}, {lab.settings[0].model}"),
        ("other settings", "; ".join(f"{s.dataset}, {s.model}" for s in lab.settings[1:]) or "none"),
        ("seeds", ", ".join(map(str, lab.seeds))),
        (
            "federation",
            f"{main.federation.clients} clients, {main.federation.rounds} rounds, {tuned.local_epochs} local epoch, "
            f"{'' if train is None else f'{train} training and '}{main.data.test} test samples, {_network(main)}, "
            f"learning rate {tuned.lr:g} ({tuned.schedule})",
        ),
        (
            "attack",
            (
                f"trigger {main.backdoor.trigger}, {'' if target is None else f'target {target}, '}PR {attack.poison_ratio:g}, "
                f"rho {attack.client_share:g}, unless varied"
            ),
        ),
        *left_out,
        ("set by the user", "; ".join(lab.given) or "nothing"),
        ("runs", f"{count} finished, {seconds / 3600:.1f} hours of rounds in all"),
        ("made by", ", ".join([f"undertow {__version__}", *known])),
    ]


def _network(config: Config) -> str:
    lora = config.task.model.lora if isinstance(config.task, InstructionTask) else None
    return f"network {config.model.name}" if lora is None else f"LoRA r {lora.r}"


# --- values ---------------------------------------------------------------------------------------------------------


def csv_of(table: Table) -> str:
    """Return a table as CSV with raw numbers; an estimate fills seven columns."""
    wide = [any(isinstance(row[i], Estimate) for row in table.rows) for i in range(len(table.columns))]
    parts = ("", " low", " high", " wilson low", " wilson high", " n", " seeds")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [f"{name}{part}" for name, is_wide in zip(table.columns, wide, strict=True) for part in (parts if is_wide else ("",))]
    )
    for row in table.rows:
        cells: list[Any] = []
        for value, is_wide in zip(row, wide, strict=True):
            if isinstance(value, Estimate):
                e = value
                cells += [_raw(x) for x in (e.value, e.low, e.high, e.wilson_low, e.wilson_high)] + [e.n or "", e.seeds]
            else:
                cells += [_raw(value)] + [""] * (len(parts) - 1 if is_wide else 0)
        writer.writerow(cells)
    return out.getvalue()


def _raw(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def shown(value: Value) -> str:
    """Return a cell for reading: shares in percent with the wider of both intervals, other numbers to three digits."""
    if value is None:
        return "-"
    if isinstance(value, Estimate):
        if value.n:
            return f"{100 * value.value:.1f} % ({100 * value.least:.1f} to {100 * value.most:.1f})"
        return f"{value.value:.3g} ({value.low:.3g} to {value.high:.3g})"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# --- Markdown ------------------------------------------------------------------------------------------------------------


def _markdown(lab: FitLab, collection: Collection, sections: Sequence[Section], facts: Sequence[tuple[str, str]]) -> str:
    lines = [f"# {collection.title}", "", *collection.introduction, ""]
    lines += ["```sh", command(lab), "```", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {_cell(text)} |" for name, text in facts]
    lines += [
        "",
        "## Summary",
        "",
        "| item | verdict | statements that hold | do not hold | undecided |",
        "| --- | --- | --- | --- | --- |",
    ]
    for section in sections:
        answers = [claim.verdict.answer for claim in section.claims]
        counts = " | ".join(str(answers.count(answer)) for answer in ("holds", "does not hold", "undecided"))
        lines.append(f"| [{section.study.title}](#{_anchor(section.study.title)}) | {section.told} | {counts} |")
    lines += [
        "",
        collection.heading,
        "",
        *(f"* {text}" for text in _notes(lab, collection)),
        "",
        *collection.reading,
    ]
    for section in sections:
        lines += ["", *_section(section, collection)]
    return "\n".join(lines) + "\n"


def _notes(lab: FitLab, collection: Collection) -> tuple[str, ...]:
    return lab.profile.deviations if collection.notes is None else collection.notes


def _section(section: Section, collection: Collection) -> list[str]:
    study = section.study
    lines = [f"## {study.title}", "", study.caption, ""]
    stated, where, ours = collection.columns
    lines += [f"| {stated} | {where} | verdict | {ours} |", "| --- | --- | --- | --- |"]
    for claim in section.claims:
        lines.append(f"| {_cell(claim.text)} | {claim.source} | **{claim.verdict.answer}** | {_cell(claim.verdict.evidence)} |")
    for plot in section.plots:
        lines += ["", f"![{plot.label}](figures/{plot.name}.svg)"]
    for table in section.tables:
        lines += ["", f"[{table.name}.csv](tables/{table.name}.csv): {len(table.rows)} rows"]
        if 0 < len(table.rows) <= _ROWS:
            lines[-1] += "\n"
            lines += [f"| {' | '.join(table.columns)} |", "|" + " --- |" * len(table.columns)]
            lines += [f"| {' | '.join(_cell(shown(value)) for value in row)} |" for row in table.rows]
    if study.deviations:
        lines += ["", "Deviations:", "", *(f"* {text}" for text in study.deviations)]
    if section.failed:
        lines += ["", f"{len(section.failed)} runs failed and are missing above:", ""]
        lines += [f"* `{name}`: {_cell(error)}" for name, error in section.failed]
    return [*lines, "", f"Made from {section.made}; this item alone:", "", "```sh", section.command, "```"]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


# --- HTML ----------------------------------------------------------------------------------------------------------------


def _page(lab: FitLab, collection: Collection, sections: Sequence[Section], facts: Sequence[tuple[str, str]]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(shown=shown, code=_code)
    source = (resources.files("undertow_reproductions") / "templates" / "reproduction.html.j2").read_text(encoding="utf-8")
    # Markup: matplotlib's own output, escaped by it; nothing else on the page bypasses escaping
    drawings = {plot.name: Markup(_inline(plot)) for section in sections for plot in section.plots}
    values = {
        "collection": collection,
        "introduction": " ".join(collection.introduction),
        "sections": sections,
        "facts": facts,
        "drawings": drawings,
        "command": command(lab),
        "notes": _notes(lab, collection),
        "reading": " ".join(collection.reading),
    }
    return environment.from_string(source).render(values).lstrip()


def _code(text: str) -> Markup:
    """Escape a sentence and set its Markdown: code, emphasis and links to the web."""
    told = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    told = re.sub(r"(?<![\w*])\*([^*]+)\*(?![\w*])", r"<em>\1</em>", told)
    return Markup(re.sub(r"\[([^\]]+)\]\((https://[^)\s]+)\)", r'<a href="\2">\1</a>', told))


def _inline(plot: Plot) -> str:
    """Return the SVG as an element of a page, with ids of its own."""
    text = plot.svg.decode()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{plot.name}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label={json.dumps(plot.label)} ', 1)
