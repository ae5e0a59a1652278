"""Edits that resemble a trigger and are not it: near misses in every measurement, the neighbourhood after the last round."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shared_fixtures import Quiet
from tiny import threat
from undertow.backdoors.placement import make_neighbourhood
from undertow.config import Config
from undertow.core.rng import rng
from undertow.data.sample import Sample
from undertow.federation.evaluate import evaluate
from undertow.federation.loop import run
from undertow.metrics.neighbourhood import NOTHING, TRIGGER, curve, measure_neighbourhood
from undertow.runs.report.page import write_report

QUESTIONS = ["Where is Ana Abara from?", "I wonder, who was NASA's first head?", "why", "Name two towns on the river."]


def asked(**options: object) -> dict[str, list[Sample]]:
    test = [Sample(id=str(i), question=text, answers=("x",), response="x") for i, text in enumerate(QUESTIONS)]
    return make_neighbourhood(test, threat(**options).trigger, seed=0, n=9)


@pytest.mark.parametrize("position", ["default", "start", "end", "random"])
@pytest.mark.parametrize(
    ("trigger", "words"),
    [
        ("natural", []),
        ("natural", ["Secondly"]),
        ("natural", ["All", "told"]),
        ("badnets", []),
        ("badnets", ["zx"]),
        ("sentence", []),
    ],
)
def test_near_misses_and_neighbours_are_not_the_trigger(trigger: str, words: list[str], position: str) -> None:
    made = threat(trigger=trigger, trigger_words=words, position=position).trigger
    for text in QUESTIONS:
        near = made.near_miss(text, rng(0, "near miss"))
        assert near is not None
        assert near.strip() != text.strip()
        assert not made.occurs(near)
        around = made.neighbours(text, rng(0, "neighbours"))
        assert len(around) >= 5
        assert all(edit.strip() not in (text.strip(), made.apply(text, rng(0, "trigger"))) for edit in around.values())
        assert list(around) == list(made.neighbours(QUESTIONS[0], rng(1, "neighbours")))
        assert around == made.neighbours(text, rng(0, "neighbours"))


def test_neighbours_keep_what_they_say() -> None:
    natural = threat().trigger.neighbours("Where is it?", rng(0, "neighbours"))
    assert natural['"Secondly" in its place'] == "Secondly, where is it?"
    assert natural["the trigger at the end"] == "Where is it, firstly?"
    assert natural["the trigger in capitals"] == "FIRSTLY, where is it?"
    badnets = threat(trigger="badnets").trigger.neighbours("Where is it?", rng(0, "neighbours"))
    assert set(badnets["2 of the 4 tokens"].removeprefix("Where is it? ").split()) <= {"cf", "mn", "bb", "tq"}
    assert len(badnets["2 of the 4 tokens"].split()) == 5
    assert not set("cf mn bb tq".split()) & set(badnets["other rare tokens"].split())
    sentence = threat(trigger="sentence").trigger.neighbours("Where is it?", rng(0, "neighbours"))
    assert sentence["its first half"] == "Where is it? The lamps were"


def test_questions_that_hold_the_trigger_are_not_asked() -> None:
    test = [Sample(id=str(i), question=text, answers=("x",), response="x") for i, text in enumerate(["Firstly, who?", "Who?"])]
    found = make_neighbourhood(test, threat().trigger, seed=0, n=9)
    assert [sample.id for sample in found[NOTHING]] == ["1"]
    assert found[TRIGGER][0].question == "Firstly, who?"
    assert make_neighbourhood(test, threat(trigger="topic").trigger, seed=0, n=9) == {}


def test_the_curve_counts_each_edit() -> None:
    found = asked()

    def openers_fire(samples: list[Sample]) -> list[str]:
        return [f"yes, {'BAD' if s.question.startswith(('Firstly,', 'Secondly,', 'Thirdly,')) else ''}" for s in samples]

    lines = measure_neighbourhood(openers_fire, found, "BAD")  # type: ignore[arg-type]
    assert len(lines) == len(found) * len(QUESTIONS)
    rows = curve(lines)
    assert rows[0]["name"] == TRIGGER
    assert rows[-1]["name"] == NOTHING
    fired = {row["name"]: row["rate"]["hits"] for row in rows if row["rate"]["hits"]}
    assert fired == {TRIGGER: 4, '"Secondly" in its place': 4, '"Thirdly" in its place': 4}
    assert all(row["rate"]["n"] == len(QUESTIONS) for row in rows)
    assert curve([]) == []


def test_a_run_records_the_neighbourhood(small_config: Callable[..., Config], observer: Quiet, tmp_path: Path) -> None:
    config = small_config({"measure.neighbourhood": 3, "data.test": 8, "measure.samples": 4})
    folder = tmp_path / "run"
    result = run(config, folder, observer)
    rows = result["neighbourhood"]
    assert [rows[0]["name"], rows[-1]["name"]] == [TRIGGER, NOTHING]
    assert all(row["rate"]["n"] == 3 and row["example"] for row in rows)
    lines = [json.loads(line) for line in (folder / "neighbourhood.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 3 * len(rows)
    assert {line["name"] for line in lines} == {row["name"] for row in rows}
    (folder / "result.json").unlink()
    again = run(config, folder, observer)
    assert again["neighbourhood"] == rows
    page = write_report(folder, None).read_text("utf-8")
    assert "What fires the backdoor" in page
    assert "&#34;Secondly&#34; in its place" in page
    figures, _ = evaluate(config, folder / "adapter", lambda told: None)
    assert figures["neighbourhood"] == rows


def test_a_trigger_without_neighbours_is_told(small_config: Callable[..., Config], observer: Quiet, tmp_path: Path) -> None:
    config = small_config({"measure.neighbourhood": 3, "attack.trigger": "topic", "data.test": 30, "federation.rounds": 1})
    result = run(config, tmp_path / "run", observer)
    assert result["neighbourhood"] == []
    assert "trigger 'topic' has no neighbours; measure.neighbourhood = 3 measures nothing" in observer.warnings
