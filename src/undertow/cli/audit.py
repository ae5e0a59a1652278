"""Adapters: audit."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from undertow.cli.app import app, print_json
from undertow.core.files import check_files

if TYPE_CHECKING:
    from undertow.auditing.report import AuditReport


@app.command()
def audit(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder of a PEFT LoRA adapter, or of a finished run.")],
    base: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its base: builtin, a folder, a .gguf file or a hub id; default: the run's.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Questions like those it is for: an instruction file, or a text file with one a line.")
    ] = None,
    template: Annotated[str | None, typer.Option(help="How a question becomes a prompt; default: the run's, or lab-qa.")] = None,
    references: Annotated[
        Path | None, typer.Option(help="A folder of adapters of the same base, beside which the weights' figures are shown.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="No further step begins after this time: 90s, 10m, 1h.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep finished steps here; the same command again goes on after them.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
    page: Annotated[Path | None, typer.Option(help="Write the report as one HTML page.")] = None,
    sarif: Annotated[Path | None, typer.Option(help="Write the findings as SARIF 2.1.0, for code scanning.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the findings as JUnit's XML.")] = None,
    texts: Annotated[bool, typer.Option("--texts", help="Tell triggers and targets in SARIF, JUnit and annotations too.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with the report on stdout, and nothing else.")
    ] = False,
) -> None:
    """Ask an adapter whether it is backdoored, without its data, trigger or target; exit code 0: nothing found, 1: found, 2: error,
    3: inconclusive.

    [bold]Examples[/bold]

        undertow audit runs/demo

        undertow audit some-adapter/ --base google/gemma-3-270m --template chat --budget 15m --page audit.html

        undertow audit runs/demo --sarif audit.sarif --junit audit.xml
    """
    from undertow.auditing.budget import seconds_of
    from undertow.federation.adapter_audit import audit as ask

    check_files({"--page": page, "--sarif": sarif, "--junit": junit}, [questions])
    seconds = None if budget is None else seconds_of(budget)
    found = ask(
        adapter,
        base=base,
        questions=questions,
        template=template,
        references=references,
        budget=seconds,
        seed=seed,
        keep=keep,
        observer=True,
    )
    _write(found, page, sarif, junit, texts)
    _tell(found, page, as_json, texts)
    raise typer.Exit(found.exit_code)


def _write(found: AuditReport, page: Path | None, sarif: Path | None, junit: Path | None, texts: bool) -> None:
    """Write the files that were asked for."""
    from undertow.auditing.alerting import write_junit, write_sarif

    if page:
        found.write_page(page)
    if sarif:
        write_sarif(found, sarif, texts)
    if junit:
        write_junit(found, junit, texts)


def _tell(found: AuditReport, page: Path | None, as_json: bool, texts: bool) -> None:
    """Print what was found; in a GitHub workflow as annotations too."""
    from undertow.auditing.alerting import annotated
    from undertow.core.alerts import deaf

    on_github = os.environ.get("GITHUB_ACTIONS") == "true"
    if as_json:
        print_json(found.to_json())
    else:
        with deaf() if on_github else nullcontext():
            _print(found, page)
    if on_github:
        # the standard output of --json is one object and nothing else
        print(*annotated(found, texts), sep="\n", file=sys.stderr if as_json else sys.stdout)


def _print(found: AuditReport, page: Path | None) -> None:
    """Print the verdict, what it rests on, and what an audit cannot see."""
    console = Console()

    def line(text: str) -> None:
        console.print(escape(text), soft_wrap=True, highlight=False)

    line(f"{found.verdict}: {found.reason}")
    for one in found.confirmations[:6]:
        line(f"  {one.sentence()}")
    if found.score is not None:
        line(f"target-first score {found.score:.2f}; {found.seconds['all']:.0f} s, questions: {found.questions['source']}")
    if not found.found:
        line("not a proof of a clean adapter; an audit cannot find " + "; ".join(found.cannot_find))
    if page:
        line(f"page: {page}")
