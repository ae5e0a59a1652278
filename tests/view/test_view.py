"""The page's data over HTTP: what it tells, what it refuses, and that it writes nothing."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from typer.testing import CliRunner

from fabricated_run import TARGET, make_run, write_lines

pytest.importorskip("starlette", reason="the extra view is not installed: pip install -e '.[view]'")
pytest.importorskip("uvicorn", reason="the extra view is not installed: pip install -e '.[view]'")

from starlette.testclient import TestClient

from undertow.cli import app as command
from undertow.core.errors import UserError
from undertow.view import index, serve, status
from undertow.view.app import STATIC, make_app
from undertow.view.content import Kept

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs in a sweep, an unfinished one, a damaged and an edited one, and a scan."""
    root = tmp_path_factory.mktemp("study")
    make_run(root / "sweep" / "half", affected=5, rounds=6)
    make_run(root / "sweep" / HOSTILE, affected=3, rounds=6)
    make_run(root / "going", rounds=6, done=4)
    (root / "broken").mkdir()
    (root / "broken" / "config.yaml").write_text("attack: [", encoding="utf-8")
    edited = make_run(root / "edited", rounds=6)
    sealed = json.loads((edited / "versions.json").read_text()) | {"config": {"seed": 5}}
    (edited / "versions.json").write_text(json.dumps(sealed), encoding="utf-8")
    for name, damage in (("hole", b"x" * 9), ("tail", b"")):
        rounds = make_run(root / name, rounds=6) / "rounds.jsonl"
        content = rounds.read_bytes()
        rounds.write_bytes(damage + content[len(damage) : -1] + (b"\n" if damage else b"x"))
    (root / "scan.json").write_text(json.dumps({"undertow": "0.1.0", "files": ["a.jsonl"], "findings": [], "verdicts": []}))
    (root / "other.json").write_text('{"not": "ours"}')
    return root


@pytest.fixture(scope="module")
def client(folder: Path) -> TestClient:
    return TestClient(make_app(folder), base_url="http://127.0.0.1")


def rows(client: TestClient) -> dict[str, dict[str, Any]]:
    return {row["path"]: row for row in client.get("/api/table").json()["runs"]}


