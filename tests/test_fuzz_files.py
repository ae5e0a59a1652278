"""Whatever adapters, run folders and facts hold, they are used or refused in one line; ``UNDERTOW_FUZZ`` is
the number of cases (tests/fuzzing.py).
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

import undertow
from fuzzing import BYTES, cases, cases_told, damaged, in_one_line  # noqa: F401 (a fixture)
from tiny import Quiet
from undertow.config import Config
from undertow.federation.loop import run
from undertow.models.with_adapter import plain_adapter, with_adapter
from undertow.pretraining.facts import read_facts
from undertow.runs.run import Run
from undertow.view.content import Content
from undertow.view.index import Index

ODD = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 1, 3, 0.5, 1e300, 10**20, "", "x", "../..", "\u2028", [], {}, [None], [[]], {"a": {}}]
    ),
    st.sampled_from(["lora", "LORA", "pissa", "all-linear", "F32", "BF16", "NaN", "1", "2026-01-01", "act", "clean"]),
    st.text(max_size=8),
)
#: Where to change a JSON value: the items gone through, and what is done at the end.
WHERE = st.lists(st.integers(0, 60), min_size=1, max_size=6)
HOW = st.sampled_from(["replace", "replace", "delete", "rename", "twice", "wrap"])


def changed(value: Any, where: list[int], how: str, odd: Any) -> Any:
    """Return a JSON value with one place changed."""
    if not where or not isinstance(value, dict | list) or not value:
        return odd
    keys: list[Any] = sorted(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[where[0] % len(keys)]
    if len(where) > 1 and isinstance(value[key], dict | list) and value[key]:
        inside = changed(value[key], where[1:], how, odd)
        return {**value, key: inside} if isinstance(value, dict) else [*value[:key], inside, *value[key + 1 :]]
    if isinstance(value, list):
        part = {"delete": [], "twice": [value[key]] * 2, "wrap": [[value[key]]]}.get(how, [odd])
        return [*value[:key], *part, *value[key + 1 :]]
    rest = {name: one for name, one in value.items() if name != key}
    return rest if how == "delete" else {**rest, (str(odd) if how == "rename" else key): value[key] if how == "rename" else odd}


def written(file: Path, where: list[int], how: str, odd: Any, damage: tuple[int, str, bytes] | None) -> None:
    """Write a file anew with one place changed: of JSON, of one of several lines of JSON, or else of the bytes."""
    content = file.read_bytes()
    if damage is not None or file.suffix not in (".json", ".jsonl") or not content.strip():
        content = damaged(content, *(damage or (where[0] * 97, "over", str(odd).encode())))
    elif file.suffix == ".json":
        content = json.dumps(changed(json.loads(content), where, how, odd)).encode()
    else:
        lines = content.decode().splitlines()
        at = where[0] % len(lines)
        lines[at] = json.dumps(changed(json.loads(lines[at]), where[1:] or [0], how, odd))
        content = "\n".join(lines).encode() + b"\n"
    file.write_bytes(content)


@pytest.fixture(scope="module")
def finished(small_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """The config and the folder of a small run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    config = small_config()
    run(config, folder, Quiet())
    return config, folder


# --- adapters ---------------------------------------------------------------------------------------------------


