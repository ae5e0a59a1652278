from __future__ import annotations

from pathlib import Path

import pytest

from undertow.attacks.contract import make_attack
from undertow.backdoors.trigger import TRIGGERS
from undertow.config import Attack as Options
from undertow.config import Defense
from undertow.core.errors import UserError
from undertow.core.registry import Registry, built
from undertow.defenses.making import make_defenses
from undertow.defenses.registry import DEFENSES
from undertow.listing import list_methods
from undertow.metrics.scoring import SCORINGS
from undertow.models.net import make_net


def test_files_of_the_folder_are_found_and_sorted() -> None:
    names = [entry.name for entry in TRIGGERS.entries()]
    assert names == sorted(names)
    assert {"natural", "badnets", "sentence"} <= set(names)
    assert {entry.name for entry in SCORINGS.entries()} == {"rouge-recall", "exact", "containment"}


def test_every_method_says_what_it_is_and_where_it_comes_from() -> None:
    methods = list_methods()
    assert {method.kind for method in methods} >= {"configs", "datasets", "triggers", "defenses"}
    for method in methods:
        assert method.name
        assert len(method.summary) > 5, method
        assert method.source or method.kind == "configs", method
    with pytest.raises(UserError, match=r"unknown kind 'trigers' \(did you mean 'triggers'\?\)"):
        list_methods("trigers")


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown defense 'medain' \(did you mean 'median'\?\): choose one of .*median"):
        DEFENSES.get("medain")
    with pytest.raises(UserError, match="unknown defense 'zzz': choose one of"):
        DEFENSES.get("zzz")


def test_one_name_for_two_modules_is_refused() -> None:
    registry = Registry("thing", "undertow.defenses")

    def first() -> None:
        """One."""

    def second() -> None:
        """Two."""

    second.__module__ = "elsewhere"
    registry.register("x", source="here")(first)
    registry.register("x", source="here")(first)
    with pytest.raises(ValueError, match="thing 'x' is already registered, by the module test_registry: use it by this name"):
        registry.register("x", source="there")(second)
    assert registry.get("x") is first


@pytest.mark.parametrize(
    ("name", "fitting"), [("my_rule", "my-rule"), ("Krum", "krum"), ("a--b", "a-b"), ("-x", "x"), ("", "my-method")]
)
def test_names_are_kebab_case(name: str, fitting: str) -> None:
    with pytest.raises(UserError, match=f"register it as '{fitting}'$"):
        Registry("defense", "undertow.metrics.scorings").register(name, source="here")


def test_a_refusal_is_told_once() -> None:
    def refuses(size: int) -> None:
        raise UserError(f"size = {size}; give a smaller one") if size > 9 else ValueError("too\nsmall")

    with pytest.raises(UserError, match=r"^size = 10; give a smaller one$"):
        built("x:size=10", refuses, size=10)
    with pytest.raises(UserError, match=r"^x:size=1: too small; correct it$"):
        built("x:size=1", refuses, size=1)


def test_a_users_file_may_hold_dataclasses(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n\n"
        "@dataclass(frozen=True)\nclass Mine:\n    size: int = 3\n",
        encoding="utf-8",
    )
    assert TRIGGERS.get(f"{file}:Mine")().size == 3


def test_a_users_function_by_its_place(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("ANSWER = 42\ndef give():\n    return ANSWER\n")
    assert DEFENSES.get(f"{file}:give")() == 42


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "f", "no file .*give the path of an existing Python file"),
        ("x = 1", "f", "has no function 'f'"),
        ("f = 1", "f", "has no function 'f'"),
        ("def f(:", "f", "cannot be imported: SyntaxError"),
        ("import not_there_at_all", "f", "cannot be imported: ModuleNotFoundError"),
        ("raise RuntimeError('two\\nlines')", "f", "cannot be imported: RuntimeError"),
    ],
)
def test_what_a_users_file_may_lack(tmp_path: Path, content: str | None, name: str, message: str) -> None:
    file = tmp_path / "mine.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        DEFENSES.get(f"{file}:{name}")


def test_what_a_users_method_refuses_is_told_as_it_says_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from undertow.attacks.contract import Attack\nfrom undertow.core.errors import UserError\n\n\n"
        "def refuse(*given: object) -> None:\n    raise UserError('nothing fits; give less')\n\n\n"
        "class Refuses(Attack):\n    def __init__(self) -> None:\n        refuse()\n",
        encoding="utf-8",
    )
    place = f"{tmp_path / 'mine.py'}"
    for make in (
        lambda: make_attack(Options(kind=f"{place}:Refuses")),  # type: ignore[call-arg]
        lambda: make_defenses([Defense(name=f"{place}:refuse")]),
        lambda: make_net(f"{place}:refuse", (1, 8, 8), 10, 0),
    ):
        with pytest.raises(UserError, match=r"^nothing fits; give less$"):
            make()
