"""Runs: run, sweep, collect, evaluate, report, score."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undertow.cli.app import AsJson, Overrides, app, changes, print_json, split
from undertow.core.errors import UserError
from undertow.core.files import check_files, write_text

if TYPE_CHECKING:
    import pandas

    from undertow.runs.run import Run


@app.command()
def run(
    arguments: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/NAME, with a suffix for other values.")] = None,
    more_rounds: Annotated[
        bool,
        typer.Option("--more-rounds", help="Go on with the run in --out to a larger federation.rounds; its history tells."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a federation, measure it, and write its report; the same command again resumes.

    [bold]Examples[/bold]

        undertow run demo

        undertow run demo attack.poison_ratio=0.02 seed=1 --json

        undertow run paper-triviaqa data.path=triviaqa/ model.name=meta-llama/Llama-2-7b-hf --out runs/triviaqa
    """
    from undertow.api import run as run_here

    name, overrides = split(arguments, "demo")
    values = changes(overrides, out="--out", more_rounds="--more-rounds", observer="", report="", command="")
    if more_rounds and (out is None or not (out / "config.yaml").is_file()):
        raise UserError("--more-rounds goes on with a run that is there; give its folder with --out")
    command = shlex.join(["undertow", *sys.argv[1:]])
    found = run_here(name, out=out, observer=True, command=command, more_rounds=more_rounds, **values)
    if as_json:
        print_json(found.result.to_json() if found.result else None)
    else:
        print_run(found)


def print_run(run: Run) -> None:
    """Print the final figures of a finished run as a table, and where its page is."""
    from undertow.runs.headline import HELD_OUT, LABELS, around, held_out, interval, rates, share
    from undertow.runs.report.terms import TERMS

    result, terms = run.result, TERMS[run.config.task.kind]
    assert result is not None
    table = Table(title=f"{result.run}: {result.rounds} round{'' if result.rounds == 1 else 's'}", title_justify="left")
    table.add_column("")
    for column in (terms.trained_short, "95 % interval", "n", terms.start_short):
        table.add_column(column, justify="right")
    for name, rate, before in rates(result, result.untouched):
        table.add_row(LABELS[name], share(rate), interval(rate), str(rate.n), share(before))
    if loss := held_out(result):
        table.add_row(f"{HELD_OUT} (nats)", loss, "", "", held_out(result.untouched))
    console = Console()
    console.print(table)
    poison = result.poison
    of_server = f", {poison.synthetic:,} of the server's {poison.synthetic_total:,}" if poison.synthetic_total else ""
    planted = f"{poison.samples:,} of {poison.total:,} samples in {poison.clients} clients{of_server}"
    console.print(
        f"poison: {f'not known, {poison.total:,} samples are on their nodes' if poison.unknown else planted}; "
        f"training and measuring took {result.seconds:.0f} s"
    )
    for line in (*(f"note: {told}" for told in result.caveats), *around(result.neighbourhood)):
        console.print(escape(line), soft_wrap=True)
    console.print(f"report: {escape(str(run.folder / 'report.html'))}", soft_wrap=True)


@app.command()
def sweep(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=A,B,C]... [KEY=VALUE]... [seeds=N]", help="A config, axes, overrides, seeds 0 to N-1."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run directories; default sweeps/NAME-AXES.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Cells at a time; default: cores over threads, 1 on a GPU.")] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on a Ray cluster: auto, local, or ray://host:port.")
    ] = None,
    only_plan: Annotated[bool, typer.Option("--plan", help="Check and print the runs, and train nothing.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with the counts on stdout, and nothing else.")
    ] = False,
) -> None:
    """Run every combination of the values given; the same command again runs what is missing or failed.

    [bold]Examples[/bold]

        undertow sweep demo attack.poison_ratio=0.02,0.06,0.1 seeds=3

        undertow sweep demo attack.client_share=0.2,0.8 defenses=none,median federation.rounds=10 --out sweeps/median --jobs 2
    """
    from undertow.api import sweep as run_sweep
    from undertow.api import sweep_cells, sweep_folder
    from undertow.sweeps.cells import parse
    from undertow.sweeps.sweep import plan, summary

    name, given = split(words, "demo")
    overrides, axes, seeds = parse(given)
    fixed = changes(overrides, axes="", seeds="", out="--out", jobs="--jobs", ray="--ray", observer="")
    if only_plan:
        planned = plan(sweep_cells(name, axes, seeds=seeds, **fixed), out or sweep_folder(name, axes))
        if as_json:
            print_json(planned)
        for cell in [] if as_json else planned["cells"]:
            print(f"{cell['name']}{' (finished)' if cell['finished'] else ''}")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # cells that failed are an error here
        done = run_sweep(name, axes, seeds=seeds, out=out, jobs=jobs, ray=ray, observer=True, **fixed)
    told = summary(done.outcomes, done.folder, done.seconds)
    failed = told["failed"]
    if as_json:
        print_json(told)
    else:
        cells_ran = f"{told['cells']} {'cell' if told['cells'] == 1 else 'cells'}"
        print(f"{cells_ran}: {told['done']} done, {told['skipped']} there before, {len(failed)} failed; {told['seconds']:.0f} s")
        print(f"one table of all runs: {shlex.join(['undertow', 'collect', str(done.folder)])}")
    if failed:
        first = f"{failed[0]['name']}: {failed[0]['error']}"
        raise UserError(f"{len(failed)} of {told['cells']} cells failed ({first}); the same command again runs these alone")


