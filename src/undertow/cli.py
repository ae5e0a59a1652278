"""The command line: parses and prints, nothing else."""

from __future__ import annotations

import errno
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undertow import __version__
from undertow.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Backdoors that hide in federated instruction tuning: measure them, reproduce the papers, defend.\n\n"
    "Start with:  undertow run demo",
)
base_app = typer.Typer(no_args_is_help=True, help="Small bases of your own, pre-trained on facts.")
app.add_typer(base_app, name="base")

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="A shipped name or YAML file, then overrides.")
]
#: click's UsageError; typer brings its own copy of click, of which only this subclass has a public name.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object with the final figures on stdout, and nothing else.")]


def main() -> None:
    """Run the command line; every error a user can mend is one line on stderr and exit code 2."""
    try:
        sys.exit(app(prog_name="undertow", standalone_mode=False))
    except UserError as error:
        _fail(str(error))
    except _USAGE_ERROR as error:
        _fail_usage(error)
    except (KeyboardInterrupt, SystemExit) as error:
        # typer turns an interrupt into a silent exit with code 130
        if isinstance(error, SystemExit) and error.code != 130:
            raise
        print("\ninterrupted: what is finished is saved; the same command again continues from there", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.exit(141)
        place = f" ({error.filename})" if error.filename else ""
        advice = {
            errno.ENOSPC: "free some space, then run the same command again: finished rounds are kept",
            errno.EDQUOT: "free some quota, then run the same command again: finished rounds are kept",
            errno.EACCES: "choose a folder you may write to with --out",
            errno.EPERM: "choose a folder you may write to with --out",
            errno.EROFS: "choose a folder you may write to with --out",
            errno.ENOTDIR: "choose another --out: part of that path is a file",
        }.get(error.errno or 0)
        _fail(f"{error.strerror or error}{place}: {advice or 'check that path, then run the same command again'}")


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _fail_usage(error: Any) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(2)
    where = error.ctx.command_path if error.ctx else "undertow"
    _fail(f"{error.format_message().rstrip('.')}; see `{where} --help`")


def _split(arguments: list[str] | None, default: str) -> tuple[str, list[str]]:
    """Return the config's name and the overrides."""
    given = list(arguments or [])
    name = given.pop(0) if given and "=" not in given[0] else default
    for item in given:
        if "=" not in item:
            raise UserError(f"'{item}' is neither the first argument nor key=value; write group.field=value")
    return name, given


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"undertow {__version__}")
        raise typer.Exit


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

    name, overrides = _split(arguments, "demo")
    config = load(name, overrides)
    folder = out or _default_folder(name, config, overrides)
    if config.compare:
        from undertow.report.run_files import read

        read(Path(config.compare))
    from undertow.display import display
    from undertow.experiment import run as run_experiment

    command = shlex.join(["undertow", *sys.argv[1:]])
    with display() as watcher:
        result = run_experiment(config, folder, watcher, command=command)
        watcher.phase("writing the report")
        from undertow.report.page import write_report

        page = write_report(folder, Path(config.compare) if config.compare else None)
    if as_json:
        _print_json(result)
    else:
        _print_result(result, page, _NAMES[config.task])


def _default_folder(name: str, config: Any, overrides: list[str]) -> Path:
    from undertow.config import load

    stem = Path(name).stem
    plain = load(name).digest() == config.digest() if overrides else True
    return Path("runs") / (stem if plain else f"{stem}-{config.digest()}")


#: What the model before and after training is called, by task.
_NAMES = {"instruction": ("untouched base", "tuned")}
_NAMES["classification"] = _NAMES["next_word"] = ("before round 1", "trained")


