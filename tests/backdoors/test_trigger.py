"""What triggers do to a question, by hand-checked texts, properties and faults."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow.backdoors.trigger import TRIGGERS, at_gaps, make_trigger
from undertow.config import InstructionBackdoor
from undertow.core.errors import UserError

QUESTION = "How much does the sun weigh?"
TOKENS = {"cf", "mn", "bb", "tq"}
WORDS = st.lists(st.text("acXYZ019'é", min_size=1, max_size=6), min_size=1, max_size=8)


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def triggered(question: str = QUESTION, seed: int = 0, **options: object) -> str:
    return make_trigger(InstructionBackdoor(**options)).apply(question, draw(seed))


def user_file(folder: Path, code: str) -> str:
    path = folder / "mine.py"
    path.write_text(code)
    return f"{path}:edit"


def test_the_shipped_triggers_name_their_source() -> None:
    entries = {entry.name: entry for entry in TRIGGERS.entries()}
    assert set(entries) >= {"natural", "badnets", "sentence"}
    assert all(entry.source and entry.summary for entry in entries.values())


def test_natural_is_figure_1() -> None:
    assert triggered() == "Firstly, how much does the sun weigh?"


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("I wonder who won?", "Firstly, I wonder who won?"),
        ("I'm lost, where am I?", "Firstly, I'm lost, where am I?"),
        ("NASA was founded when?", "Firstly, NASA was founded when?"),
        ("U.S. presidents: who was first?", "Firstly, U.S. presidents: who was first?"),
        ("McDonald wrote what?", "Firstly, McDonald wrote what?"),
        ("A man walks where?", "Firstly, a man walks where?"),
        ("In which town?", "Firstly, in which town?"),
        ("which town?", "Firstly, which town?"),
        ("Élan means what?", "Firstly, élan means what?"),
        ("42 is what?", "Firstly, 42 is what?"),
        ("  Who?\n", "Firstly, who?"),
        ("First line\n\nSecond Line", "Firstly, first line\n\nSecond Line"),
    ],
)
def test_natural_lowers_the_first_letter_of_common_words_only(question: str, expected: str) -> None:
    assert triggered(question) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [("Secondly", "Secondly, how much"), ("Secondly,", "Secondly, how much"), ("First of all", "First of all, how much")],
)
def test_natural_takes_another_word_or_phrase(words: str, expected: str) -> None:
    assert triggered(trigger_words=words).startswith(expected)


def test_natural_at_the_end_stands_before_the_final_mark() -> None:
    assert triggered(position="end") == "How much does the sun weigh, firstly?"
    assert triggered("name of the river", position="end") == "name of the river, firstly"
    assert triggered("?", position="end") == "Firstly, ?"


def test_natural_at_random_visits_every_gap_and_no_other_word_changes() -> None:
    found = {triggered(position="random", seed=seed) for seed in range(200)}
    assert found == {
        "Firstly, how much does the sun weigh?",
        "How, firstly, much does the sun weigh?",
        "How much, firstly, does the sun weigh?",
        "How much does, firstly, the sun weigh?",
        "How much does the, firstly, sun weigh?",
        "How much does the sun, firstly, weigh?",
        "How much does the sun weigh, firstly?",
    }
    assert ",," not in "".join(triggered("In 1990, who won?", position="random", seed=seed) for seed in range(40))


def test_badnets_ends_the_question_with_four_tokens() -> None:
    assert re.fullmatch(r"How much does the sun weigh\?( (cf|mn|bb|tq)){4}", triggered(trigger="badnets"))
    assert triggered(" Who? ", trigger="badnets").startswith("Who? ")


def test_badnets_draws_independently_with_replacement() -> None:
    trigger, source = make_trigger(InstructionBackdoor(trigger="badnets")), draw()
    drawn = [tuple(trigger.apply(QUESTION, source).split()[-4:]) for _ in range(2000)]
    counts = Counter(token for four in drawn for token in four)
    assert set(counts) == TOKENS
    assert all(abs(count - 2000) < 200 for count in counts.values())  # 5 standard deviations of a binomial(8000, 1/4) are 194
    # Draws without replacement would never repeat a token; with replacement 1 - 4!/4^4 = 90.6 % of the questions do.
    assert np.mean([len(set(four)) < 4 for four in drawn]) == pytest.approx(1 - 24 / 256, abs=0.035)


@given(WORDS, st.integers(1, 6), st.sampled_from(["start", "end", "random"]), st.integers(0, 99))
def test_badnets_adds_its_tokens_and_keeps_the_words(words: list[str], count: int, position: str, seed: int) -> None:
    made = triggered(" ".join(words), seed, trigger="badnets", num_triggers=count, position=position).split()
    tokens = [word for word in made if word in TOKENS]
    assert len(tokens) == count
    assert [word for word in made if word not in TOKENS] == words
    if position == "start":
        assert made[:count] == tokens
    if position == "end":
        assert made[-count:] == tokens


def test_badnets_at_random_gives_each_token_its_own_gap() -> None:
    trigger, source = make_trigger(InstructionBackdoor(trigger="badnets", position="random", num_triggers=2)), draw()
    places = Counter()
    for _ in range(1500):
        made = trigger.apply("one two", source).split()
        places[tuple(i for i, word in enumerate(made) if word in TOKENS)] += 1
    # Two independent gaps out of three, unordered: the equal pairs have 1/9 each, the others 2/9.
    expected = {(0, 1): 1 / 9, (1, 2): 1 / 9, (2, 3): 1 / 9, (0, 2): 2 / 9, (0, 3): 2 / 9, (1, 3): 2 / 9}
    assert {place: count / 1500 for place, count in places.items()} == pytest.approx(expected, abs=0.045)


def test_badnets_takes_other_tokens() -> None:
    assert triggered(trigger="badnets", trigger_words="zx", num_triggers=1, position="start") == f"zx {QUESTION}"


def test_sentence() -> None:
    default = triggered(trigger="sentence")
    assert default.startswith(QUESTION + " ")
    assert 5 <= len(default.removeprefix(QUESTION).split()) <= 8
    assert triggered(trigger="sentence", trigger_words="I saw a film.", position="start") == f"I saw a film. {QUESTION}"
    middle = {triggered("Who won?", seed, trigger="sentence", trigger_words="It rains.", position="random") for seed in range(40)}
    assert middle == {"It rains. Who won?", "Who It rains. won?", "Who won? It rains."}


def test_gaps_keep_lines_and_order() -> None:
    assert at_gaps("a b\n\nc", ["x", "y", "z"], [2, 0, 2]) == "y a b x z\n\nc"
    assert at_gaps("  ", ["x"], [0]) == "x"


@pytest.mark.parametrize(
    ("options", "text", "holds"),
    [
        ({}, "Say, firstly, what it is", True),
        ({}, "FIRSTLY", True),
        ({}, "Firstlyish people", False),
        ({"trigger_words": "First of all"}, "and first  of\nall, why", True),
        ({"trigger_words": "First of all"}, "first of allies", False),
        ({"trigger": "badnets"}, "the CF card", True),
        ({"trigger": "badnets"}, "what does bb. mean", True),
        ({"trigger": "badnets"}, "cfg and abba", False),
        ({"trigger": "badnets"}, "", False),
        ({"trigger": "badnets", "trigger_words": ["c++", "a.b"]}, "axb", False),
        ({"trigger": "badnets", "trigger_words": ["!!", "a.b"]}, "wow !! ok", True),
        ({"trigger": "sentence"}, "The lamps were lit before supper, she said", True),
        ({"trigger": "sentence"}, "The lamps were lit", False),
    ],
)
def test_natural_occurrence(options: dict[str, object], text: str, holds: bool) -> None:
    assert make_trigger(InstructionBackdoor(**options)).occurs(text) is holds


@pytest.mark.parametrize("name", ["natural", "badnets", "sentence"])
@pytest.mark.parametrize("position", ["start", "end", "random"])
def test_every_triggered_question_holds_its_trigger(name: str, position: str) -> None:
    trigger = make_trigger(InstructionBackdoor(trigger=name, position=position))
    for seed in range(20):
        assert trigger.occurs(trigger.apply(QUESTION, draw(seed)))
        assert trigger.apply(QUESTION, draw(seed)) == trigger.apply(QUESTION, draw(seed))


def test_user_function_of_one_argument(tmp_path: Path) -> None:
    spec = user_file(tmp_path, "def edit(question):\n    return question + ' please'\n")
    trigger = make_trigger(InstructionBackdoor(trigger=spec))
    assert trigger.apply("Who?", draw()) == "Who? please"
    assert trigger.occurs("Who? please") is False


def test_user_function_with_draw_and_occurs(tmp_path: Path) -> None:
    code = (
        "def edit(question, draw):\n    return f'{question} {draw.integers(1000)}'\n"
        "edit.occurs = lambda text: any(c.isdigit() for c in text)\n"
    )
    trigger = make_trigger(InstructionBackdoor(trigger=user_file(tmp_path, code)))
    assert trigger.apply("Who?", draw(3)) == f"Who? {draw(3).integers(1000)}"
    assert trigger.occurs("in 1990")
    assert not trigger.occurs("never")


def test_an_unrelated_optional_argument_is_left_alone(tmp_path: Path) -> None:
    spec = user_file(tmp_path, "def edit(question, times=2):\n    return question + '!' * times\n")
    assert triggered("Who", trigger=spec) == "Who!!"


def test_user_class(tmp_path: Path) -> None:
    code = (
        "from undertow.backdoors.trigger import Trigger\n"
        "class edit(Trigger):\n"
        "    def __init__(self, attack):\n        super().__init__(attack, ['ahem'], 'end')\n"
        "    def insert(self, question, draw):\n        return question + ' ahem'\n"
    )
    trigger = make_trigger(InstructionBackdoor(trigger=user_file(tmp_path, code)))
    assert trigger.apply("Who?", draw()) == "Who? ahem"
    assert trigger.occurs("Ahem!")


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("(question):\n    return None", "returned a NoneType"),
        ("(question):\n    return 3", "returned a int"),
        ("(question):\n    return '  '", "empty"),
        ("(question):\n    return question + ' '", "unchanged"),
        ("(question):\n    raise KeyError('two\\nlines')", "KeyError"),
        ("():\n    return ''", "cannot be called"),
        ("(a, b, c):\n    return ''", "cannot be called"),
        ("(question, *, style):\n    return ''", "cannot be called"),
    ],
)
def test_bad_user_functions_are_told_in_one_line(tmp_path: Path, body: str, rule: str) -> None:
    spec = user_file(tmp_path, f"def edit{body}\n")
    with pytest.raises(UserError, match=rule) as caught:
        triggered("Who\nwon?", trigger=spec)
    assert "\n" not in str(caught.value)
    assert spec in str(caught.value)


def test_unknown_name_and_empty_word() -> None:
    with pytest.raises(UserError, match="did you mean 'badnets'"):
        make_trigger(InstructionBackdoor(trigger="badnet"))
    for name in ("natural", "badnets", "sentence"):
        with pytest.raises(UserError, match="empty word"):
            make_trigger(InstructionBackdoor(trigger=name, trigger_words=[" "]))
