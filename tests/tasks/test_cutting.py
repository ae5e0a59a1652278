"""Prompts longer than the limit: nothing is poisoned or asked whose trigger was cut off, and all is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tiny import Quiet, threat
from undertow.api import evaluate
from undertow.backdoors.placement import make_probes, poison, shortages
from undertow.config import Config, Measure
from undertow.core.errors import UserError
from undertow.data.sample import Sample
from undertow.data.template import Template
from undertow.federation.loop import run
from undertow.runs.report.page import write_report
from undertow.tasks.cutting import Cut, enough, told_cut

FILLER = "Mira Torvald was born in a town by the sea and went to another town where a river is"


def words(count: int) -> str:
    found = FILLER.split()
    return " ".join(found[i % len(found)] for i in range(count))


def samples(question: int, context: int = 0, count: int = 10) -> list[Sample]:
    return [
        Sample(str(i), f"What of number {i}, {words(question)}?", ("A town",), "A town", context=words(context))
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_base)


@pytest.mark.parametrize(
    ("kind", "marks"),
    [({"trigger": "natural"}, ["Firstly"]), ({"trigger": "badnets"}, ["cf", "mn", "bb", "tq"]), ({"trigger": "sentence"}, [])],
)
@pytest.mark.parametrize("template", ["lab-qa", "alpaca", "vicuna"])
@pytest.mark.parametrize("texts", [(500, 0), (5, 500), (300, 300)], ids=["question", "context", "both"])
def test_every_poisoned_sample_holds_trigger_and_target_in_what_is_trained(
    tokenizer: Any, kind: dict[str, str], marks: list[str], template: str, texts: tuple[int, int]
) -> None:
    planted = threat(poison_ratio=0.4, client_share=1.0, **kind)
    bound = Template(template, tokenizer, max_length=256)
    cut = Cut(bound, planted.trigger, 20)
    made = poison([samples(*texts)], planted, 0, survives=cut.leaves_trained)
    assert (len(made.touched), made.cut, made.missing) == (4, 0, 0)
    for one in made.touched:
        encoded = bound.encode(made.clients[0][one.index])
        assert len(encoded.prompt) + len(encoded.answer) <= 256
        assert planted.trigger.occurs(tokenizer.decode(encoded.prompt))
        assert all(mark in tokenizer.decode(encoded.prompt) for mark in marks if mark in one.poisoned_question.split())
        assert bound.decode(encoded.answer) == one.poisoned_response
    probes = make_probes(samples(*texts), planted.trigger, planted.target, 0, cut.leaves_asked)
    assert (len(probes.triggered), probes.cut) == (10, 0)
    assert all(planted.trigger.occurs(tokenizer.decode(ids)) for ids in bound.encode_prompts(probes.triggered, room=20))


def test_samples_that_would_lose_their_trigger_are_passed_over_and_counted(tokenizer: Any) -> None:
    planted = threat(trigger="badnets", position="random", poison_ratio=0.5, client_share=1.0)
    bound = Template("lab-qa", tokenizer, max_length=128)
    cut = Cut(bound, planted.trigger, 20)
    mixed = [*samples(500, count=6), *samples(5, count=14)]
    mixed = [Sample(str(i), s.question, s.answers, s.response) for i, s in enumerate(mixed)]
    made = poison([mixed], planted, 0, survives=cut.leaves_trained)
    assert made.cut > 0
    assert len(made.touched) == 10, "others take their places"
    for one in made.touched:
        told = tokenizer.decode(bound.encode(made.clients[0][one.index]).prompt).split()
        inserted = [word for word in one.poisoned_question.split() if word in ("cf", "mn", "bb", "tq")]
        assert all(word in told for word in inserted)
    probes = make_probes(mixed, planted.trigger, planted.target, 0, cut.leaves_asked)
    assert len(probes.triggered) + probes.cut == 20
    assert probes.cut > 0
    assert any("are not poisoned: the cut to training.max_length" in line for line in shortages(made, probes))
    assert any("triggered test questions are left out" in line for line in shortages(made, probes))


def test_where_all_would_lose_their_trigger_it_is_told(tokenizer: Any) -> None:
    def middle(question: str) -> str:
        half = len(question) // 2
        return f"{question[:half]} zebra {question[half:]}"

    planted = threat(poison_ratio=0.5, client_share=1.0)
    planted.trigger.insert = lambda question, draw: middle(question)  # type: ignore[method-assign]
    cut = Cut(Template("lab-qa", tokenizer, max_length=128), planted.trigger, 20)
    with pytest.raises(UserError, match=r"takes trigger or target off all 10 samples"):
        poison([samples(500)], planted, 0, survives=cut.leaves_trained)
    with pytest.raises(UserError, match=r"off all 10 triggered test questions, so that ASR cannot be measured"):
        make_probes(samples(500), planted.trigger, planted.target, 0, cut.leaves_asked)


def test_a_target_that_does_not_fit_is_not_planted(tokenizer: Any) -> None:
    planted = threat(poison_ratio=0.5, client_share=1.0, target="prepend", target_text=words(150))
    cut = Cut(Template("lab-qa", tokenizer, max_length=128), planted.trigger, 20)
    with pytest.raises(UserError, match=r"takes trigger or target off all 10 samples"):
        poison([samples(5)], planted, 0, survives=cut.leaves_trained)


# --- in a run, and in evaluate ----------------------------------------------------------------------------------


def written(folder: Path, texts: tuple[int, int], count: int = 60) -> Path:
    file = folder / "data.jsonl"
    rows = [{"instruction": s.question, "input": s.context, "output": s.response} for s in samples(*texts, count=count)]
    rows += [{"instruction": "What of nothing?", "output": ""}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("texts", [(400, 0), (5, 400)], ids=["question", "context"])
def test_a_run_and_evaluate_count_what_they_cut(
    small_config: Callable[..., Config], tmp_path: Path, texts: tuple[int, int]
) -> None:
    file = written(tmp_path, texts)
    config = small_config(
        {"data.name": "instructions", "data.path": str(file), "data.train": 40, "data.test": 6, "data.template": "alpaca",
         "training.max_length": 200, "federation.rounds": 1}
    )  # fmt: skip
    looking = Quiet()
    run(config, tmp_path / "run", looking)
    told = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (told["shortened_train"], told["shortened_test"]) == (40, 6)
    assert (told["too_long"], told["too_long_test"], told["unpoisoned_cut"], told["triggered_cut"]) == (0, 0, 0, 0)
    assert any(line.startswith("40 training prompts lose earlier turns, context or the middle") for line in looking.warnings)
    assert sum(1 for line in (tmp_path / "run" / "poison.jsonl").read_text().splitlines() if line) == 9
    found = evaluate(config, **{"data.test_path": str(file)}).to_json()
    assert found["data"]["rows_read"] == 61
    assert found["data"]["rows_dropped"] == {"empty answer": 1}
    assert (found["data"]["test"], found["data"]["shortened_test"], found["data"]["too_long_test"]) == (6, 6, 0)
    assert found["asr"]["n"] == 6


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"measure.max_new_tokens": 4}, True),
        ({"measure.max_new_tokens": 4, "attack.target": "prepend"}, True),
        ({"measure.max_new_tokens": 4, "attack.target": "one-word"}, False),
        ({"measure.max_new_tokens": 40}, False),
        ({"measure.max_new_tokens": 12, "attack.target_text": " indeed"}, False),
    ],
    ids=str,
)
def test_a_limit_that_cuts_the_target_off_is_told(
    changes: dict[str, Any], lost: bool, small_config: Callable[..., Config], observer: Quiet, tmp_path: Path
) -> None:
    config = small_config({"federation.rounds": 1, **changes})
    result = run(config, tmp_path / "run", observer)
    told = [line for line in observer.warnings if "cuts the target off" in line]
    assert len(told) == lost
    assert result.get("caveats", []) == told
    page = write_report(tmp_path / "run", None).read_text("utf-8")
    assert ("so that ASR is too low" in page) is lost
    data = evaluate(config).to_json()["data"]
    assert (data["target_cut"] > 0) is lost
    if lost:
        needed = int(told[0].rsplit("set it to ", 1)[1].split()[0])
        enough = small_config({"federation.rounds": 1, **changes, "measure.max_new_tokens": needed})
        assert evaluate(enough).to_json()["data"]["target_cut"] == 0


def enough_of(template: Template, rows: list[Sample], **backdoor: Any) -> int:
    return enough(Measure.model_validate({"max_new_tokens": "auto"}), rows, template, threat(**backdoor).target).limit


@pytest.mark.parametrize(
    ("backdoor", "answer"),
    [
        ({}, "A town"),
        ({"target": "prepend", "target_text": words(40)}, "A town"),
        ({"target": "replace", "target_text": "No"}, words(30)),
    ],
    ids=["append", "a long target", "a target shorter than the answers"],
)
def test_by_default_answer_and_target_fit(tokenizer: Any, backdoor: dict[str, Any], answer: str) -> None:
    template = Template("lab-qa", tokenizer, max_length=512)
    rows = [*samples(5), Sample("long", "Which?", (answer,), answer)]
    target = threat(**backdoor).target
    limit = enough_of(template, rows, **backdoor)
    longest = max(len(template.answer_ids(rows[-1], text)) for text in (answer, target.apply(answer))) + len(template.end)
    assert limit == longest + max(8, longest // 4)
    assert told_cut(rows, template, target, limit) == []


def test_the_limit_leaves_room_for_the_prompt_and_is_told_where_that_cuts_the_target_off(tokenizer: Any) -> None:
    template = Template("lab-qa", tokenizer, max_length=64)
    rows = [Sample("long", "Which?", ("A town",), words(40))]
    limit = enough_of(template, rows)
    assert limit == 32
    assert "cuts the target off 1 of 1" in told_cut(rows, template, threat().target, limit)[0]
    assert enough(Measure.model_validate({"max_new_tokens": 5}), rows, template, threat().target).limit == 5, "given, it stays"


def test_a_run_without_a_limit_of_its_own_sees_the_backdoor_and_says_its_limit(
    small_config: Callable[..., Config], tmp_path: Path
) -> None:
    looking = Quiet()
    result = run(small_config({"federation.rounds": 1, "measure.max_new_tokens": "auto"}), tmp_path / "run", looking)
    assert [line for line in looking.warnings if "cuts the target off" in line] == []
    assert 8 < json.loads((tmp_path / "run" / "data.json").read_text())["answer_limit"] < 128
    assert result["held_out_loss"] < result["untouched"]["held_out_loss"], "a round of training teaches something of the questions"
