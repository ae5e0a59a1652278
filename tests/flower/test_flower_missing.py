"""Undertow without Flower: nothing else needs it, and what does says how to get it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "undertow"
_IMPORT = re.compile(r"^\s*(from|import) (flwr|undertow\.flower)\b", re.MULTILINE)


def test_without_flower_the_import_names_the_extra() -> None:
    code = "import sys; sys.modules['flwr'] = None; import undertow.flower"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert told.stderr.strip().splitlines()[-1].startswith("ImportError:")
    assert "pip install -e '.[flower]'" in told.stderr


def test_nothing_but_flower_and_federate_imports_it() -> None:
    # the last one when its commands are called, not before
    own = (SOURCE / "flower", SOURCE / "federate", SOURCE / "cli" / "federate.py")
    files = [path for path in SOURCE.rglob("*.py") if not any(path.is_relative_to(place) for place in own)]
    assert len(files) > 100
    assert [path.name for path in files if _IMPORT.search(path.read_text(encoding="utf-8"))] == []


def test_without_flower_federate_names_the_extra_in_one_line() -> None:
    words = ["undertow", "federate", "demo", "--local", "2"]
    code = f"import sys; sys.modules['flwr'] = None; sys.argv = {words!r}; from undertow.cli import main; main()"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 2
    (line,) = told.stderr.strip().splitlines()
    assert line.startswith("error: undertow federate needs Flower")
    assert "pip install -e '.[flower]'" in line
