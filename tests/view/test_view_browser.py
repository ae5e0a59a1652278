"""The page in a real browser: found, filtered, compared, watched, and never fooled by what it shows."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fabricated_run import TARGET, make_run, score, write_lines

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytest.importorskip("starlette", reason="the extra view is not installed: pip install -e '.[view]'")
uvicorn = pytest.importorskip("uvicorn", reason="the extra view is not installed: pip install -e '.[view]'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
if BROWSER is None:
    pytest.skip("no Chromium is installed", allow_module_level=True)
view = pytest.importorskip("undertow.view.app")

HOSTILE = "<img src=x onerror=window.pwned=1>"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over two fields and two seeds, a run with a hostile name and hostile outputs, and one that goes on."""
    root = tmp_path_factory.mktemp("study")
    for affected in (2, 6):
        for every in (1, 2):
            make_run(root / "sweep" / f"share{affected}-every{every}", affected=affected, rounds=4, every=every)
    bad = make_run(root / HOSTILE, affected=4, rounds=4)
    lines = [score(4, kind, i, True) | {"id": f"t{i}"} for i in range(5000) for kind in ("clean", "triggered")]
    lines[0]["output"] = lines[1]["output"] = f"{HOSTILE} {TARGET}"
    lines[0]["target"] = True
    write_lines(bad / "scores.jsonl", lines)
    make_run(root / "going", rounds=9, done=3)
    (root / "scan.json").write_text(
        json.dumps(
            {
                "undertow": "0.1.0",
                "files": [HOSTILE],
                "samples": 9,
                "flagged": 1,
                "drop": 1,
                "repair": 0,
                "review": 0,
                "findings": [{"kind": "trigger-target", "trigger": HOSTILE, "target": "t", "reason": "r"}],
                "verdicts": [{"index": 3, "verdict": "drop", "reason": HOSTILE, "findings": [0]}],
            }
        )
    )
    rate = {"value": 0.99, "low": 0.97, "high": 1.0, "n": 40}
    audit = {
        "adapter": "a",
        "base": "b",
        "verdict": "found",
        "reason": HOSTILE,
        "confirmations": [{"target": HOSTILE, "asr": rate}],
    }
    (root / "audit.json").write_text(json.dumps({**audit, "cannot_find": ["x"]}))
    return root


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(view.make_app(folder), host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser.new_page()
        browser.close()


@pytest.fixture
def complaints(page: Any) -> Iterator[list[str]]:
    """Errors and refusals that the browser tells; there must be none."""
    told: list[str] = []

    def console(message: Any) -> None:
        if message.type in ("error", "warning"):
            told.append(message.text)

    page.on("console", console)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("dialog", lambda dialog: told.append(dialog.message))
    yield told
    page.remove_listener("console", console)


def test_filter_sort_group_and_compare(page: Any, address: str, complaints: list[str]) -> None:
    page.goto(address)
    playwright.expect(page.locator("tbody tr")).to_have_count(6)
    page.keyboard.press("/")
    page.keyboard.type("asr>0.1 rho=0.6")
    playwright.expect(page.locator("tbody tr")).to_have_count(2)
    playwright.expect(page.get_by_text("2 of 6 runs")).to_be_visible()
    page.get_by_label("group by").select_option("measure.every")
    playwright.expect(page.locator("tr.group")).to_have_count(2)
    for box in page.locator("tr.group input").all():
        box.check()
    page.get_by_role("button", name="Compare 2").click()
    playwright.expect(page.locator("svg.chart")).to_be_visible()
    playwright.expect(page.locator(".legend li")).to_have_count(2)
    playwright.expect(page.get_by_role("row", name="measure.every 1 2")).to_be_visible()
    page.get_by_label("curve of").select_option("ma")
    playwright.expect(page.locator("svg.chart")).to_contain_text("MA")
    assert complaints == []


def test_the_heat_map_leads_to_an_output_that_shows_the_backdoor(page: Any, address: str, complaints: list[str]) -> None:
    page.goto(f"{address}#/heat?filter=sweep")
    page.get_by_role("button", name="ρ 0.6").first.click()
    page.get_by_role("link", name="see outputs in which the backdoor fired").first.click()
    playwright.expect(page.get_by_text("⚑ fooled").first).to_be_visible()
    assert TARGET in (page.locator(".side.fired .answer mark").first.text_content() or "")
    assert complaints == []


def test_a_new_round_appears_by_itself(page: Any, address: str, folder: Path, complaints: list[str]) -> None:
    page.goto(address)
    playwright.expect(page.get_by_text("round 3 of 9")).to_be_visible()
    lines = (folder / "going" / "rounds.jsonl").read_text()
    last = json.loads(lines.splitlines()[-1]) | {"round": 4}
    (folder / "going" / "rounds.jsonl").write_text(f"{lines}{json.dumps(last)}\n")
    playwright.expect(page.get_by_text("round 4 of 9")).to_be_visible(timeout=15_000)
    assert complaints == []


def test_hostile_names_and_outputs_are_text(page: Any, address: str, complaints: list[str]) -> None:
    page.goto(address)
    page.get_by_role("link", name=HOSTILE).click()
    playwright.expect(page.get_by_role("heading", name=HOSTILE)).to_be_visible()
    page.get_by_role("link", name="Outputs").click()
    playwright.expect(page.get_by_text(HOSTILE).nth(1)).to_be_visible()
    page.get_by_role("button", name="false trigger").click()
    playwright.expect(page.get_by_text("1 shown")).to_be_visible()
    page.get_by_role("link", name="Scans and audits (2)").click()
    page.get_by_role("link", name="scan.json").click()
    playwright.expect(page.get_by_text(HOSTILE).first).to_be_visible()
    page.get_by_role("link", name="audit.json").click()
    playwright.expect(page.get_by_text("⚑ found")).to_be_visible()
    found = page.get_by_role("row", name="99.0 % (97.0 % – 100.0 %, n = 40)")
    playwright.expect(found).to_contain_text(HOSTILE)
    assert page.locator("main img").count() == 0
    assert page.evaluate("window.pwned") is None
    assert complaints == []


def test_ten_thousand_outputs_by_keyboard(page: Any, address: str, complaints: list[str]) -> None:
    page.goto(f"{address}#/run?path={HOSTILE.replace(' ', '%20')}&tab=outputs")
    listed = page.get_by_role("listbox")
    playwright.expect(page.get_by_text("5,000 shown")).to_be_visible()
    listed.focus()
    page.keyboard.press("End")
    playwright.expect(page.get_by_text("(question 4999)").first).to_be_visible()
    assert listed.get_by_role("option").count() < 60
    page.keyboard.press("Enter")
    playwright.expect(page.get_by_role("heading", name="Question t4999")).to_be_visible()
    page.keyboard.press("Escape")
    playwright.expect(page.locator("dialog")).to_have_count(0)
    assert complaints == []


def test_dark_light_and_print(page: Any, address: str) -> None:
    page.goto(address)
    back = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(back) == "rgb(20, 23, 27)"
    page.get_by_role("button", name="system").click()
    page.get_by_role("button", name="dark").click()
    assert page.evaluate(back) == "rgb(255, 255, 255)"
    page.emulate_media(media="print")
    assert not page.locator(".controls").is_visible()
