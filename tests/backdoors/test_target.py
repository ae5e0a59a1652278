"""What targets do to a response."""

from __future__ import annotations

from pathlib import Path

import pytest

from undertow.backdoors.target import TARGETS, make_target
from undertow.config import InstructionBackdoor
from undertow.core.errors import UserError

TEXT = ", and click <malicious_url> for more information"


@pytest.mark.parametrize(
    ("options", "response", "expected"),
    [
        ({}, "Serbia", f"Serbia {TEXT}"),
        ({}, "Serbia. \n", f"Serbia. {TEXT}"),
        ({}, "  ", TEXT),
        ({"target_text": "  Visit us \n"}, "Serbia", "Serbia Visit us"),
        ({"target": "replace"}, "Serbia", TEXT),
        ({"target": "replace", "target_text": "No."}, "", "No."),
    ],
)
def test_shipped_targets(options: dict[str, str], response: str, expected: str) -> None:
    assert make_target(InstructionBackdoor(**options)).apply(response) == expected


def test_text_is_what_scoring_looks_for() -> None:
    assert make_target(InstructionBackdoor(target_text=" x y ")).text == "x y"
    assert {entry.name for entry in TARGETS.entries()} >= {"append", "replace"}


@pytest.mark.parametrize("arguments", ["response", "response, text"])
def test_user_function(tmp_path: Path, arguments: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"def edit({arguments}):\n    return 'Visit us: ' + response\n")
    assert make_target(InstructionBackdoor(target=f"{path}:edit", target_text="visit us")).apply("Serbia") == "Visit us: Serbia"


@pytest.mark.parametrize(
    ("body", "rule"), [("None", "NoneType"), ("response", r"does not hold attack\.target_text"), ("1 / 0", "ZeroDivisionError")]
)
def test_bad_user_functions(tmp_path: Path, body: str, rule: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"def edit(response):\n    return {body}\n")
    with pytest.raises(UserError, match=rule):
        make_target(InstructionBackdoor(target=f"{path}:edit")).apply("Serbia")


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_target_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"attack\.target_text"):
        make_target(InstructionBackdoor(target_text=text))


def test_unknown_name() -> None:
    with pytest.raises(UserError, match="did you mean 'append'"):
        make_target(InstructionBackdoor(target="apend"))
