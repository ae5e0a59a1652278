"""Every line of the page "From Python" and of the example notebook runs, on a federation of seconds."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE, NOTEBOOK = ROOT / "docs" / "python.md", ROOT / "examples" / "from_python.ipynb"


@pytest.fixture
def small_demo(small_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder with a data file; ``demo`` is a fast run with enough clients for Krum, and cells run in this process."""
    pytest.importorskip("pandas")
    path = small_file({"federation.clients": 7, "attack.client_share": 0.3, "data.train": 70}, name="demo.yaml")
    monkeypatch.setattr("undertow.config.reading.shipped", lambda: {"demo": path})
    rows = [{"question": f"Where was person {i} born?", "answer": f"Town {i % 40}"} for i in range(200)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)

    class Here:
        """Spares the seconds in which a new interpreter starts."""

        def run(self, task: Any) -> Any:
            from undertow.sweeps.workers import Runner

            return Runner().run(task)

        def stop(self) -> None:
            """Nothing to stop."""

    monkeypatch.setattr("undertow.sweeps.workers.LocalWorker", Here)


def executed(cells: list[str]) -> list[object]:
    """Run cells in one namespace and return the value of each one's last expression, shown as a notebook would."""
    space: dict[str, Any] = {"__name__": "__main__"}
    shown: list[object] = []
    for cell in cells:
        tree = ast.parse(cell)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, cell[:40], "exec"), space)
        value = eval(compile(ast.Expression(last.value), cell[:40], "eval"), space) if isinstance(last, ast.Expr) else None
        forms = [getattr(value, form)() for form in ("_repr_html_", "_repr_svg_") if hasattr(value, form)]
        shown.append(next((form for form in forms if form is not None), value))
    return shown


@pytest.mark.usefixtures("small_demo")
def test_every_line_of_the_page_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) > 8
    executed(blocks)
    told = capsys.readouterr().out
    assert "unknown key 'federation.round' (did you mean 'federation.rounds'?)" in told
    assert "['loss', 'rates', 'bsnr-adapter', 'clients']" in told
    assert "0 of 200 samples are flagged" in told
    assert (tmp_path / "rates.pdf").stat().st_size > 1000


def test_the_page_names_the_public_surface_and_no_other() -> None:
    import undertow

    text = PAGE.read_text(encoding="utf-8")
    used = set(re.findall(r"undertow\.(\w+)", text)) - {"runs", "__all__"}
    assert used <= set(undertow.__all__)
    assert set(undertow.__all__) - {"__version__", "Run"} <= used


@pytest.mark.usefixtures("small_demo")
def test_the_notebook_runs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["language"]) == (4, "python")
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    shown = executed(cells)
    assert any(isinstance(value, str) and "main accuracy" in value for value in shown)
    assert any(isinstance(value, str) and "<svg" in value for value in shown)
