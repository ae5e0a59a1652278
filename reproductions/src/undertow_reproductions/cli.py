"""The command ``undertow reproduce``, joined to the command line of undertow by an entry point."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from undertow.cli.app import AsJson, print_json
from undertow.core.errors import UserError


def reproduce(
    paper: Annotated[
        str,
        typer.Argument(
            metavar="PAPER",
            help=(
                "fit (Zhao, Hu and Liu, arXiv 2602.15671); htb (How To Backdoor Federated Learning, arXiv 1807.00459); fmfl "
                "(foundation models in federated learning, arXiv 2410.17573); defenses: every aggregator at every rho; "
                "sanitization: all other defenses."
            ),
        ),
    ],
    profile: Annotated[str, typer.Option(help="laptop, gpu or paper.")] = "laptop",
    only: Annotated[
        str | None,
        typer.Option(
            help=(
                "Some of table1, fig2a, fig2b, fig3, fig4a, fig4b, fig5, hypotheses (fit), of single, repeated, evasion, kinds, "
                "defended, fit (htb), of defended, vectors, bounds (fmfl), of matrix, cost (defenses), or of matrix, bars, "
                "lasting, filter (sanitization); comma-separated."
            )
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds of every point; default: the profile's.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for runs, bases and document; default runs/reproduce-PAPER-PROFILE.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with real SimpleQuestions and TriviaQA files; sanitization: with the corpora of item filter."),
    ] = None,
    corpora: Annotated[
        str | None,
        typer.Option(help="sanitization: some of simplequestions, triviaqa, nq, alpaca, comma-separated; default: all in --data."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: the cores, 1 on a GPU.")] = None,
    given: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Over every run: another model, data set or defense.")
    ] = None,
    rules: Annotated[
        str | None,
        typer.Option(help="defenses, sanitization: which rules, comma-separated, with parameters as in krum:f=2; default: all."),
    ] = None,
    rhos: Annotated[
        str | None,
        typer.Option(help="defenses, sanitization: shares of poisoned clients, comma-separated; default: the profile's."),
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

        undertow reproduce htb --only single,evasion

        undertow reproduce sanitization --only matrix,bars --seeds 1
    """
    from undertow_reproductions.report import reproduce as reproduce_paper

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
        print_json(summary)
    elif not plan:
        for item, answer in summary["verdicts"].items():
            print(f"{item}: {answer}")
        print(f"document: {summary['document']}")
    if summary.get("failed"):
        name, error = next(iter(summary["failed"].items()))
        raise UserError(f"{len(summary['failed'])} runs failed ({name}: {error}); the same command again tries these alone")
