"""Rooms that are built on one another: imports run one way, and no module needs itself."""

from __future__ import annotations

import graphlib
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PACKAGES = ("undertow", "undertow_reproductions")


@cache
def imports() -> dict[str, set[str]]:
    """Return the modules that each module imports: anywhere in it, and for types too."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def test_imports_run_one_way() -> None:
    # A process of its own: the linter configures logging anew, and absl's handler (of rouge-score) then closes pytest's capture.
    lint = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return one circle of a graph, empty where it has none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert len(imports()) > 300
    assert circle(imports()) == []


def test_no_room_imports_itself_by_way_of_others() -> None:
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, others in imports().items():
        for other in others:
            if room(module) != room(other):
                rooms[room(module)].add(room(other))
    assert circle(rooms) == []


def room(module: str) -> str:
    """Return the folder of undertow that a module lies in; of the reproductions it is one, and the front door another."""
    parts = module.split(".")
    return parts[1] if parts[0] == "undertow" and len(parts) > 1 else parts[0]


def test_a_circle_is_found() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}
