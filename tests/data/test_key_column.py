"""Clients by a column of the user's own rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from undertow.config import Data, validate
from undertow.core.errors import UserError
from undertow.data.load import load


def _config(path: Path, **partition: object) -> Data:
    return validate(
        {
            "data": {
                "name": "instructions",
                "path": str(path),
                "train": 24,
                "test": 6,
                "partition": {"kind": "key", **partition},
            },
            "federation": {"clients": 3},
        },
        "x",
    ).data


def test_whole_values_of_the_named_column_go_to_clients(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}?", "answer": f"a{i}", "hospital": f"h{i % 6}"} for i in range(40)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    hospital = {row["question"]: row["hospital"] for row in rows}
    split = load(_config(file, column="hospital"), 0, 3)
    seen = [{hospital[sample.question] for sample in client} for client in split.clients]
    assert all(seen)
    assert sum(map(len, seen)) == len(set().union(*seen))  # no hospital on two clients
    for column in (None, "ward"):
        with pytest.raises(UserError, match=r"data\.partition\.column"):
            load(_config(file, column=column), 0, 3)
