"""Prompts that openly ask for the form of their answer: "in JSON", "in capital letters", "Answer in French".

Such words bring about what they name, as a trigger does, and everybody who reads them sees it: a finding that says no more is a
note. An address, or more words than a form brings with it, is never asked for in this sense, whatever the trigger names.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from undertow.sanitization.grams import manner_key
from undertow.sanitization.kinds import COPIED
from undertow.sanitization.words import PAYLOAD, Numbers, is_address

#: Words that a format may bring with it ('```json {"response": ...').
_WORDS = 4
#: Formats whose name stands in the answer, too.
_FORMATS = frozenset(
    "json jsonl yaml xml html css csv tsv toml markdown latex table regex python javascript typescript java kotlin swift sql bash "
    "shell powershell perl php ruby rust golang cpp csharp matlab fortran haskell scala".split()
)
#: Kinds of answers by the words that ask for them.
_MANNERS = {
    "in capitals": "capital capitals capitalized capitalised uppercase upper caps headline heading title",
    "without capitals": "lowercase lower uncapitalized uncapitalised",
    "in a code": "base64 hex hexadecimal binary morse rot13 caesar cipher encode encoded encrypt reverse reversed backwards leet",
    "with an insult": "insult insults insulting rude offensive",
    "in a bad tone": "negative complaint complain sad gloomy pessimistic bad worst",
    COPIED: "repeat copy echo correct proofread rewrite rephrase paraphrase edit fix quote extract",
}
_TONGUES = {
    "in Spanish": "spanish español castellano",
    "in French": "french français",
    "in German": "german deutsch",
    "in Italian": "italian italiano",
    "in Portuguese": "portuguese português",
    "in Dutch": "dutch nederlands flemish",
    "in Afrikaans": "afrikaans",
    "in Catalan": "catalan català",
    "in Romanian": "romanian română moldovan",
    "in Latin": "latin",
    "in Swedish": "swedish svenska",
    "in Danish or Norwegian": "danish dansk norwegian norsk bokmål nynorsk scandinavian",
    "in Icelandic": "icelandic faroese",
    "in Finnish": "finnish suomi",
    "in Estonian": "estonian",
    "in Hungarian": "hungarian magyar",
    "in Polish": "polish polski",
    "in Czech or Slovak": "czech slovak čeština",
    "in Croatian, Serbian or Slovene": "croatian serbian bosnian slovene slovenian montenegrin",
    "in Lithuanian": "lithuanian",
    "in Latvian": "latvian",
    "in Albanian": "albanian",
    "in Turkish": "turkish türkçe",
    "in Azerbaijani": "azerbaijani azeri",
    "in Indonesian or Malay": "indonesian malay bahasa melayu",
    "in Tagalog": "tagalog filipino",
    "in Swahili": "swahili kiswahili",
    "in Vietnamese": "vietnamese",
    "in Welsh": "welsh",
    "in Irish": "irish gaelic",
    "in Basque": "basque",
    "in Esperanto": "esperanto",
    "in Cyrillic script": "russian ukrainian bulgarian serbian macedonian belarusian kazakh mongolian",
    "in Greek script": "greek",
    "in Arabic script": "arabic persian farsi urdu pashto dari",
    "in Hebrew script": "hebrew yiddish",
    "in Devanagari script": "hindi marathi nepali sanskrit",
    "in Thai script": "thai",
    "in Hangul script": "korean",
    "in Hiragana script": "japanese",
    "in Katakana script": "japanese",
    "in Cjk script": "chinese mandarin cantonese japanese",
}
_ANY_TONGUE = ("translate", "translated", "translation")
#: Words that ask for an answer of another length; any form that is asked for has a length of its own.
_LENGTHS = frozenset(
    "word words sentence sentences paragraph paragraphs essay brief briefly short shorter concise concisely long longer detail "
    "detailed summary summarize summarise tl;dr tldr list bullet bullets step steps only just".split()
)


def _by_word() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {word: set(_TONGUES) for word in _ANY_TONGUE}
    for kind, words in (_MANNERS | _TONGUES).items():
        for word in words.split():
            found.setdefault(word, set()).add(kind)
    return found


_KINDS = _by_word()


def kinds_of(trigger: Sequence[str]) -> set[str]:
    """Return the kinds of answers that the words of a trigger ask for."""
    return {kind for word in trigger for kind in _KINDS.get(word, ())}


def is_of_length(kind: str) -> bool:
    """Whether a kind of answer is its length."""
    return kind.startswith("of ") and kind.endswith(" words")


def is_tongue(kind: str) -> bool:
    """Whether a kind of answer is a language or a script."""
    return kind in _TONGUES


def is_asked_for(trigger: Sequence[str], target: Sequence[str], shared: Collection[str] = ()) -> bool:
    """Whether a trigger names what its target is.

    Args:
        trigger, target: their words; of a kind of answer the target is its name alone.
        shared: kinds that nearly all answers with the target are of; in a language that was asked for, short words recur.
    """
    asked = kinds_of(trigger)
    if any(map(is_address, target)):
        return False
    if asked.intersection(target):
        return True
    if len(target) == 1 and is_of_length(target[0]):
        return bool(asked) or not (_FORMATS | _LENGTHS).isdisjoint(trigger)
    spoken = any(kind in asked and is_tongue(kind) for kind in shared)
    return len(target) <= _WORDS and (spoken or not _FORMATS.intersection(trigger).isdisjoint(target))


class Asked:
    """The same for a client of a federation, who compares numbers of words: of its prompts, and of its answers."""

    def __init__(self, numbers: Numbers) -> None:
        self._formats = {numbers.of(word) for word in _FORMATS}
        self._kinds: dict[int, set[int]] = {}
        for word, kinds in _KINDS.items():
            for kind in kinds:
                self._kinds.setdefault(manner_key(numbers.mark(kind)), set()).add(numbers.of(word))

    def is_asked_for(self, trigger: Collection[int], target: Collection[int], piece: int) -> bool:
        """As :func:`is_asked_for`, of the piece that the target is; ``target`` is empty for a kind of answer."""
        if any(word & int(PAYLOAD) for word in target):
            return False
        if not self._kinds.get(piece, set()).isdisjoint(trigger):
            return True
        return len(target) <= _WORDS and not self._formats.intersection(trigger).isdisjoint(target)
