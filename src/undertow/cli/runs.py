"""Runs: run, sweep, collect, evaluate, report, score."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undertow.cli.app import AsJson, Overrides, app, print_json, split
from undertow.core.errors import UserError


@app.command()
def run(
    arguments: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/NAME, with a suffix for other values.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a federation, measure it, and write its report; the same command again resumes.

    [bold]Examples[/bold]

        undertow run demo

        undertow run demo attack.poison_ratio=0.02 seed=1 --json

        undertow run paper-triviaqa data.path=triviaqa/ model.name=meta-llama/Llama-2-7b-hf --out runs/triviaqa
    """
    from undertow.config import load

    name, overrides = split(arguments, "demo")
    config = load(name, overrides)
    folder = out or default_folder("runs", name, config, overrides)
    if config.compare:
        from undertow.runs.report.run_files import read

        read(Path(config.compare))
    from undertow.federation.loop import run as run_experiment
    from undertow.runs.display import display

    command = shlex.join(["undertow", *sys.argv[1:]])
    with display() as observer:
        result = run_experiment(config, folder, observer, command=command)
        observer.phase("writing the report")
        from undertow.runs.report.page import write_report

        page = write_report(folder, Path(config.compare) if config.compare else None)
    if as_json:
        print_json(result)
    else:
        print_result(result, page, NAMES[config.task.kind])


def default_folder(parent: str, name: str, config: Any, overrides: list[str]) -> Path:
    """Return where a run of a config goes where nothing is said: its name, with a digest where overrides change a value."""
    from undertow.config import load

    stem = Path(name).stem
    plain = load(name).digest() == config.digest() if overrides else True
    return Path(parent) / (stem if plain else f"{stem}-{config.digest()}")


#: What the model before and after training is called, by task.
NAMES = {"instruction": ("untouched base", "tuned")}
NAMES["classification"] = NAMES["next-word"] = ("before round 1", "trained")


def print_result(result: dict[str, Any], page: Path, names: tuple[str, str] = NAMES["instruction"]) -> None:
    """Print the final figures of a run as a table, and where its page is; ``names``: of the model before and after."""
    from undertow.metrics.measure import headline

    table = Table(title=f"{result['run']}: {result['rounds']} rounds", title_justify="left")
    table.add_column("")
    before_training, after = names
    for column in (after, "95 % interval", "n", before_training):
        table.add_column(column, justify="right")
    said = ("main accuracy (MA)", "attack success rate (ASR)", "false-trigger rate (FTR)", "FTR, near misses")
    labels = dict(zip(("ma", "asr", "ftr", "ftr_near"), said, strict=True))
    for key in headline(result):
        label, rate, before = labels[key], result[key], result["untouched"][key]
        table.add_row(
            label,
            f"{100 * rate['value']:.1f} %",
            f"{100 * rate['low']:.1f} – {100 * rate['high']:.1f} %",
            str(rate["n"]),
            f"{100 * before['value']:.1f} %",
        )
    console = Console()
    console.print(table)
    poison = result["poison"]
    of_server = f", {poison['synthetic']:,} of the server's {poison['synthetic_total']:,}" if "synthetic" in poison else ""
    planted = f"{poison['samples']:,} of {poison['total']:,} samples in {poison['clients']} clients{of_server}"
    console.print(
        f"poison: {'not known, ' + format(poison['total'], ',') + ' samples are on their nodes' if poison.get('unknown') else planted}; "
        f"training and measuring took {result['seconds']:.0f} s"
    )
    console.print(f"report: {escape(str(page))}", soft_wrap=True)


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

        undertow sweep demo attack.affected_share=0.2,0.8 defenses=none,median federation.rounds=10 --out sweeps/median --jobs 2
    """
    import time

    from undertow.sweeps.display import sweep_display
    from undertow.sweeps.sweep import default_jobs, expand, parse, plan, run_cells, summary

    name, given = split(words, "demo")
    overrides, axes, seeds = parse(given)
    cells = expand(name, overrides, axes, seeds)
    folder = out or Path("sweeps") / "-".join([Path(name).stem, *(key.rpartition(".")[2] for key in axes)])
    if only_plan:
        planned = plan(cells, folder)
        if as_json:
            print_json(planned)
        for cell in [] if as_json else planned["cells"]:
            print(f"{cell['name']}{' (finished)' if cell['finished'] else ''}")
        return
    began = time.monotonic()
    with sweep_display() as observer:
        outcomes = run_cells(cells, folder, jobs=jobs or default_jobs(cells, ray), ray=ray, observer=observer)
    told = summary(outcomes, folder, time.monotonic() - began)
    failed = told["failed"]
    if as_json:
        print_json(told)
    else:
        print(
            f"{told['cells']} {'cell' if told['cells'] == 1 else 'cells'}: {told['done']} done, {told['skipped']} there before, {len(failed)} failed; {told['seconds']:.0f} s"
        )
        print(f"one table of all runs: {shlex.join(['undertow', 'collect', str(folder)])}")
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
    from undertow.runs.collect import write

    table = collect_runs(folder, warn=lambda text: print(f"warning: {text}", file=sys.stderr))
    for path in write(table, folder, out):
        print(f"{path}: {len(table):,} rows of {table['run'].nunique():,} runs")


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
    from undertow.config import load

    name, overrides = split(arguments, "demo")
    folder = Path(name)
    if (folder / "config.yaml").is_file():
        config, run = load(str(folder / "config.yaml"), overrides), folder
    else:
        config, run = load(name, overrides), None
    if adapter and config.task.kind != "instruction":
        raise UserError(f"--adapter {adapter}: task={config.task.kind} has no adapters; give a run directory, or model.start=RUN")
    from undertow.federation.evaluate import evaluate as evaluate_model
    from undertow.federation.evaluate import evaluate_network
    from undertow.metrics.measure import headline
    from undertow.runs.display import display

    with display() as observer:
        if config.task.kind == "instruction":
            figures, lines = evaluate_model(config, adapter or (run / "adapter" if run else None), observer.phase)
        else:
            figures, lines = evaluate_network(config, run, observer)
    if out:
        from undertow.core.files import write_text

        write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    if as_json:
        print_json(figures)
        return
    for key, rate in headline(figures).items():
        before = figures["untouched"][key]
        print(
            f"{key.upper().replace('_', ' ')} {100 * rate['value']:.1f} % ({100 * rate['low']:.1f} – {100 * rate['high']:.1f} %, n = {rate['n']}); "
            f"{'base alone' if config.task.kind == 'instruction' else NAMES[config.task.kind][0]} {100 * before['value']:.1f} %"
        )


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
    from undertow.federation.evaluate import run_config, score_again
    from undertow.runs.report.page import write_report

    result = score_again(run, scoring)
    compare = run_config(run).compare
    page = write_report(run, Path(compare) if compare else None)
    if as_json:
        print_json(result)
    else:
        print_result(result, page)