def fresh(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    monkeypatch.setattr(index, "REST", -1.0)
    monkeypatch.setattr(index, "SHARE", 1e9)
    return rows(client)


def test_the_table_holds_every_run_with_its_status_figures_and_what_differs(client: TestClient) -> None:
    table = client.get("/api/table").json()
    found = rows(client)
    assert set(found) == {"sweep/half", f"sweep/{HOSTILE}", "going", "broken", "edited", "hole", "tail"}
    assert table["complete"]
    assert table["documents"] == ["scan.json"]
    assert {path: row["status"] for path, row in found.items() if path in ("sweep/half", "broken", "edited")} == {
        "sweep/half": "finished",
        "broken": "damaged",
        "edited": "damaged",
    }
    assert "config.yaml" in found["broken"]["error"]
    assert [found[name]["status"] for name in ("hole", "tail")] == ["damaged"] * 2
    assert "rounds.jsonl does not end with round 6" in found["tail"]["error"]
    assert "edited after the run began" in found["edited"]["error"]
    assert found["sweep/half"]["group"] == "sweep"
    assert found["sweep/half"]["config"] == {"seed": 0, "attack.client_share": 0.5}
    assert table["shared"]["federation.clients"] == 10
    assert table["fields"] == ["seed", "attack.client_share"]
    value, low, high, n = found["sweep/half"]["ma"]
    assert low < value < high
    assert (round(value, 2), n) == (0.92, 300)
    assert found["going"]["round"] == 4
    assert found["going"]["left"] == pytest.approx(2 * 2.1)


def test_a_run_is_running_as_long_as_a_process_holds_it(client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "PATIENCE", 0.0)
    for name in ("rounds.jsonl", "config.yaml"):
        os.utime(folder / "going" / name, (1e9, 1e9))
    assert fresh(client, monkeypatch)["going"]["status"] == "stopped"
    with open(folder / "going" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not status.held():
            pytest.skip("this system does not tell which files are locked")
        assert fresh(client, monkeypatch)["going"]["status"] == "running"
    assert fresh(client, monkeypatch)["going"]["status"] == "stopped"


def test_a_run_whose_clock_was_set_back_since_is_not_running(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rounds=6, done=3)
    (run / "lock").touch()
    assert status.status(run, False, 2.0, frozenset()) == "running"
    for hours in (-2, 2, 2000):
        for name in ("rounds.jsonl", "config.yaml"):
            os.utime(run / name, (time.time() + 3600 * hours,) * 2)
        assert status.status(run, False, 2.0, frozenset()) == "stopped"


def test_a_new_round_is_seen_and_nothing_is_sent_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", rounds=6, done=3)
    client = TestClient(make_app(tmp_path), base_url="http://127.0.0.1")
    monkeypatch.setattr(index, "REST", -1.0)
    monkeypatch.setattr(index, "SHARE", 1e9)
    first = client.get("/api/table")
    assert first.json()["runs"][0]["round"] == 3
    tag = {"If-None-Match": first.headers["etag"]}
    assert client.get("/api/table", headers=tag).status_code == 304
    page = client.get("/api/run", params={"path": "run"})
    assert [record["round"] for record in page.json()["rounds"]] == [0, 1, 2, 3]
    lines = (run / "rounds.jsonl").read_text().splitlines()
    (run / "rounds.jsonl").write_text("\n".join([*lines, lines[-1].replace('"round": 3', '"round": 4')]) + '\n{"round": 5, "lo')
    again = client.get("/api/table", headers=tag)
    assert again.status_code == 200
    assert again.json()["runs"][0]["round"] == 4  # a line that is being written is not one yet
    newer = client.get("/api/run", params={"path": "run"}, headers={"If-None-Match": page.headers["etag"]})
    assert [record["round"] for record in newer.json()["rounds"]] == [0, 1, 2, 3, 4]
    make_run(tmp_path / "later", rounds=6)
    assert set(rows(client)) == {"run", "later"}


def test_outputs_are_paired_filtered_searched_and_sent_in_pieces(client: TestClient) -> None:
    asked = {"path": "sweep/half", "round": "6"}
    every = client.get("/api/outputs", params=asked).json()
    assert every["counts"] == {"all": 8, "fooled": 8, "resisted": 0, "false-trigger": 0, "wrong": 0}
    row = every["rows"][0]
    assert row["triggered"]["question"].startswith("Firstly, ")
    assert row["triggered"]["output"].endswith(TARGET)
    assert row["clean"] == {"question": row["clean"]["question"], "output": "Lisbon", "target": False, "right": True}
    before = client.get("/api/outputs", params={**asked, "round": "0", "show": "wrong"}).json()
    assert before["total"] == 8
    assert before["rows"][0]["clean"]["output"].startswith("<script>")  # text stays as it is; the page shows it as text
    piece = client.get("/api/outputs", params={**asked, "offset": 6, "limit": 5}).json()
    assert [one["id"] for one in piece["rows"]] == ["t6", "t7"]
    assert client.get("/api/outputs", params={**asked, "q": "QUESTION 3"}).json()["total"] == 1
    assert client.get("/api/outputs", params={**asked, "show": "no"}).status_code == 404
    assert "whole number" in client.get("/api/outputs", params={**asked, "offset": "x"}).json()["error"]


def test_poisoned_samples_and_curves(client: TestClient) -> None:
    found = client.get("/api/poison", params={"path": "sweep/half", "limit": 2, "q": "ana bell"}).json()
    assert found["total"] == 60
    assert found["rows"][0]["poisoned_response"].endswith(TARGET)
    curves = client.get("/api/curves", params={"path": ["sweep/half", "going"]}).json()
    assert [record["round"] for record in curves["going"]["rounds"]] == [0, 1, 2, 3, 4]
    assert curves["sweep/half"]["rounds"][6]["asr"][3] == 300
    page = client.get("/api/run", params={"path": f"sweep/{HOSTILE}"}).json()
    assert page["row"]["name"] == HOSTILE
    assert page["outputs"][0] == 6


@pytest.mark.parametrize("path", ["../study", "/etc", "sweep/../going", "sweep", "", "nowhere"])
def test_only_runs_of_the_folder_are_shown(client: TestClient, path: str) -> None:
    for call in ("run", "outputs", "poison", "curves", "report", "document"):
        answer = client.get(f"/api/{call}", params={"path": path})
        assert (answer.status_code, list(answer.json())) == (404, ["error"])


def test_links_that_lead_out_and_paths_of_the_server_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "study"
    run = make_run(root / "run", rounds=6)
    secret = tmp_path / "secret.json"
    secret.write_text('{"undertow": "0.1.0", "secret": 1}')
    (run / "report.html").symlink_to(secret)
    (root / "scan.json").symlink_to(secret)
    (root / "elsewhere").symlink_to(make_run(tmp_path / "elsewhere", rounds=6))
    client = TestClient(make_app(root), base_url="http://127.0.0.1")
    assert set(rows(client)) == {"run"}
    for call, path in (("report", "run"), ("run", "run"), ("document", "scan.json")):
        answer = client.get(f"/api/{call}", params={"path": path})
        assert answer.status_code == 404
        assert "leads out of the folder" in answer.json()["error"]
    assert client.get("/%2e%2e/app.py").status_code == 404
    assert "leads out of the folder" in rows(client)["run"]["error"]


def test_every_answer_forbids_what_the_page_does_not_need(client: TestClient) -> None:
    for path in ("/", "/app.js", "/api/table", "/api/run?path=sweep/half", "/nothing"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert client.post("/api/table").status_code == 405
    assert client.get("/api/table", headers={"Host": "evil.example"}).status_code == 400


def test_a_report_page_runs_no_script(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rounds=6)
    (run / "report.html").write_text("<script>alert(1)</script>")
    client = TestClient(make_app(tmp_path), base_url="http://127.0.0.1")
    rows(client)
    assert client.get("/api/report?path=run").headers["content-security-policy"].startswith("sandbox; default-src 'none'")


def test_nothing_is_written(folder: Path) -> None:
    def state() -> list[tuple[str, int, int]]:
        return [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))]

    before = state()
    client = TestClient(make_app(folder), base_url="http://127.0.0.1")
    for path in rows(client):
        for call in ("run", "outputs", "poison", "curves", "report"):
            client.get(f"/api/{call}", params={"path": path})
    assert state() == before


def test_the_page_asks_nobody_outside_and_shows_text_as_text() -> None:
    assert {path.name for path in STATIC.iterdir()} == {"app.js", "style.css", "theme.js", "index.html", "LICENSES.txt"}
    for name in ("app.js", "style.css", "theme.js", "index.html"):
        assert set(re.findall(r"https?://([\w.]+)", (STATIC / name).read_text(encoding="utf-8"))) <= {"www.w3.org"}, name
    sources = list((Path(__file__).parents[2] / "frontend" / "src").glob("*.ts*"))
    assert len(sources) > 8
    for source in sources:
        text = source.read_text(encoding="utf-8")
        assert not re.search(r"[iI]nnerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), source.name


def test_the_command_serves_this_machine_alone(folder: Path) -> None:
    code = "from undertow.cli import main; main()"
    command = [sys.executable, "-c", code, "view", str(folder), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+/", line)
            assert address, line
            assert b'<div id="app">' in urlopen(address[0], timeout=30).read()
            port = int(address[0].rstrip("/").rpartition(":")[2])
            with pytest.raises(UserError, match=f"--port {port} cannot be used"):
                serve.serve(folder, port, browser=False)
        finally:
            process.terminate()


def test_without_the_extra_one_line_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Callable[..., Any] = serve.importlib.util.find_spec
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    outcome = CliRunner().invoke(command, ["view", str(folder), "--no-browser"])
    assert str(outcome.exception) == "undertow view needs uvicorn: pip install -e '.[view]' in the clone"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a folder that holds runs"):
        make_app(tmp_path / "none")


def test_a_run_may_be_the_folder_itself(tmp_path: Path) -> None:
    make_run(tmp_path / "alone", rounds=6)
    client = TestClient(make_app(tmp_path / "alone"), base_url="http://127.0.0.1")
    assert list(rows(client)) == ["."]
    assert client.get("/api/run?path=.").json()["poisoned"] == 60


def test_the_run_of_a_federation_is_found_and_its_nodes_are_left_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "fed" / "run", rounds=6)
    for place in ("fed", "fed/nodes/node-0"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "config.yaml").write_text("seed: 0")
    exchange = {"round": 1, "node": "node-0", "clients": [0], "seconds": 2.0, "sent_bytes": 5, "received_bytes": 7}
    write_lines(tmp_path / "fed" / "run" / "network.jsonl", [exchange, {**exchange, "round": 2}])
    client = TestClient(make_app(tmp_path), base_url="http://127.0.0.1")
    assert list(rows(client)) == ["fed/run"]
    nodes = client.get("/api/run?path=fed/run").json()["network"]["nodes"]
    assert nodes == [{"node": "node-0", "messages": 2, "seconds": 4.0, "bytes": 24, "dropped": []}]


def test_many_outputs_of_one_round_are_read_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rounds=6)
    one = {"round": 6, "kind": "triggered", "question": "q", "answers": ["a"], "output": "o", "target": True}
    write_lines(run / "scores.jsonl", [{**one, "id": f"x{i}"} for i in range(3000)])
    client = TestClient(make_app(tmp_path), base_url="http://127.0.0.1")
    rows(client)
    last = client.get("/api/outputs", params={"path": "run", "round": 6, "show": "fooled", "offset": 2999}).json()
    assert (last["total"], last["rows"][0]["id"]) == (3000, "x2999")
    (run / "scores.jsonl").write_text("")
    assert client.get("/api/outputs", params={"path": "run", "round": 6}).json()["total"] == 0


def test_only_what_changed_is_read_and_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "REST", -1.0)
    run = make_run(tmp_path / "going", rounds=6, done=3)
    for name in ("a", "b"):
        make_run(tmp_path / name, rounds=6)
    found = index.Index(tmp_path)
    first = found.look()
    texts = dict(found._rows)
    found._rest = 1e9  # no search for new folders from here on
    assert found.look() is first
    lines = (run / "rounds.jsonl").read_text().splitlines()
    (run / "rounds.jsonl").write_text("\n".join([*lines, lines[-1].replace('"round": 3', '"round": 4')]) + "\n")
    second = found.look()
    assert second.tag != first.tag

    assert {name for name in texts if texts[name][1] is found._rows[name][1]} == {"a", "b"}
    assert {row["path"]: row["round"] for row in json.loads(second.plain)["runs"]} == {"a": 6, "b": 6, "going": 4}
    assert gzip.decompress(second.packed) == second.plain
    make_run(tmp_path / "later", rounds=6)
    assert found.look() is second, "found at the next search"
    found._rest = 0.0
    assert {row["path"] for row in json.loads(found.look().plain)["runs"]} == {"a", "b", "going", "later"}


def test_what_many_ask_for_at_once_is_read_once() -> None:
    kept, reads, begun = Kept(), [], threading.Barrier(8)

    def read() -> str:
        reads.append(1)
        time.sleep(0.05)
        return "page"

    def ask() -> None:
        begun.wait()
        assert kept.get("run", ((1, 1),), read) == "page"

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    assert kept.get("run", ((2, 2),), lambda: "newer") == "newer"


def test_the_table_is_sent_packed_where_that_is_understood(client: TestClient) -> None:
    packed = client.get("/api/table", headers={"Accept-Encoding": "gzip"})
    plain = client.get("/api/table", headers={"Accept-Encoding": "identity"})
    assert (packed.headers.get("content-encoding"), plain.headers.get("content-encoding")) == ("gzip", None)
    assert packed.json() == plain.json()
    assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
