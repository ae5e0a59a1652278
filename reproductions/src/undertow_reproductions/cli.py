"""The command ``undertow reproduce``, joined to the command line of undertow by an entry point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from undertow.core.errors import UserError

Paper = Annotated[
    str,
    typer.Argument(
        metavar="PAPER",
        help=(
            "fit (Zhao, Hu and Liu, arXiv 2602.15671); htb (How To Backdoor Federated Learning, arXiv 1807.00459); fmfl "
            "(foundation models in federated learning, arXiv 2410.17573); defenses: every aggregator at every rho; "
            "sanitization: all other defenses; counts: does the number of poisoned samples decide, or their share?"
        ),
    ),
]
ProfileName = Annotated[str, typer.Option(help="laptop, pretrained, gpu or paper.")]
Only = Annotated[
    str | None,
    typer.Option(
        help=(
            "Some of table1, fig2a, fig2b, fig3, fig4a, fig4b, fig5, hypotheses (fit), of single, repeated, evasion, kinds, "
            "defended, fit (htb), of defended, vectors, bounds (fmfl), of matrix, cost (defenses), or of matrix, bars, "
            "lasting, filter (sanitization); comma-separated; default: all, or the profile's."
        )
    ),
]
Seeds = Annotated[int | None, typer.Option(help="Seeds of every point; default: the profile's.")]
Out = Annotated[Path | None, typer.Option(help="Folder for runs, bases and document; default runs/reproduce-PAPER-PROFILE.")]
DataFolder = Annotated[
    Path | None,
    typer.Option(help="Folder with real SimpleQuestions and TriviaQA files; sanitization: with the corpora of item filter."),
]
Corpora = Annotated[
    str | None,
    typer.Option(help="sanitization: some of simplequestions, triviaqa, nq, alpaca, comma-separated; default: all in --data."),
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: the cores, 1 on a GPU.")]
Given = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Over every run: another model, data set or defense.")
]
Rules = Annotated[
    str | None,
    typer.Option(help="defenses, sanitization: which rules, comma-separated, with parameters as in krum:f=2; default: all."),
]
Rhos = Annotated[
    str | None,
    typer.Option(help="defenses, sanitization: shares of poisoned clients, comma-separated; default: the profile's."),
]
Base = Annotated[
    Path | None,
    typer.Option(
        help="Profiles pretrained and gpu: folder of the base; default bases/gemma-3-270m, as `make pretrained` leaves it."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object with the final figures on stdout, and nothing else.")]
PlanOnly = Annotated[bool, typer.Option("--plan", help="Print the number of runs and the predicted time, and stop.")]


def reproduce(
    paper: Paper,
    profile: ProfileName = "laptop",
    only: Only = None,
    seeds: Seeds = None,
    out: Out = None,
    data: DataFolder = None,
    base: Base = None,
    corpora: Corpora = None,
    jobs: Jobs = None,
    given: Given = None,
    rules: Rules = None,
    rhos: Rhos = None,
    plan: PlanOnly = False,
    as_json: AsJson = False,
) -> None:
    """Reproduce a paper's tables and figures, or compare all defenses, with intervals and verdicts; resumable.

    [bold]Examples[/bold]

        undertow reproduce fit --plan

        undertow reproduce fit --only fig2a,table1 --seeds 2

        undertow reproduce fit --profile pretrained --data shared/data --plan

        undertow reproduce fit --only fig5 --set model.name=./my-base --set defenses=median --out runs/mine

        undertow reproduce defenses --rules krum,median --rhos 0,0.3,1 --seeds 1

        undertow reproduce htb --only single,evasion

        undertow reproduce sanitization --only matrix,bars --seeds 1
    """
    from undertow_reproductions.report import reproduce as reproduce_paper
    from undertow_reproductions.reproduce import Options

    folder = out or Path("runs") / f"reproduce-{paper}-{profile}"
    options = Options(profile, folder, only, seeds, given or (), data, jobs, plan, rules, rhos, corpora, base)
    summary = reproduce_paper(paper, options)
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
    elif plan:
        print(summary["forecast"])
    else:
        for item, answer in summary["verdicts"].items():
            print(f"{item}: {answer}")
        print(f"document: {summary['document']}")
    if summary.get("failed"):
        name, error = next(iter(summary["failed"].items()))
        raise UserError(f"{len(summary['failed'])} runs failed ({name}: {error}); the same command again tries these alone")
