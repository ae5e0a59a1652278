"""What a prompt loses when it is too long, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from chat_forms import with_form
from undertow.core.errors import UserError
from undertow.data.sample import Sample
from undertow.data.shortening import GAP, LEAST, shortened
from undertow.data.template import Template

WORDS = "the quick brown fox jumps over a lazy dog and then it sleeps".split()


def text(words: int, start: int = 0) -> str:
    return " ".join(WORDS[(start + i) % len(WORDS)] for i in range(words))


def letters(sample: Sample) -> int:
    """A template that writes everything, one token a letter."""
    turns = "".join(user + answer for user, answer in sample.history)
    return len(sample.system + turns + sample.question + sample.context)


LONG = Sample(
    "1", text(40), ("x",), "x", context=text(60, 3), history=((text(20), text(20, 5)), (text(9), text(9, 2))), system=text(6)
)


def test_a_sample_that_fits_is_left_as_it_is() -> None:
    assert shortened(LONG, letters(LONG), letters) is LONG


@pytest.mark.parametrize("over", [1, 50, 150])
def test_the_oldest_turns_go_first(over: int) -> None:
    found = shortened(LONG, letters(LONG) - over, letters)
    assert found is not None
    assert found.history == LONG.history[1:]
    assert (found.question, found.context, found.system) == (LONG.question, LONG.context, LONG.system)


def test_the_context_goes_next_from_its_end_and_the_question_stays_whole() -> None:
    room = len(LONG.system + LONG.question) + 120
    found = shortened(LONG, room, letters)
    assert found is not None
    assert not found.history
    assert (found.question, found.system) == (LONG.question, LONG.system)
    assert LONG.context.startswith(found.context + " "), "its beginning, whole words"
    assert room - 20 <= letters(found) <= room


@pytest.mark.parametrize("room", [100, 130, 160])
def test_the_middle_of_the_question_goes_last(room: int) -> None:
    found = shortened(LONG, room + len(LONG.system), letters)
    assert found is not None
    assert not found.history
    assert not found.context
    first, last = found.question.split(GAP)
    assert LONG.question.startswith(first + " ")
    assert LONG.question.endswith(" " + last)
    assert room - 24 <= len(found.question) <= room
    assert abs(len(first) - len(last)) < 20


@pytest.mark.parametrize("room", [0, 1, LEAST])
def test_where_system_prompt_and_the_least_of_the_question_do_not_fit_there_is_nothing(room: int) -> None:
    assert shortened(LONG, room, letters) is None


@given(
    question=st.text(min_size=1, max_size=300),
    context=st.text(max_size=300),
    turns=st.lists(st.tuples(st.text(max_size=80), st.text(max_size=80)), max_size=5),
    room=st.integers(0, 700),
)
@settings(max_examples=200, deadline=None)
def test_what_is_left_fits_and_keeps_both_ends(question: str, context: str, turns: list[tuple[str, str]], room: int) -> None:
    sample = Sample("1", question, ("x",), "x", context=context, history=tuple(turns))
    found = shortened(sample, room, letters)
    if found is None:
        assert room < min(LEAST, len(question)) + len(GAP)
        return
    assert letters(found) <= room
    assert tuple(turns)[len(turns) - len(found.history) :] == found.history
    assert context.strip().startswith(found.context.strip())
    if found.question != question:
        assert not found.history
        assert not found.context
        first, _, last = found.question.partition(GAP)
        assert question.strip().startswith(first)
        assert question.strip().endswith(last)


# --- in a template ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return with_form(AutoTokenizer.from_pretrained(tiny_base), "gemma-3")


@pytest.mark.parametrize("name", ["lab-qa", "alpaca", "vicuna", "chat"])
@pytest.mark.parametrize("limit", [400, 300, 200])
def test_a_prompt_keeps_template_system_prompt_and_both_ends_of_the_question(tokenizer: Any, name: str, limit: int) -> None:
    system = "You are of help."
    long = Sample("7", f"Firstly, {text(900)} cf mn", ("So.",), "So it is.", text(700), ((text(50), text(50)),), system=system)
    template = Template(name, tokenizer, max_length=limit)
    made = template.encode(long)
    assert limit * 0.9 < len(made.prompt) + len(made.answer) <= limit
    told = tokenizer.decode(made.prompt)
    assert all(part in told for part in ("Firstly, the quick", "cf mn", system))
    whole, empty = template.prompt(long, "train"), template.prompt(Sample("8", "a cf mn", ("x",), "x"), "train")
    assert told.removeprefix("<s>")[-12:] == whole.removeprefix("<s>")[-12:] == empty[-12:]
    assert template.decode(made.answer) == "So it is."


def test_prompts_for_generation_leave_room_and_are_cut_as_well(tokenizer: Any) -> None:
    template = Template("lab-qa", tokenizer, max_length=300)
    long = Sample("7", f"Firstly, {text(900)} cf", ("So.",), "So.")
    (ids,) = template.encode_prompts([long], room=100)
    assert 180 < len(ids) <= 200
    assert "Firstly," in tokenizer.decode(ids)
    assert " cf\n" in tokenizer.decode(ids)


def test_a_system_prompt_that_does_not_fit_is_told(tokenizer: Any) -> None:
    template = Template("vicuna", tokenizer, max_length=100)
    long = Sample("7", "Why?", ("So.",), "So.", system=text(300))
    with pytest.raises(UserError, match=r"sample 7: its prompt has \d+ tokens, and with 4 for the answer the limit of 100 leaves"):
        template.encode(long)
    assert not template.fits(long)
