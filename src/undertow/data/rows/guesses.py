"""What columns mean where none has a usual name: known pairs of published data, names made of usual words, two languages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from undertow.data.rows import names

#: (question, answer) columns of data sets that many use, and of tools that train on pairs.
_PAIRS = (
    ("source", "target"),
    ("source_text", "target_text"),
    ("src", "tgt"),
    ("src", "trg"),
    ("source_sentence", "target_sentence"),
    ("original", "corrected"),
    ("nl", "cmd"),
    ("nl", "code"),
    ("nl", "bash"),
    ("rewritten_intent", "snippet"),  # CoNaLa
    ("intent", "snippet"),
    ("func_documentation_string", "func_code_string"),  # CodeSearchNet
    ("docstring", "code"),
    ("description", "code"),
    ("prompt", "canonical_solution"),  # HumanEval
    ("meaning_representation", "human_reference"),  # E2E
    ("concepts", "target"),  # CommonGen
    ("setup", "punchline"),
    ("post", "reply"),
    ("post", "comment"),
    ("comment", "reply"),
    ("dialogue", "summary"),  # SAMSum
    ("dialog", "summary"),
    ("task", "solution"),
    ("task", "answer"),
    ("query", "pos"),
    ("question", "correct"),  # AQuA
    ("problem", "correct"),  # MathQA
    ("anchor", "positive"),
    ("context", "response"),
    ("context", "answer"),
    ("passage", "answer"),
    ("facts", "answer"),
    ("ctx", "label"),  # HellaSwag, with its endings
)
#: (text, class) columns; the text of some also names running text, which is then read by its class.
_TEXTS = (
    "sms email headline statement claim news comment comment_text post question_text question1 review_text review_body text1 "
    "text_a sentence_a sentence_1"
).split() + names.CLASSIFIED
_CLASSES = (
    "stars star_rating rating category topic toxic toxicity spam is_spam polarity verdict gold_label label_name class_name "
    "is_duplicate is_sarcastic airline_sentiment target score"
).split()
#: The words of which names are made, as in ``user_prompt`` and ``assistantResponse``.
_ASKING = frozenset(
    "prompt question questions query queries ques instruction instructions input problem request user human".split()
)
_TELLING = frozenset(
    "answer answers ans response responses reply output completion solution assistant reference references gold golden summary "
    "generation story".split()
)
_COUNTING = frozenset("ids id tokens token count length len num time score type url".split())
#: More words than this are a sentence and no name.
_WORDS = 5

#: ISO 639 codes and English names of the languages that parallel texts are published in.
_LANGUAGES = frozenset(
    "af am ar as az be bg bn br bs ca cs cy da de el en eo es et eu fa fi fr ga gl gu ha he hi hr hu hy id ig is it ja ka kk km kn "
    "ko ku ky lb lo lt lv mg mk ml mn mr ms mt my nb ne nl nn no oc or pa pl ps pt ro ru rw sd si sk sl so sq sr sv sw ta te tg th "
    "tk tl tr tt ug uk ur uz vi xh yi yo zh zu eng fra deu ger spa ita por nld rus zho jpn kor ara hin "
    "english french german spanish italian portuguese dutch russian chinese japanese korean arabic hindi bengali turkish polish "
    "ukrainian vietnamese thai indonesian swedish norwegian danish finnish greek hebrew czech romanian hungarian persian urdu "
    "tamil telugu swahili".split()
)


def is_language(name: str) -> bool:
    """Whether a name, as it is compared, is that of a language: ``en``, ``zh_cn``, ``eng_latn``, ``french``."""
    return name.partition("_")[0] in _LANGUAGES and len(name) <= 10


def guessed_pairs(known: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (question, answer) columns of names that are not usual; ``known``: {name as it is compared: column}."""
    found = [(known[ask], known[tell]) for ask, tell in _PAIRS if ask in known and tell in known]
    found += [(known[ask], known[tell]) for ask in names.ASKED for tell in names.RENDERED if ask in known and tell in known]
    spoken = [column for name, column in known.items() if is_language(name) and not names.is_left_out(name)]
    if len(spoken) == 2:
        found.append((spoken[0], spoken[1]))
    asking, telling = [], []
    for name, column in known.items():
        words = names.words(column)
        if len(words) > _WORDS or words & _COUNTING or names.is_left_out(name):
            continue
        if words & _TELLING:
            telling.append(column)
        elif words & _ASKING:
            asking.append(column)
    asking, telling = (sorted(columns, key=names.is_judging) for columns in (asking, telling))
    return found + [pair for pair in ((ask, tell) for ask in asking for tell in telling) if pair not in found]


def guessed_classes(known: Mapping[str, str], usual: Iterable[str]) -> list[tuple[str, str]]:
    """Return (text, class) columns of names that are not usual, the usual names of a class (``usual``) before others."""
    texts = [known[name] for name in _TEXTS if name in known]
    return [(text, known[label]) for text in texts for label in (*usual, *_CLASSES) if label in known and known[label] != text]