def with_header(content: bytes, where: list[int], how: str, odd: Any, length: int) -> bytes:
    """Return a safetensors file with one place of its header changed; a ``length`` other than 0 is added to the stated one."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.dumps(changed(json.loads(content[8 : 8 + size]), where, how, odd)).encode()
    return struct.pack("<Q", (len(header) + length) % 2**64) + header + content[8 + size :]


@cases(
    0.15,
    file=st.sampled_from(["adapter_config.json", "header", "adapter_model.safetensors", "base.json"]),
    where=WHERE,
    how=HOW,
    odd=ODD,
    damage=st.one_of(st.none(), st.none(), BYTES),
    length=st.sampled_from([0, 0, 0, 0, 1, -1, 2**40, -(2**63)]),
)
def test_adapters(
    load_tiny: Callable[..., Any],
    finished: tuple[Config, Path],
    tmp_path_factory: pytest.TempPathFactory,
    file: str,
    where: list[int],
    how: str,
    odd: Any,
    damage: tuple[int, str, bytes] | None,
    length: int,
) -> None:
    base = load_tiny()
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    shutil.copytree(finished[1] / "adapter", folder)
    weights = folder / "adapter_model.safetensors"
    if file == "header":
        weights.write_bytes(with_header(weights.read_bytes(), where, how, odd, length))
    else:
        there = sorted(one for one in folder.iterdir() if one.is_file())
        written(next((one for one in there if one.name == file), there[where[0] % len(there)]), where, how, odd, damage)
    found = in_one_line(lambda: with_adapter(base, folder))
    if found is not None and found.flat is not None:
        assert found.flat.isfinite().all()
    in_one_line(lambda: plain_adapter(base, folder))


# --- run folders ------------------------------------------------------------------------------------------------


@cases(0.02, file=st.integers(0, 60), where=WHERE, how=HOW, odd=ODD, damage=st.one_of(st.none(), st.none(), BYTES))
def test_run_folders(
    finished: tuple[Config, Path],
    tmp_path_factory: pytest.TempPathFactory,
    file: int,
    where: list[int],
    how: str,
    odd: Any,
    damage: tuple[int, str, bytes] | None,
) -> None:
    config, source = finished
    root = tmp_path_factory.mktemp("runs")
    folder = root / "run"
    shutil.copytree(source, folder)
    there = sorted(one for one in folder.rglob("*") if one.is_file() and one.suffix not in (".html", ".png", ".pdf"))
    written(there[file % len(there)], where, how, odd, damage)
    known = Run(folder)
    for read in (lambda: known.config, lambda: known.result, lambda: known.rounds, lambda: known.scores, lambda: known.poison):
        in_one_line(read)
    in_one_line(lambda: known.adapter)
    in_one_line(known.to_frame)
    in_one_line(lambda: Content().page(known))
    in_one_line(lambda: Index(root).look())
    in_one_line(lambda: undertow.collect(root))
    in_one_line(known.report)
    in_one_line(lambda: run(config, folder, Quiet()))


# --- facts ------------------------------------------------------------------------------------------------------

CELL = st.one_of(st.text(max_size=12), st.sampled_from(["Q42", "www.freebase.com/m/0abc", "P19", '"', "a\tb", "\x00", "Person 7"]))
FACT = st.fixed_dictionaries(
    {}, optional={name: st.one_of(CELL, ODD) for name in ("subject", "relation", "object", "answer", "question", "id")}
)


@cases(
    0.25,
    rows=st.lists(st.one_of(FACT, st.lists(CELL, max_size=5), ODD), max_size=8),
    form=st.sampled_from([".jsonl", ".tsv", ".csv", ".txt", ".json"]),
    head=st.sampled_from(["subject\trelation\tobject", "subject,relation,object,question", "", "a\tb\tc"]),
    damage=st.one_of(st.none(), st.none(), BYTES),
    limit=st.sampled_from([None, 1, 3, 0]),
)
def test_facts(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Any],
    form: str,
    head: str,
    damage: tuple[int, str, bytes] | None,
    limit: int | None,
) -> None:
    file = tmp_path_factory.mktemp("facts") / f"facts{form}"
    if form.startswith(".json"):
        lines = [json.dumps(row) for row in rows]
    else:
        mark = "," if form == ".csv" else "\t"
        lines = [head, *(mark.join(map(str, row.values() if isinstance(row, dict) else [row])) for row in rows)]
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    file.write_bytes(content if damage is None else damaged(content, *damage))
    found = in_one_line(lambda: read_facts(file, limit=limit))
    assert found is None or all(row.subject and row.relation and row.object for row in found)
