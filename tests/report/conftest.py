from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fabricated_run import make_run
from undertow.runs.report.figures import Drawing


@pytest.fixture
def fake_run(tmp_path: Path) -> Callable[..., Path]:
    """Return the fixture maker bound to a temporary folder: ``fake_run("name", affected=3)``."""

    def make(name: str = "demo", **choices: Any) -> Path:
        return make_run(tmp_path / name, **choices)

    return make


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing out where only the words matter: it takes most of the time."""
    monkeypatch.setattr("undertow.runs.report.figures.export", lambda figure, name: Drawing(name, b"<svg ></svg>", b"%PDF"))
