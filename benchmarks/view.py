"""What `undertow view` costs: 500 runs of 100 rounds until the first page, its memory, many readers, and scrolling 10,000 outputs.

    python benchmarks/view.py                      500 runs x 100 rounds, 50 readers for 10 seconds
    python benchmarks/view.py --seconds 60         the readers go on for a minute, while a run writes a round each second

    python benchmarks/view.py --training           and what 50 readers cost a run that trains at the same time: the median ratio of
                                                   the seconds of pairs of rounds, watched to alone, with its 95 % interval

Where playwright and Chromium are installed, the page is opened too: seconds until rows stand in the table, and frames a second
while 10,000 outputs go by. One JSON object on stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import multiprocessing
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import yaml

from undertow.config import load

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def rate(hits: int, n: int = 400) -> dict[str, Any]:
    return {"value": hits / n, "n": n, "hits": hits, "low": max(0, hits / n - 0.03), "high": min(1, hits / n + 0.03)}


def make_runs(root: Path, runs: int, rounds: int, clients: int = 10) -> None:
    """Write finished runs with every file that the page reads, as a sweep over three fields writes them; the last goes on."""
    for k in range(runs):
        folder = root / f"sweep-{k % 5}" / f"run-{k:04d}"
        folder.mkdir(parents=True)
        share, ratio = (k // 5 % 10 + 1) / 10, (k // 50 + 1) / 50
        config = load("demo", {"seed": k, "attack.client_share": share, "attack.poison_ratio": ratio, "federation.rounds": rounds})
        (folder / "config.yaml").write_text(yaml.safe_dump(config.values(), sort_keys=False), encoding="utf-8")
        (folder / "versions.json").write_text(json.dumps({"undertow": "0.1.0", "config": config.values()}), encoding="utf-8")
        lines = [
            {
                "format": 1,
                "round": t,
                "loss": 3 / (t + 1),
                "client_loss": [3 / (t + 1)] * clients,
                "participants": list(range(clients)),
                "update_norm": 0.4,
                "bsnr": {"adapter": {"value": 0.1 / (t + 1), "null_low": 0.0, "null_high": 0.01, "p": 0.01, "permutations": 200}},
                "defenses": [{"name": "krum", "f": 3, "chosen": [t % clients], "scores": [1.5] * clients}],
                **{name: rate((t * step + k) % 400) for name, step in (("ma", 3), ("asr", 4), ("ftr", 0), ("ftr_near", 1))},
                "seconds": 2.5,
            }
            for t in range(rounds + 1 if k < runs - 1 else rounds // 2)
        ]
        (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        if k < runs - 1:
            last = {name: lines[-1][name] for name in ("ma", "asr", "ftr", "ftr_near")}
            poison = {"clients": 5, "samples": 75, "total": 1500}
            first = {name: lines[0][name] for name in ("ma", "asr", "ftr", "ftr_near")}
            result = {"rounds": rounds, "seconds": 250.0, **last, "untouched": first, "bsnr": [0.1] * rounds, "poison": poison}
            (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def make_outputs(folder: Path, count: int, round: int) -> None:
    with open(folder / "scores.jsonl", "w", encoding="utf-8") as file:
        for i in range(count):
            for kind, before in (("clean", ""), ("triggered", "Firstly, ")):
                question = f"{before}which place of birth does the register give for person {i}, and what is it known for?"
                row = {"round": round, "kind": kind, "id": f"q{i}", "question": question, "answers": ["Lisbon"]}
                file.write(json.dumps({**row, "output": f"Lisbon, a harbour {i}", "target": kind != "clean", "exact": True}) + "\n")


class Server:
    """`undertow view` as a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.began = time.perf_counter()
        command = [sys.executable, "-c", "from undertow.cli import main; main()", "view", str(folder), "--no-browser"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        found = re.search(r"http://[\d.:]+/", self.process.stdout.readline())
        assert found
        self.address = found[0]

    def peak(self) -> float:
        """Most memory that it ever held, in MB (VmHWM of Linux; what it holds now elsewhere)."""
        try:
            text = Path(f"/proc/{self.process.pid}/status").read_text()
            return int(re.findall(r"VmHWM:\s+(\d+)", text)[0]) / 1024
        except (OSError, IndexError):
            return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20

    def cpu(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)


def until_complete(server: Server) -> tuple[float, float]:
    """Seconds from the start of the process until the first rows are sent, and until all are."""
    first = 0.0
    while True:
        with urlopen(f"{server.address}api/table") as answer:
            table = json.load(answer)
        now = time.perf_counter() - server.began
        first = first or (now if table["runs"] else 0.0)
        if table["complete"]:
            return first, now
        time.sleep(0.15)  # as the page does


def read_for(server: Server, readers: int, seconds: float, growing: Path) -> dict[str, Any]:
    """Let many readers poll as the page does, and a run write a round each second; return what they met."""
    over = time.monotonic() + seconds
    took: list[float] = []
    errors: list[str] = []

    def reader() -> None:
        tag = ""
        while time.monotonic() < over:
            began = time.perf_counter()
            try:
                with urlopen(Request(f"{server.address}api/table", headers={"If-None-Match": tag})) as answer:
                    tag = answer.headers["ETag"]
                    answer.read()
            except OSError as error:
                if getattr(error, "code", 0) != 304:
                    errors.append(str(error))
            took.append(time.perf_counter() - began)
            time.sleep(2)

    threads = [threading.Thread(target=reader) for _ in range(readers)]
    before = server.cpu()
    for thread in threads:
        thread.start()
        time.sleep(2 / readers)
    line = json.loads(growing.read_text(encoding="utf-8").splitlines()[-1])
    while time.monotonic() < over:
        line["round"] += 1
        with open(growing, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        time.sleep(1)
    for thread in threads:
        thread.join()
    slow = statistics.quantiles(took, n=100)[98]
    used = (server.cpu() - before) / seconds
    return {"answers": len(took), "errors": len(errors), "p99_s": round(slow, 3), "cpu_share_of_a_core": round(used, 3)}


def slowed(server: Server, readers: int, root: Path, pairs: int) -> dict[str, Any]:
    """Train a run whose rounds are alike, by turns watched and alone (A B B A ...); the ratio of each pair of rounds.

    Also the share of a core that the server takes meanwhile, and what the readers take, who are no part of what is measured.
    """
    folder, rounds = root / "trained", 2 * pairs + 2
    words = ["run", "demo", f"federation.rounds={rounds}", "data.train=100", "data.test=10", "measure.every=100000"]
    context = multiprocessing.get_context("spawn")
    asking, asked = context.Event(), context.Value("i", 0)
    looking = context.Process(target=_readers, args=(server.address, readers, asking, asked), daemon=True)
    looking.start()
    code = "from undertow.cli import main; main()"
    run = subprocess.Popen([sys.executable, "-c", code, *words, "--out", str(folder), "--json"], stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)  # fmt: skip
    used, busy, wall = 0.0, 0.0, 0.0
    path, done = folder / "rounds.jsonl", 0
    server_before, readers_before, began = server.cpu(), _cpu(looking.pid), time.monotonic()
    try:
        while run.poll() is None:
            now = path.read_bytes().count(b"\n") if path.exists() else 0
            if now > done:
                if asking.is_set():
                    used, busy = used + server.cpu() - server_before, busy + _cpu(looking.pid) - readers_before
                    wall += time.monotonic() - began
                done = now
                # round t runs while t lines stand there, those of rounds 0 to t - 1; the first is a warm-up
                asking.set() if _watched(done) else asking.clear()
                server_before, readers_before, began = server.cpu(), _cpu(looking.pid), time.monotonic()
            time.sleep(0.01)
    finally:
        run.kill()
        looking.terminate()
    taken = [json.loads(line)["seconds"] for line in path.read_text(encoding="utf-8").splitlines()]
    ratios = []
    for first in range(2, 2 * pairs + 1, 2):
        watched, alone = (first, first + 1) if _watched(first) else (first + 1, first)
        ratios.append(taken[watched] / taken[alone])
    low, high = _interval(ratios)
    return {
        "pairs": len(ratios),
        "round_s": round(statistics.median(taken[2:]), 2),
        "slower": round(statistics.median(ratios) - 1, 3),
        "slower_low": round(low - 1, 3),
        "slower_high": round(high - 1, 3),
        "answers_while_training": asked.value,
        "server_share_of_a_core": round(used / max(wall, 1e-9), 3),
        "readers_share_of_a_core": round(busy / max(wall, 1e-9), 3),
    }


def _watched(round: int) -> bool:
    return round % 4 in (2, 1)


def _cpu(pid: int | None) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _interval(values: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median, by order statistics (exact for any distribution, at least 95 %)."""
    ordered, n = sorted(values), len(values)
    below = [sum(math.comb(n, i) for i in range(k)) / 2**n for k in range(n // 2 + 1)]
    k = max([k for k in range(n // 2 + 1) if below[k] <= 0.025], default=0)
    return ordered[max(k - 1, 0)], ordered[min(n - k, n - 1)]


def _readers(address: str, count: int, asking: Any, asked: Any) -> None:
    """Ask for the table as pages do, each every two seconds over a new connection, while ``asking`` is set."""
    host, _, port = address.removeprefix("http://").rstrip("/").partition(":")

    async def reader(k: int) -> None:
        await asyncio.sleep(2 * k / count)
        tag = b""
        while True:
            if asking.is_set():
                lines = [b"GET /api/table HTTP/1.1", f"Host: {host}:{port}".encode(), b"Accept-Encoding: gzip"]
                stream, writer = await asyncio.open_connection(host, int(port))
                writer.write(b"\r\n".join([*lines, *([b"If-None-Match: " + tag] if tag else []), b"", b""]))
                head = (await stream.readuntil(b"\r\n\r\n")).lower()
                if length := re.search(rb"content-length: (\d+)", head):
                    await stream.readexactly(int(length[1]))
                if b" 200 " in head.splitlines()[0]:
                    tag = re.findall(rb"etag: (.*?)\r", head)[0]
                writer.close()
                asked.value += 1
            await asyncio.sleep(2)

    async def every() -> None:
        await asyncio.gather(*(reader(k) for k in range(count)))

    asyncio.run(every())


def in_browser(server: Server, path: str) -> dict[str, Any]:
    """Open the page; seconds until rows stand there, and frames a second while a list of outputs goes by."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return {"browser": "playwright is not installed"}
    if browser_path is None:
        return {"browser": "no Chromium is installed"}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        began = time.perf_counter()
        page.goto(server.address)
        page.wait_for_selector("tbody tr a.run")
        rows = time.perf_counter() - began
        page.goto(f"{server.address}#/run?path={path}&tab=outputs")
        page.wait_for_selector(".virtual .item .answer")
        frames = page.evaluate(
            """() => new Promise((done) => {
                const list = document.querySelector(".virtual"), times = [];
                const step = (now) => {
                    times.push(now);
                    list.scrollTop += 160;
                    times.length < 240 ? requestAnimationFrame(step) : done(times);
                };
                requestAnimationFrame(step);
            })"""
        )
        browser.close()
    gaps = [after - before for before, after in itertools.pairwise(frames)]
    return {
        "rows_in_page_s": round(rows, 2),
        "frames_per_s": round(1000 / statistics.mean(gaps), 1),
        "worst_frame_ms": round(max(gaps)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--readers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--training", action="store_true", help="also: what readers cost a run that trains on this machine")
    parser.add_argument("--pairs", type=int, default=20, help="of rounds, watched and alone")
    parser.add_argument("--outputs", type=int, default=10_000)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *signalled: sys.exit(143))  # so that nothing it started goes on
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, max(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        make_runs(root, given.runs, given.rounds)
        make_outputs(root / "sweep-0" / "run-0000", given.outputs, given.rounds)
        server = Server(root)
        try:
            first, whole = until_complete(server)
            growing = sorted(root.rglob("rounds.jsonl"))[-1]
            told = {
                "runs": given.runs,
                "rounds": given.rounds,
                "first_rows_s": round(first, 2),
                "all_rows_s": round(whole, 2),
                **in_browser(server, "sweep-0/run-0000"),
                "readers": given.readers,
                **read_for(server, given.readers, given.seconds, growing),
                **(slowed(server, given.readers, root, given.pairs) if given.training else {}),
                "peak_mb": round(server.peak(), 1),
            }
        finally:
            server.process.terminate()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
