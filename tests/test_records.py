"""What a run writes is read back as it was, and what older or newer versions wrote is read or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.core.errors import UserError
from undertow.runs.records import (
    FORMAT,
    DataFacts,
    Poisoned,
    Result,
    Round,
    Score,
    Written,
    check,
    lines,
    read_jsonl,
    read_record,
    read_records,
    write_records,
)

NUMBER = st.none() | st.floats(allow_nan=False)
RATE = st.fixed_dictionaries(
    {"value": st.none() | st.floats(0, 1), "n": st.integers(0, 10), "low": st.none() | st.floats(0, 1), "high": st.just(1.0)}
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ROWS: dict[type[Written], Any] = {
    Round: st.fixed_dictionaries(
        {"round": st.integers(0, 99), "loss": NUMBER, "client_loss": st.lists(NUMBER), "ma": st.none() | RATE},
        optional={
            "bsnr": st.none()
            | st.dictionaries(st.sampled_from(["adapter", "delta_w"]), st.none() | st.fixed_dictionaries({"p": NUMBER})),
            "scorings": st.none() | st.dictionaries(TEXT, RATE),
            "defenses": st.lists(st.fixed_dictionaries({"name": TEXT, "kept": st.lists(st.integers())})),
            "something new": st.lists(TEXT),
        },
    ),
    Score: st.fixed_dictionaries(
        {
            "round": st.integers(0, 9),
            "kind": st.sampled_from(["clean", "near"]),
            "id": TEXT,
            "question": TEXT,
            "answers": st.lists(TEXT),
        }
        | {"output": TEXT, "exact": st.booleans()}
    ),
    Poisoned: st.fixed_dictionaries(
        {"client": st.integers(0, 9), "index": st.integers(0, 9)}
        | dict.fromkeys(("id", "question", "poisoned_question", "response", "poisoned_response"), TEXT)
    ),
}


@pytest.mark.parametrize("kind", ROWS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_back(kind: type[Written], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("run")
    rows = data.draw(st.lists(ROWS[kind], max_size=4))
    write_records(folder, kind, rows)
    plain = read_jsonl(folder / kind.FILE)
    assert plain == [{"format": kind.NEWEST, **row} for row in rows]
    records = list(read_records(folder, kind))
    assert [record.to_json() for record in records] == plain
    assert records == [kind.model_validate({"format": kind.NEWEST, **row}) for row in rows]


def test_records_without_a_format_are_of_format_0_and_rewritten_in_the_present_one(tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").write_text('{"round": 0, "loss": null}\n')
    (old,) = read_records(tmp_path, Round)
    assert old.format == 0
    assert lines(Round, [old.to_json()]) == '{"format": 1, "round": 0, "loss": null}\n'


@pytest.mark.parametrize("name", ["poisoned_clients", "affected"])
def test_the_poisoned_clients_are_read_under_their_former_name_too(name: str, tmp_path: Path) -> None:
    facts = check(DataFacts, {"dataset": "w", "clients": [4, 4], name: [1]}, tmp_path / "data.json")
    assert facts.poisoned_clients == [1]
    assert facts.surplus == {}


def test_only_scores_are_of_a_later_format() -> None:
    assert {kind.NEWEST for kind in ROWS} == {FORMAT, Score.NEWEST} == {1, 2}
    with pytest.raises(UserError, match="format 3 is of a newer Undertow, this one reads up to 2; update"):
        check(Score, {"format": 3}, Path("scores.jsonl"), 1)


def test_a_newer_format_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").write_text('{"format": 1, "round": 0}\n{"format": 2, "round": "one"}\n')
    with pytest.raises(UserError, match=r"rounds\.jsonl line 2: format 2 is of a newer Undertow, .* up to 1; update") as error:
        list(read_records(tmp_path, Round))
    assert "\n" not in str(error.value)
    (tmp_path / "result.json").write_text('{"format": 7}')
    with pytest.raises(UserError, match=r"result\.json: format 7 is of a newer Undertow"):
        read_record(tmp_path, Result)


@pytest.mark.parametrize(
    ("tail", "found"),
    [
        ('{"round": 1}', [0, 1]),  # whole: a person's editor may leave the line end out
        ('{"round": 1', [0]),  # cut short by a kill
        ('\n{"round": 1}\n\n', [0, 1]),
    ],
)
def test_a_last_line_without_an_end_counts_where_it_is_whole(tmp_path: Path, tail: str, found: list[int]) -> None:
    (tmp_path / "rounds.jsonl").write_text('{"round": 0}\n' + tail)
    assert [record.round for record in read_records(tmp_path, Round)] == found


def test_a_run_that_has_no_round_yet_is_unfinished(tmp_path: Path) -> None:
    for kind in (Round, Result):
        with pytest.raises(UserError, match=rf"has no {kind.FILE}; give the folder of an undertow run"):
            list(read_records(tmp_path, kind)) if kind is Round else read_record(tmp_path, kind)
    (tmp_path / "config.yaml").touch()
    for kind in (Round, Result):
        with pytest.raises(UserError, match=rf"has no {kind.FILE}; the run is unfinished: repeat its command, it resumes"):
            list(read_records(tmp_path, kind)) if kind is Round else read_record(tmp_path, kind)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[1]\n", "line 1 holds a list, not a record"),
        (b'{"round": 0}\n{\n', "line 2 is damaged: not JSON"),
        (b'{"round": -1}\n', r"line 1: round = -1: give 0 or more"),
        (b"\xff\xfe", "is damaged"),
    ],
)
def test_damage_is_told_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "rounds.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        list(read_records(tmp_path, Round))
    assert "\n" not in str(error.value)


def test_records_do_not_change() -> None:
    record = Round.model_validate({"round": 3, "ma": {"value": 0.5, "n": 2, "low": 0.1, "high": 0.9}})
    with pytest.raises(ValueError, match="frozen"):
        record.round = 4  # type: ignore[misc]
    assert json.loads(lines(Round, [record.to_json()])) == record.to_json()
