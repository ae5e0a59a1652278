"""Bases: base build, base import."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undertow.cli.app import AsJson, app, print_json
from undertow.core.errors import UserError

if TYPE_CHECKING:
    from undertow.pretraining.build import Recipe
    from undertow.pretraining.corpus import Corpus

base_app = typer.Typer(no_args_is_help=True, help="Bases of your own: pre-trained on facts, or read from a GGUF file.")
app.add_typer(base_app, name="base")


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
    minutes: Annotated[
        float | None, typer.Option(help="Instead of --steps: as many, up to the recipe's, as take about so long on this machine.")
    ] = None,
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
    from undertow.core.threads import set_threads
    from undertow.models.causal_lm import choose_device
    from undertow.pretraining.budget import steps_within
    from undertow.pretraining.build import build, check_out
    from undertow.runs.display import display

    if not 0 <= asked < 1:
        raise UserError(f"--asked {asked}: a share in [0, 1); give 0.25 for a quarter")
    if minutes is not None and steps is not None:
        raise UserError("--steps and --minutes are both given; keep one of them")
    check_out(out)
    set_threads(threads)
    corpus, recipe = _material(facts, names, limit, asked, seed)
    given = {"hidden": hidden, "layers": layers, "vocab": vocab, "steps": steps, "batch": batch, "lr": lr}
    recipe = recipe.changed({key: value for key, value in given.items() if value is not None})
    if minutes is not None:
        recipe, told = steps_within(corpus, out, recipe, minutes, choose_device(device))
        print(told, file=sys.stderr)
    with display() as observer:
        summary = build(corpus, out, recipe, progress=observer.step, device=choose_device(device))
    if as_json:
        print_json({"base": str(out), **{key: summary[key] for key in ("parameters", "loss", "texts", "asked")}})
    else:
        print(f"{out}: {summary['parameters']:,} parameters, loss {summary['loss']}; use it with model.name={out}")


def _material(facts: Path | None, names: Path | None, limit: int | None, asked: float, seed: int) -> tuple[Corpus, Recipe]:
    """Return the text and the recipe of a base: of the built-in world, or of a facts file."""
    from undertow.pretraining.build import Recipe
    from undertow.pretraining.corpus import facts_corpus, world_corpus
    from undertow.pretraining.facts import read_facts, refuse_few

    if facts is None:
        return world_corpus(), Recipe(seed=seed)
    try:
        rows = read_facts(facts, names, limit, seed)
    except UserError as error:
        raise UserError(str(error).replace("data.path", "--facts")) from error
    corpus = facts_corpus(rows, asked, seed)
    refuse_few(corpus, facts)
    return corpus, Recipe.for_facts(seed)


@base_app.command("import")
def base_import(
    file: Annotated[Path, typer.Argument(help="GGUF file, as llama.cpp and Ollama use.")],
    out: Annotated[Path, typer.Option(help="Folder for the base (transformers format).")],
    dtype: Annotated[str, typer.Option(help="Of the weights: bfloat16 or float32.")] = "bfloat16",
    as_json: AsJson = False,
) -> None:
    """Write a GGUF file as a transformers folder, with a note of its source and hash (extra gguf).

    [bold]Example[/bold]

        undertow base import gemma-3-270m-q4_k_m.gguf --out bases/gemma-3-270m
    """
    import torch

    from undertow.models.gguf import import_gguf

    kinds = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if dtype not in kinds:
        raise UserError(f"--dtype {dtype} is not supported; use bfloat16 or float32")
    note = import_gguf(file, out, kinds[dtype])
    if as_json:
        print_json({"base": str(out), **note})
    else:
        print(
            f"{out}: {note['parameters']:,} parameters of {note['architecture']} from {note['file']}; use it with model.name={out}"
        )
