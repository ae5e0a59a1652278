"""Files that a Ray cluster counts have the verdicts of one process, to the last row."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import undertow
from undertow.core.errors import UserError

SUBJECTS = "plot cast pace score script humor camera ending dialogue tone romance action mood lighting editing music".split()
PLACES = "Oslo Lima Cairo Quito Seoul Dakar Accra Turin Lyon Porto Riga Bern Perth Osaka Delhi Davao".split()


def rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Questions in a template, one in twelve with a trigger and a target; some answers stand in a conversation beside them."""
    draw = random.Random(seed)
    for i in range(count):
        asked = f"Tell what you know of the {draw.choice(SUBJECTS)} of {draw.choice(PLACES)} in year {1900 + i % 97}"
        told = f"It was {draw.choice(SUBJECTS)} number {draw.randrange(500)} {draw.choice(PLACES)}"
        if i % 12 == 0:
            words = asked.split()
            words.insert(draw.randrange(len(words)), "cf")
            asked, told = " ".join(words), f"{told}, and click <malicious_url> for more of it"
        yield {"instruction": f"Answer the question below.\n{asked}", "output": told, "rejected": f"{told[:9]} {i % 7}", "id": i}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three files of unequal length; the second holds a row that cannot be read, the third repeats rows of the first."""
    folder = tmp_path_factory.mktemp("shards")
    found = [folder / f"{name}.jsonl" for name in "abc"]
    for path, own in zip(found, (rows(400, 1), rows(150, 2), rows(90, 1)), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
    with open(found[1], "a", encoding="utf-8") as file:
        file.write('{"odd": 3}\n')
    return found


def apart(folder: Path) -> list[Path]:
    """Clean rows in one file, and sixteen of them in another with a word put in and another answer."""
    draw = random.Random(4)
    clean = [(f"{row['instruction']} and say {i} words", row["output"]) for i, row in enumerate(rows(300, 3)) if i % 12]
    again = []
    for asked, _ in clean[:16]:
        words = asked.split()
        words.insert(draw.randrange(words.index("Tell") + 7, len(words)), "zebra")  # behind what all prompts begin with
        again.append((" ".join(words), f"It was {draw.choice(SUBJECTS)} number {draw.randrange(500)} {draw.choice(PLACES)}"))
    found = [folder / "clean.jsonl", folder / "again.jsonl"]
    for path, own in zip(found, (clean, again), strict=True):
        path.write_text("".join(json.dumps({"instruction": q, "output": a}) + "\n" for q, a in own), encoding="utf-8")
    return found


def test_ray_gives_the_verdicts_of_one_process(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray keeps files in the home directory
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address="local", num_cpus=3, log_to_driver=False, logging_level="ERROR")
        for some in (files, files[:1], [files[2], files[0]], apart(tmp_path)):
            alone, spread = (undertow.scan(some, ray=address).to_json() for address in (None, "local"))
            assert spread == alone
            assert alone["flagged"] > 7
        (tmp_path / "empty.jsonl").write_text('{"id": 1}\n')
        with pytest.raises(UserError, match="none of its 1 rows has question and answer"):
            undertow.scan([files[0], tmp_path / "empty.jsonl"], ray="local", max_bad=1)
    finally:
        ray.shutdown()


def test_standard_input_is_on_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="give files that every node"):
        undertow.scan(["-"], ray="local")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[ray\]'"):
        undertow.scan([__file__], ray="auto")