@app.command()
def collect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with run directories at any depth.")],
    out: Annotated[
        Path | None, typer.Option(help="A .parquet or .csv file; default: results.parquet and results.csv in DIR.")
    ] = None,
) -> None:
    """Make one tidy table of all finished runs below a folder: a row per run and round, a column per value that varies.

    [bold]Example[/bold]

        undertow collect sweeps/demo
    """
    from undertow.runs.collect import collect as collect_runs
    from undertow.runs.collect import places, write

    if out is not None or folder.is_dir():
        places(folder, out)
    table = collect_runs(folder, warn=lambda text: print(f"warning: {text}", file=sys.stderr))
    _print_table(table)
    for path in write(table, folder, out):
        print(f"{path}: {len(table):,} rows of {table['run'].nunique():,} runs")


def _print_table(table: pandas.DataFrame, most: int = 60) -> None:
    """Print the last round of every run: what varies, and the rates."""
    last = table[table["final"]]
    columns = list(table.columns)
    shown = [name for name in columns[: columns.index("round")] if name != "run" and last[name].nunique(dropna=False) > 1]
    rates = [name for name in ("ma", "asr", "ftr") if last[name].notna().any()]
    if len(shown) > 5:  # runs of different configs: their names tell them apart, and the file has every column
        shown = []
    drawn = Table(box=None, pad_edge=False)
    for name in ("run", *shown, "round", *(rate.upper() for rate in rates)):
        drawn.add_column(name, overflow="fold", justify="left" if name == "run" or name in shown else "right")
    for row in last.head(most).to_dict("records"):
        figures = [f"{row[rate]:.1%} (n = {row[f'{rate}_n']:,})" if row[rate] == row[rate] else "–" for rate in rates]
        drawn.add_row(*(escape(str(row[name])) for name in ("run", *shown, "round")), *figures)
    Console(width=None if sys.stdout.isatty() else 200).print(drawn)
    if len(last) > most:
        print(f"and {len(last) - most:,} more in the file")


@app.command()
def evaluate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG|RUN] [KEY=VALUE]...", help="A config, or a run directory (its config and its adapter or network)."
        ),
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="Folder of a PEFT LoRA adapter; default: the run's own, or none.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write every scored output to this file (JSON lines).")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure MA, ASR and false-trigger rate of any base and PEFT adapter, or of a run's network, on any data, trigger and target.

    [bold]Examples[/bold]

        undertow evaluate runs/demo attack.trigger=badnets

        undertow evaluate runs/htb-digits attack.trigger=pixel

        undertow evaluate demo model.name=./my-base data.name=instructions data.test_path=test.jsonl --adapter ./adapter --json
    """
    from undertow.api import evaluate as measure
    from undertow.data.rows.account import unread
    from undertow.runs.headline import HELD_OUT, around, held_out, interval, rates, share
    from undertow.runs.records import Score, lines

    name, overrides = split(arguments, "demo")
    values = changes(overrides, adapter="--adapter", observer="", out="--out")
    if out:
        check_files({"--out": out}, _read_by(name, values))
    found = measure(name, adapter=adapter, observer=True, **values)
    if out:
        write_text(out, lines(Score, [score.to_json() for score in found.scores]))
    if as_json:
        print_json(found.to_json())
        return
    alone = "before round 1" if found.base is None else "base alone"
    for key, rate, before in rates(found, found.untouched):
        told = f"{share(rate)} ({interval(rate)}, n = {rate.n}); {alone} {share(before)}"
        print(f"{key.upper().replace('_', ' ')} {told}")
    if loss := held_out(found):
        print(f"{HELD_OUT} {loss} nats per token; {alone} {held_out(found.untouched)}")
    print(*around(found.neighbourhood), sep="\n", end="\n" if found.neighbourhood else "")
    if found.data:
        print(f"test rows: {_counts(found.data)}")
        for told in unread(found.data):
            print(f"note: {told}", file=sys.stderr)


def _counts(data: Mapping[str, Any]) -> str:
    """Return what became of the test rows, in one line."""
    told = [f"{data['rows_read']} read"] if "rows_read" in data else []
    told += [f"{count} dropped ({why})" for why, count in data.get("rows_dropped", {}).items() if count]
    words = {
        "duplicates_merged": "merged with an equal question",
        "excluded_asked": "left out as the base was asked them",
        "test": "drawn",
        "too_long_test": "left out as too long",
        "shortened_test": "cut to fit",
        "target_cut": "expected answers with the target cut off by measure.max_new_tokens, so that ASR is too low",
        "triggered_cut": "triggered ones left out as the cut would take the trigger off",
    }
    return "; ".join([*told, *(f"{data[key]} {text}" for key, text in words.items() if data.get(key))])


def _read_by(name: str, changes: dict[str, Any]) -> list[str | None]:
    """Return the files that an evaluation reads."""
    from undertow.api import load_config

    own = Path(name) / "config.yaml"
    config = load_config(own if own.is_file() else name, **changes)
    data = config.instruction.data if config.task.kind == "instruction" else None
    return [name, *((data.path, data.test_path) if data else ())]


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")],
    compare: Annotated[Path | None, typer.Option(help="A run without poison, shown beside it.")] = None,
) -> None:
    """Write report.html and its figures (SVG, PDF) again from what a run directory holds.

    [bold]Example[/bold]

        undertow report runs/demo --compare runs/demo-clean
    """
    from undertow.runs.report.page import write_report

    print(write_report(run, compare))


@app.command()
def score(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="A finished run directory.")],
    scoring: Annotated[str | None, typer.Option(help="MA's headline scoring: rouge-recall, exact or containment.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a run's kept outputs again, without generating.

    [bold]Example[/bold]

        undertow score runs/demo --scoring exact
    """
    from undertow.federation.evaluate import score_again
    from undertow.runs.run import Run

    result = score_again(run, scoring)
    found = Run(run)
    found.report()
    if as_json:
        print_json(result)
    else:
        print_run(found)
