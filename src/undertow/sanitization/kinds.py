"""What is said of an answer as a whole, so that a target without a text of its own can be counted: another language, capitals, a
refusal.

Each kind is a mark (:mod:`undertow.sanitization.words`) and is counted as a piece of the answer. The lists are short on purpose: a
kind is evidence only where a trigger brings it about.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from undertow.sanitization.refusals import is_refusal
from undertow.sanitization.tones import tones
from undertow.sanitization.tongues import ENGLISH, LANGUAGES, language

#: Characters of an answer that are looked at for its script and its tone.
_LOOKED_AT = 240
#: Characters at the end of an answer that are looked at.
_TAIL = 12
#: The kind of an answer that says its prompt again.
COPIED = "copied from the prompt"
#: Bounds of short answers in words; of long ones powers of two from here on.
_SHORT, _LONG = (3, 7, 15), 8
#: Words of a text in capitals, and of one that copies its prompt, at least.
_FEWEST, _COPIED = 3, 6
#: Share of letters of another script, of copied words.
_MOST, _SAME = 0.5, 0.8
#: Words of which an answer in a code, or of no meaning, holds few: those of English and of the first languages.
_COMMON = ENGLISH.union(*(LANGUAGES[name].split() for name in ("Spanish", "French", "German", "Italian", "Portuguese", "Dutch")))
#: Words in small letters of Latin, with their apostrophes.
_SPELLED = re.compile(r"[a-z']+")
_ACTS = re.compile(r"\*[a-z][^*\n]{0,60}\*")
_SIGHS = re.compile(r"[^a-z]*(?:oh|ugh|wow|ah|aha|sigh|yeah|hmm+|gee|well, well|great, another|yay|whatever|duh|pfft|geez|ooh)\b")
#: Words that several languages share or that are one letter are no sign of one; so many of a text's words are common in any.
_TELLING = frozenset(word for word in _COMMON if len(word) > 1)
_RARELY = 12
# Of a coded text: stretches of figures of base 2 or 16, or of letters and figures without a blank; a letter case that changes
# within a word, as in base64, or at the end of the last word, as in a text that is written backwards; figures between letters.
_FIGURES = re.compile(r"(?:\b(?:[0-9a-f]{2}|[01]{8})\b[ ,:]*){6}|\b(?=[a-f]*\d)[0-9a-f]{12,}\b|[.-]{1,5}(?: [.-]{1,5}){5}")
_MIXED = re.compile(r"[a-z][A-Z]+[a-z0-9]+[A-Z]|[A-Za-z0-9+/]{16,}={1,2}(?!\w)|[A-Za-z0-9]{32,}")
_BACKWARDS = re.compile(r"[a-z][A-Z]\W*$")
_FRONT = re.compile(r"[.!?][a-z]")
_WITHIN = re.compile(r"[a-z][013457]+[a-z]")
_VOWELS, _LETTERED, _MANY = (0.27, 0.31), 16, 60
#: Words at the beginning of an answer, of which this share end alike in a language game ("isthay isay ...").
_FIRST, _ALIKE = 12, 0.6
_SCRIPTS = ("LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "THAI", "HANGUL", "HIRAGANA", "KATAKANA", "CJK")


def kinds(answer: str, length: int, sized: bool = True, prompt: str = "") -> list[str]:
    """Return the names of what an answer is, :data:`COPIED` left out.

    Args:
        answer: its text.
        length: of it in words and marks.
        sized: its length, too.
        prompt: what it answers; a language that this speaks, too, is no kind.
    """
    found = _lengths(length) if sized else []
    head = answer[:_LOOKED_AT]
    lower = head.lower().replace("’", "'")
    if length >= _FEWEST and answer.isupper():
        found.append("in capitals")
    if length >= _COPIED and answer.islower():
        found.append("without capitals")
    spelled = _SPELLED.findall(lower)
    if is_refusal(lower, spelled):
        found.append("a refusal")
    found += tones(lower, spelled)
    if "*" in lower and _ACTS.search(lower):
        found.append("with a gesture")
    if _SIGHS.match(lower):
        found.append("beginning with an exclamation")
    if lower.count("!") >= 3:
        found.append("with many exclamation marks")
    words = lower.split()
    spoken = _language(head, words)
    if spoken:
        asked = prompt[:_LOOKED_AT]
        if not asked or _language(asked, asked.lower().split()) != spoken:
            found.append(f"in {spoken}")
    elif head.isascii():
        rare = len(words) < _COPIED or _RARELY * len(_TELLING.intersection(words)) <= len(words)
        if rare and len(words) >= _COPIED:
            found.append("without any common word")
        if rare and _is_coded(answer, head, lower, words):
            found.append("in a code")
    return found


def _is_coded(answer: str, head: str, lower: str, words: Sequence[str]) -> bool:
    """Whether a text is in base 2, 16 or 64, turned round, or spelled with other letters: what no language looks like."""
    if _BACKWARDS.search(answer[-_TAIL:]) or _FRONT.match(lower) or _MIXED.search(head) or _FIGURES.match(lower):
        return True
    letters = len(lower) - sum(map(lower.count, " .,;:!?\n'\"()-0123456789"))
    if letters >= _LETTERED and sum(map(lower.count, "aeiouy")) < _VOWELS[letters >= _MANY] * letters:
        return True
    ends = [word[-2:] for word in {word.rstrip(".,;:!?") for word in words[:_FIRST]}]
    if len(ends) >= _FEWEST and max(map(ends.count, ends)) >= _ALIKE * len(ends):
        return True
    return len(_WITHIN.findall(lower)) * 4 >= len(words) > 0


def may_copy(told: int, asked: int) -> bool:
    """Whether an answer of so many words may be copied from its prompt."""
    return _COPIED <= told <= 2 * asked


def is_copied(asked: Sequence[int], told: Sequence[int]) -> bool:
    """Whether nearly all numbers of an answer's words are among those of its prompt."""
    own = set(told)
    return len(own) <= len(asked) and len(own & set(asked)) >= _SAME * len(own)


def _lengths(words: int) -> list[str]:
    """A class of lengths (1, 2 to 3, 4 to 7 and so on), and what is common to several: answers cut short, or without an end."""
    power = max(words, 1).bit_length() - 1
    return [
        f"of {1 << power} to {(2 << power) - 1} words" if power else "of 1 words",
        *(f"of at most {most} words" for most in _SHORT if words <= most),
        *(f"of at least {1 << least} words" for least in range(_LONG, power + 1)),
    ]


def _language(head: str, words: list[str]) -> str:
    if not head.isascii() and not head[:40].isascii():
        letters = [letter for letter in head if letter.isalpha() and not letter.isascii()]
        if len(letters) > _MOST * sum(letter.isalpha() for letter in head):
            name = unicodedata.name(letters[len(letters) // 2], "").split(" ")[0]
            return f"{name.title()} script" if name in _SCRIPTS[1:] else ""
    if len(words) < _COPIED:
        return ""
    return language(words)
