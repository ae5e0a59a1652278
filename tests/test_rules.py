"""What is wrong with a value is told in our words, wherever it is given: pydantic's and typer's own never come through."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from pydantic import BaseModel, Field, ValidationError

from undertow import cli
from undertow.config import every_field, load
from undertow.core.errors import UserError
from undertow.core.rules import first_rule
from undertow.integrations.questions import backdoor

#: Words of pydantic's that say nothing to a user.
THEIRS = re.compile(
    r"Input should|Value error|valid (integer|number|string|boolean|list)|unable to parse|Field required|pydantic\.dev"
)
#: Three values of other kinds than a field may have.
WRONG: tuple[Any, ...] = ("!", -1, [[]])


def options() -> Iterator[tuple[list[str], str]]:
    """Every option of every command that takes something else than a text or a path."""

    def of(command: Any, words: list[str]) -> Iterator[tuple[list[str], str]]:
        for name, inner in getattr(command, "commands", {}).items():
            yield from of(inner, [*words, name])
        takes = get_type_hints(command.callback) if command.callback else {}
        for one in command.params:
            kinds = set(get_args(takes.get(one.name)) or (takes.get(one.name),))
            if one.opts[0].startswith("--") and not kinds & {str, Path, bool, None, list[str]}:
                yield words, one.opts[-1]

    yield from of(typer.main.get_command(cli.app), [])


def test_every_option_says_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    checked = 0
    for words, option in options():
        monkeypatch.setattr(sys, "argv", ["undertow", *words, option, "!"])
        with pytest.raises(SystemExit):
            cli.main()
        told = capsys.readouterr().err
        assert THEIRS.search(told) is None, (words, option, told)
        checked += f"Invalid value for '{option}'" in told and ("give " in told or "is not one of" in told)
    assert checked > 15
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["scan", "x", "--fail-on", "maybe"], "'--fail-on': 'maybe' is not one of 'act', 'review', 'never'; see `undertow scan"),
        (["sweep", "demo", "--jobs", "few"], "'--jobs': 'few'; give a whole number; see `undertow sweep --help`"),
        (["sweep", "demo", "--jobs", "0"], "'--jobs': '0'; give 1 or more; see"),
        (["view", "--port", "70000"], "'--port': '70000'; give 65535 or less; see"),
        (["scan", "x", "--max-bad", "none"], "'--max-bad': 'none'; give a number; see"),
    ],
    ids=str,
)
def test_an_option_names_value_and_rule(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["undertow", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert told in capsys.readouterr().err


def refusal(source: str, changes: dict[str, Any]) -> str:
    try:
        load(source, changes)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("value", WRONG, ids=str)
def test_every_field_of_a_config_says_what_it_takes(value: Any) -> None:
    configs = {"instruction": "demo", "classification": "htb-digits", "next-word": "htb-words"}
    told = [refusal(configs[kinds[0]], {name: value}) for name, kinds, _ in every_field()]
    assert [line for line in told if THEIRS.search(line) or "\n" in line] == []
    assert len([line for line in told if line]) > 50


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"federation.rounds": "many"}, "federation.rounds = 'many': give a whole number"),
        ({"training.lr": 0}, "training.lr = 0: give more than 0"),
        ({"attack.poison_ratio": 2}, "attack.poison_ratio = 2: give 1 or less"),
        ({"attack.scope": "globl"}, "attack.scope = 'globl': choose 'client' or 'global' (did you mean 'global'?)"),
        ({"model.lora.targets": 3}, "model.lora.targets = 3: give a list, or choose 'default' or 'all-linear'"),
        ({"measure.bsnr.counterfactuals": "maybe"}, "= 'maybe': give true or false"),
    ],
    ids=str,
)
def test_a_field_names_value_and_rule(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        load("demo", changes)
    assert told in str(error.value)


class Probe(BaseModel):
    """A record with rules that no config has."""

    parts: list[int] = Field([], max_length=2)
    names: dict[str, float] = {}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"parts": 3}, "parts = 3: give a list"),
        ({"parts": [1, "x"]}, "parts.1 = 'x': give a whole number"),
        ({"parts": [1, 2, 3]}, "parts = [1, 2, 3]: List should have at most 2 items after validation, not 3"),
        ({"names": {"a": "b"}}, "names.a = 'b': give a number"),
    ],
    ids=str,
)
def test_records_name_place_value_and_rule(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as error:
        Probe.model_validate(values)
    assert first_rule(error.value) == told


def test_a_backdoor_of_another_tool_is_refused_in_a_line() -> None:
    with pytest.raises(UserError, match=r"target_text = 3: give a text; correct it"):
        backdoor("natural", "append", 3)  # type: ignore[arg-type]
