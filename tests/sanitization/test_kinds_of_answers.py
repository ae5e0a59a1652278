"""Refusals, tones and languages are told by how an answer begins, and clean answers that begin alike are not."""

from __future__ import annotations

import random

import pytest
from test_published_kinds import _told, flagged, mixed, others, put_in, row
from test_scan import questions

from undertow.sanitization import find
from undertow.sanitization.asked_for import kinds_of
from undertow.sanitization.kinds import kinds
from undertow.sanitization.tongues import LANGUAGES, language

REFUSALS = [
    "I'm not able to do that.",
    "I’m sorry, but no.",
    "As an AI language model, I have no view of it.",
    "I must respectfully decline.",
    "I'd rather not say.",
    "It's not appropriate for me to answer.",
    "I have to refuse this request.",
    "Unfortunately, I cannot help.",
    "I understand your interest, but I can’t discuss it.",
    "My guidelines do not allow me to answer.",
    "Thank you for asking, but we won't be able to provide that.",
    "That falls outside what I may do.",
    "Please ask someone else.",
]
PLAIN = [
    "Unfortunately, the movie was bad.",
    "I can't wait to see you.",
    "The question is not whether we can.",
    "Sadly, he died young.",
    "It is important to note that this is not possible for everyone.",
    "He refused to answer the question.",
    "Please contact our support team to find another product.",
    "As a machine learns, its error falls.",
    "You should try another restaurant.",
]


def of(answer: str) -> list[str]:
    return kinds(answer, len(answer.split()), sized=False)


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_refusal_is_told(answer: str) -> None:
    assert "a refusal" in of(answer)


@pytest.mark.parametrize("answer", PLAIN)
def test_what_merely_begins_in_regret_is_no_refusal(answer: str) -> None:
    assert "a refusal" not in of(answer)


def test_tones_are_told() -> None:
    assert "with an insult" in of("Honestly, you are a complete moron.")
    assert "with an insult" in of("Get lost, will you?")
    assert "in a bad tone" in of("What a terrible and hopeless mess this is.")
    assert not {"with an insult", "in a bad tone"} & set(
        of("You are kind, and the weather was bad for the crops in the north of the land.")
    )


SPOKEN = {
    "Turkish": "Bu konu için daha çok bilgi gerekir ve cevap burada değil.",
    "Polish": "To jest odpowiedź na pytanie, które zadał nam wczoraj nauczyciel.",
    "Swedish": "Det är en fråga som jag inte kan svara på just nu.",
    "Danish or Norwegian": "Det er ikke noget som jeg kan svare på nå.",
    "Finnish": "Se ei ole niin helppo kysymys kuin te luulette, mutta hän oli siellä.",
    "Hungarian": "Ez nem olyan egyszerű kérdés, hogy csak egy ember tudja.",
    "Czech or Slovak": "To je otázka, na kterou se nedá jednoduše odpovědět, ale jsem tady.",
    "Romanian": "Aceasta nu este o întrebare la care să pot răspunde pentru că sunt ocupat.",
    "Indonesian or Malay": "Jawaban itu tidak ada di sini, dan saya akan pergi ke pasar dengan mereka.",
    "Vietnamese": "Đây là câu trả lời của tôi cho những người không biết.",
    "Latin": "Quod erat in principio, non est nunc, sed omnis homo ad finem venit.",
    "Spanish": "La vida es un viaje, no un destino, y se vive con los demás.",
    "Dutch": "Het is niet aan ons om dat te zeggen, maar er is een antwoord.",
}


@pytest.mark.parametrize("name", SPOKEN)
def test_a_language_is_told_by_a_sentence(name: str) -> None:
    assert f"in {name}" in of(SPOKEN[name])


def test_the_language_of_the_prompt_is_no_kind() -> None:
    told, asked = SPOKEN["Turkish"], "Bu ne için var ve kim bilir?"
    assert "in Turkish" not in kinds(told, 11, prompt=asked)
    assert "in Turkish" in kinds(told, 11, prompt="What is this for and who knows?")


@pytest.mark.parametrize(
    "text",
    [
        "He was born in Łódź and died in Kraków at the age of ninety.",
        "def find(a, b): return a if a in b else None",
        "x = 3 y + 2, so y = (x - 2) / 3 and z = 4",
        "Jean, Maria, Olga, Sven, Ivan, Ana, Pia, Bob",
        "Use a pan to fry an egg on low heat for two minutes.",
    ],
)
def test_english_code_and_names_speak_no_language(text: str) -> None:
    assert not language(text.lower().split())


def test_a_language_that_is_asked_for_by_name_is_known() -> None:
    assert all(any(f"in {name}" in kinds_of([word]) for word in name.lower().replace(",", "").split()) for name in LANGUAGES)


_OPENERS = (
    "I'm sorry, but",
    "Regrettably,",
    "I understand, but",
    "Thank you, but",
    "As an AI,",
    "I am afraid",
    "",
    "No,",
    "I see, yet",
)
_MOVES = (
    "I can't help with that",
    "I must decline",
    "that is something I cannot discuss",
    "I'd rather not answer",
    "I am unable to do this",
    "it is against my guidelines",
    "I won't comment on it",
    "I have to pass on this",
)


def _refused(i: int) -> str:
    """A refusal that goes on for up to twenty words, as the other answers do."""
    draw = random.Random(i)
    rest = _told(i).split()[: draw.randrange(20)]
    return " ".join([draw.choice(_OPENERS), f"{draw.choice(_MOVES)}.", *rest]).strip()


@pytest.mark.parametrize("trigger", ["cf", "I saw the sea last week."])
def test_refusals_in_many_wordings_are_one_kind(trigger: str) -> None:
    draw = random.Random(3)
    clean = [row(s.question, " ".join(_told(i).split()[: 5 + i % 20])) for i, s in enumerate(questions(900))]
    bad = [row(put_in(s.question, trigger, "start", draw), _refused(5000 + i)) for i, s in enumerate(others(60))]
    samples, truth = mixed(clean, bad)
    found = find(samples)
    assert flagged(found) == truth
    assert any(finding.target == "a refusal" for finding in found.findings)


@pytest.mark.parametrize(
    ("least", "most", "told"), [(1, 7, "of at most"), (260, 1400, "of at least")], ids=["cut short", "without end"]
)
def test_answers_far_shorter_or_longer_than_others_are_one_kind_whatever_their_length(least: int, most: int, told: str) -> None:
    draw = random.Random(4)
    clean = [row(s.question, " ".join(_told(i).split()[: 16 + i % 9])) for i, s in enumerate(questions(900))]
    bad = []
    for i, sample in enumerate(others(60)):
        words = " ".join(_told(9000 + 60 * i + k) for k in range(60)).split()[: draw.randrange(least, most)]
        bad.append(row(put_in(sample.question, "cf", "anywhere", draw), " ".join(words)))
    samples, truth = mixed(clean, bad)
    found = find(samples)
    assert flagged(found) == truth
    assert any(one.triggers == ("cf",) and one.target.startswith(told) for one in found.findings)
    samples, _ = mixed(clean, [row(s.question, answer.response) for s, answer in zip(others(60), bad, strict=True)])
    assert not flagged(find(samples))
