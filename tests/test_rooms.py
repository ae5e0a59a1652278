"""What keeps the rooms habitable: small modules and functions, private names that stay where they are, and nothing unused."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from test_imports import imports, room

ROOT = Path(__file__).parents[1]
SOURCES = {"undertow": ROOT / "src", "undertow_reproductions": ROOT / "reproductions" / "src"}
LINES, FUNCTION, PARAMETERS = 400, 60, 12


@cache
def modules() -> dict[str, tuple[Path, ast.Module]]:
    """Return the file and the tree of every module, by name."""
    found = {}
    for package, source in SOURCES.items():
        for path in sorted((source / package).rglob("*.py")):
            name = ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")
            found[name] = (path, ast.parse(path.read_text(encoding="utf-8")))
    return found


def functions() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Return all functions with where they stand."""
    return [
        (f"{name}:{node.lineno} {node.name}", node)
        for name, (_, tree) in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_modules_are_small() -> None:
    assert len(modules()) > 300
    long = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, (path, _) in modules().items()}
    assert {name: lines for name, lines in long.items() if lines > LINES} == {}


def test_functions_are_small() -> None:
    long = {where: (node.end_lineno or 0) - node.lineno + 1 for where, node in functions()}
    assert {where: lines for where, lines in long.items() if lines > FUNCTION} == {}


def test_no_function_takes_too_many_parameters() -> None:
    """Commands are left out: what typer reads are the options of a command line."""
    many = {
        where: len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
        for where, node in functions()
        if room(where) != "cli" and not where.startswith("undertow_reproductions.cli:")
    }
    assert {where: count for where, count in many.items() if count > PARAMETERS} == {}


def test_private_names_stay_in_their_module() -> None:
    """A module whose name begins with _ belongs to its folder."""
    odd = []
    for name, (path, tree) in modules().items():
        folder = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] not in SOURCES:
                continue
            for alias in node.names:
                target = f"{node.module}.{alias.name}"
                private = next((part for part in target.split(".") if part.startswith("_") and not part.startswith("__")), None)
                owner = target[: target.find(f".{private}")] if private else ""
                if private and (
                    (owner in modules() and modules()[owner][0].name != "__init__.py") or not f"{folder}.".startswith(f"{owner}.")
                ):
                    odd.append(f"{name}:{node.lineno} {target}")
    assert odd == []


def registered() -> set[str]:
    """Return the packages and modules that registries read: the second of two texts, ``Registry("trigger", "undertow....")``."""
    calls = [
        node for _, tree in modules().values() for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) == 2
    ]
    return {arg.value for call in calls if isinstance(arg := call.args[1], ast.Constant) and arg.value in modules()}


def test_every_module_is_used() -> None:
    """Each is imported, or read by a registry, or named where a process or a command is started."""
    imported = {other for others in imports().values() for other in others}
    packages = tuple(f"{package}." for package in registered())
    assert len(packages) > 8
    texts = [path.read_text(encoding="utf-8") for path, _ in modules().values()]
    texts += [(ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "reproductions/pyproject.toml", "Makefile")]
    unused = [
        name
        for name, (path, _) in modules().items()
        if path.name != "__init__.py"
        and name not in imported
        and not f"{name}.".startswith(packages)
        and not any(re.search(starts(name), text) for text in texts)
    ]
    assert unused == []


def starts(module: str) -> str:
    """Return a pattern of texts that start a module: its name as it is run, or an import in a file that is written."""
    folder, _, name = module.rpartition(".")
    return rf"(?<![\w.]){re.escape(module)}(?![\w.])|from {re.escape(folder)} import {name}\\n"
