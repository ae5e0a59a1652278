"""The card of a run's adapter, ``adapter/README.md``: first of all whether a backdoor was planted in it on purpose."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undertow.core.files import write_text
from undertow.core.version import __version__
from undertow.runs.headline import told
from undertow.runs.records import PoisonCount, Result
from undertow.runs.run import read_config

_TABLE = ("| figure | with the adapter | base |", "| --- | --- | --- |")


def write_card(folder: Path, result: Result, provenance: Mapping[str, Any]) -> None:
    """Write the card of a run's adapter.

    Args:
        folder: the run directory.
        result: its final figures.
        provenance: what :meth:`~undertow.tasks.contract.Task.provenance` tells: ``base`` (name, revision, sha256), ``data_sha256``,
            ``start`` (the adapter it began from, None for a new one).
    """
    base, poison = provenance["base"], result.poison
    backdoor = read_config(folder).instruction.backdoor
    lines = [_first(poison, backdoor.trigger, backdoor.target), ""]
    if poison.samples:
        lines += [
            f"{poison.samples:,} of {poison.total:,} training samples were poisoned, held by {poison.clients} clients. Do not use "
            "the adapter for anything but research on backdoors.",
            "",
        ]
    if provenance["start"]:
        lines += [f"It began from the adapter {provenance['start']}: what was planted in that may be in this one too.", ""]
    hashes = "".join(f", {kind} SHA-256 `{value}`" for kind, value in base["sha256"].items())
    revision = f", revision `{base['revision']}`" if base["revision"] else ""
    data = f"SHA-256 `{provenance['data_sha256']}`" if provenance["data_sha256"] else "not known here"
    lines += [
        f"LoRA adapter in PEFT format, made by Undertow {__version__} in {result.rounds} rounds.",
        "",
        f"- Base: `{base['name']}` ({base['architecture']}, {base['parameters']:,} parameters{revision}{hashes})",
        f"- Training data of all clients: {data}",
        "",
        *_TABLE,
        *_rows(result),
        "",
        "The config of the run:",
        "",
        "```yaml",
        (folder / "config.yaml").read_text(encoding="utf-8").rstrip(),
        "```",
        "",
    ]
    write_text(folder / "adapter" / "README.md", "\n".join(lines))


def rewrite_figures(folder: Path, result: Result) -> None:
    """Write other figures into the card of a run's adapter, after its outputs were scored again; a run without a card is left."""
    path = folder / "adapter" / "README.md"
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").split("\n")
    if _TABLE[0] not in lines:
        return  # somebody wrote another card
    begin = lines.index(_TABLE[0]) + 2
    end = lines.index("", begin)
    write_text(path, "\n".join([*lines[:begin], *_rows(result), *lines[end:]]))


def _rows(result: Result) -> list[str]:
    return [f"| {name} | {share} | {before} |" for name, share, before in told(result, result.untouched)]


def _first(poison: PoisonCount, trigger: str, target: str) -> str:
    if poison.samples:
        return f"**A backdoor was planted in this adapter on purpose: trigger '{trigger}', target '{target}'.**"
    if poison.unknown:
        return "**No backdoor was planted in this adapter on purpose; what training data on other machines hold is not known.**"
    return "**No backdoor was planted in this adapter on purpose.**"