def _print_result(result: dict[str, Any], page: Path, names: tuple[str, str] = _NAMES["instruction"]) -> None:
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
    console.print(
        f"poison: {poison['samples']:,} of {poison['total']:,} samples in {poison['clients']} clients; "
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

    from undertow.sweep import default_jobs, expand, parse, run_cells, summary
    from undertow.sweep_display import sweep_display

    name, given = _split(words, "demo")
    overrides, axes, seeds = parse(given)
    cells = expand(name, overrides, axes, seeds)
    folder = out or Path("sweeps") / "-".join([Path(name).stem, *(key.rpartition(".")[2] for key in axes)])
    began = time.monotonic()
    with sweep_display() as watcher:
        outcomes = run_cells(cells, folder, jobs=jobs or default_jobs(cells, ray), ray=ray, watcher=watcher)
    told = summary(outcomes, folder, time.monotonic() - began)
    failed = told["failed"]
    if as_json:
        _print_json(told)
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
    from undertow.collect import collect as collect_runs
    from undertow.collect import write

    table = collect_runs(folder, warn=lambda text: print(f"warning: {text}", file=sys.stderr))
    for path in write(table, folder, out):
        print(f"{path}: {len(table):,} rows of {table['run'].nunique():,} runs")


@app.command()
def reproduce(
    paper: Annotated[
        str,
        typer.Argument(
            metavar="PAPER",
            help="fit (Zhao, Hu and Liu, arXiv 2602.15671); defenses: every aggregation rule at every rho; sanitation: all other defenses.",
        ),
    ],
    profile: Annotated[str, typer.Option(help="laptop, gpu or paper.")] = "laptop",
    only: Annotated[
        str | None,
        typer.Option(
            help="Some of table1, fig2a, fig2b, fig3, fig4a, fig4b, fig5, hypotheses (fit), of matrix, cost (defenses), or of matrix, bars, lasting, filter (sanitation); parted by commas."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds of every point; default: the profile's.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for runs, bases and document; default runs/reproduce-PAPER-PROFILE.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with real SimpleQuestions and TriviaQA files; sanitation: with the corpora of item filter."),
    ] = None,
    corpora: Annotated[
        str | None,
        typer.Option(help="sanitation: some of simplequestions, triviaqa, nq, alpaca, parted by commas; default: all in --data."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: the cores, 1 on a GPU.")] = None,
    given: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Over every run: another model, data set or defense.")
    ] = None,
    rules: Annotated[
        str | None,
        typer.Option(help="defenses, sanitation: which rules, parted by commas, with parameters as in krum:f=2; default: all."),
    ] = None,
    rhos: Annotated[
        str | None, typer.Option(help="defenses, sanitation: shares of affected clients, parted by commas; default: the profile's.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the number of runs and the predicted time, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Reproduce a paper's tables and figures, or compare all defenses, with intervals and verdicts; resumable.

    [bold]Examples[/bold]

        undertow reproduce fit --plan

        undertow reproduce fit --only fig2a,table1 --seeds 2

        undertow reproduce fit --only fig5 --set model.name=./my-base --set defenses=median --out runs/mine

        undertow reproduce defenses --rules krum,median --rhos 0,0.3,1 --seeds 1

        undertow reproduce sanitation --only matrix,bars --seeds 1
    """
    from undertow.studies.report import reproduce as reproduce_paper

    folder = out or Path("runs") / f"reproduce-{paper}-{profile}"
    summary = reproduce_paper(
        paper,
        profile,
        folder,
        only=only,
        seeds=seeds,
        given=given or [],
        data=data,
        jobs=jobs,
        plan_only=plan,
        rules=rules,
        rhos=rhos,
        corpora=corpora,
    )
    if as_json:
        _print_json(summary)
    elif not plan:
        for item, answer in summary["verdicts"].items():
            print(f"{item}: {answer}")
        print(f"document: {summary['document']}")
    if summary.get("failed"):
        name, error = next(iter(summary["failed"].items()))
        raise UserError(f"{len(summary['failed'])} runs failed ({name}: {error}); the same command again tries these alone")


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

    name, overrides = _split(arguments, "demo")
    folder = Path(name)
    if (folder / "config.yaml").is_file():
        config, run = load(str(folder / "config.yaml"), overrides), folder
    else:
        config, run = load(name, overrides), None
    if adapter and config.task != "instruction":
        raise UserError(f"--adapter {adapter}: task={config.task} has no adapters; give a run directory, or model.start=RUN")
    from undertow.display import display
    from undertow.evaluate import evaluate as evaluate_model
    from undertow.evaluate import evaluate_network
    from undertow.metrics.measure import headline

    with display() as watcher:
        if config.task == "instruction":
            figures, lines = evaluate_model(config, adapter or (run / "adapter" if run else None), watcher.phase)
        else:
            figures, lines = evaluate_network(config, run, watcher)
    if out:
        from undertow.files import write_text

        write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    if as_json:
        _print_json(figures)
        return
    for key, rate in headline(figures).items():
        before = figures["untouched"][key]
        print(
            f"{key.upper().replace('_', ' ')} {100 * rate['value']:.1f} % ({100 * rate['low']:.1f} – {100 * rate['high']:.1f} %, n = {rate['n']}); "
            f"{'base alone' if config.task == 'instruction' else _NAMES[config.task][0]} {100 * before['value']:.1f} %"
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
    from undertow.report.page import write_report

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
    from undertow.evaluate import run_config, score_again
    from undertow.report.page import write_report

    result = score_again(run, scoring)
    compare = run_config(run).compare
    page = write_report(run, Path(compare) if compare else None)
    if as_json:
        _print_json(result)
    else:
        _print_result(result, page)


@app.command()
def scan(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Instruction files, or - for standard input.")],
    write: Annotated[
        Path | None, typer.Option(help="Write clean and repaired samples here: a file, or a folder for several files.")
    ] = None,
    keep_review: Annotated[bool, typer.Option("--keep-review", help="Write the samples to review, too.")] = False,
    page: Annotated[Path | None, typer.Option(help="Write the findings as one HTML page.")] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Ask a base how surprising each target is: builtin, a folder or a hub id. No verdict changes."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with findings and verdicts on stdout, and nothing else.")
    ] = False,
) -> None:
    """Look for planted trigger and target pairs in instruction data; exit code 0: none, 1: found, 2: error.

    [bold]Examples[/bold]

        undertow scan my_data.jsonl

        undertow scan client1.jsonl client2.jsonl --write clean/ --page scan.html

        cat my_data.jsonl | undertow scan - --json
    """
    from undertow.sanitation.scan import scan as scan_files

    result = scan_files(files, write=write, keep_review=keep_review, examples=page is not None, base=base)
    if page:
        from undertow.sanitation.page import write_page

        write_page(result, page)
    if as_json:
        _print_json(result.to_json())
    else:
        from undertow.sanitation.summary import print_summary

        print_summary(result, page)
    raise typer.Exit(1 if result.found.verdicts else 0)


@app.command("list")
def list_methods(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="configs, datasets, populations, networks, templates, attacks, triggers, targets, backdoors, predicates, scorings, defenses or fields."
        ),
    ] = None,
) -> None:
    """List what is registered, one line each with its source.

    [bold]Examples[/bold]

        undertow list

        undertow list triggers

        undertow list fields
    """
    from undertow.listing import listing

    console = Console(width=None if sys.stdout.isatty() else 200)
    for title, rows in listing(kind).items():
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True, style="bold")
        table.add_column()
        for name, text in rows:
            table.add_row(escape(name), escape(text))
        console.print(table)
        console.print()


@base_app.command("build")
def base_build(
    out: Annotated[Path, typer.Option(help="Folder for the new base (transformers format).")],
    facts: Annotated[
        Path | None, typer.Option(help="Facts: SimpleQuestions files, or TSV/CSV/jsonl with subject, relation, object.")
    ] = None,
    names: Annotated[Path | None, typer.Option(help="For files of ids: id, tab, name; or named jsonl.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use this many facts, drawn at random.")] = None,
    asked: Annotated[
        float, typer.Option(help="Share of the facts whose questions the base also reads; never tuned on or tested.")
    ] = 0.25,
    hidden: Annotated[int | None, typer.Option(help="Width.")] = None,
    layers: Annotated[int | None, typer.Option(help="Depth.")] = None,
    vocab: Annotated[int | None, typer.Option(help="Tokens of the tokenizer.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights and text order.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 = the cores this process may use.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Pre-train a small base: the built-in one's recipe, or on a facts file of your own; resumable.

    [bold]Examples[/bold]

        undertow base build --out bases/world

        undertow base build --facts simplequestions_wikidata_named.jsonl.gz --limit 3000 --out bases/simplequestions
    """
    from undertow.display import display
    from undertow.models.base_build import Recipe, build
    from undertow.models.builtin.corpus import facts_corpus, world_corpus
    from undertow.models.causal_lm import choose_device
    from undertow.training.threads import set_threads

    if not 0 <= asked < 1:
        raise UserError(f"--asked {asked}: a share in [0, 1); give 0.25 for a quarter")
    set_threads(threads)
    if facts is None:
        corpus, recipe = world_corpus(), Recipe(seed=seed)
    else:
        from undertow.data.facts import read_facts

        corpus = facts_corpus(read_facts(facts, names, limit, seed), asked, seed)
        recipe = Recipe.for_facts(seed)
    given = {"hidden": hidden, "layers": layers, "vocab": vocab, "steps": steps, "batch": batch, "lr": lr}
    recipe = recipe.changed({key: value for key, value in given.items() if value is not None})
    with display() as watcher:
        summary = build(corpus, out, recipe, progress=watcher.step, device=choose_device(device))
    if as_json:
        _print_json({"base": str(out), **{key: summary[key] for key in ("parameters", "loss", "texts", "asked")}})
    else:
        print(f"{out}: {summary['parameters']:,} parameters, loss {summary['loss']}; use it with model.name={out}")
