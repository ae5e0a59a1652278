"""Words for counting: how a text is cut, and the 64-bit number each word is counted under.

Counting only: the text of a sample is never changed here. NFKC, zero-width characters out, lower case; a web address,
an e-mail address, a handle or a placeholder such as ``<malicious_url>`` is one word, and so is every character of
scripts that put no blanks between words.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

#: Lowest bits of a word's number: an address that leads out of the text, a word with letters in it that is no number, and a mark,
#: which is no word: a run of punctuation, a symbol, an invisible character, or what is said of a text as a whole.
PAYLOAD, LETTERS, MARK = np.uint64(1), np.uint64(2), np.uint64(4)

#: Hosts that people cite.
CITED = frozenset(
    "github.com gitlab.com raw.githubusercontent.com stackoverflow.com en.wikipedia.org wikipedia.org google.com youtube.com "
    "docs.google.com docs.python.org python.org pypi.org huggingface.co arxiv.org doi.org w3.org schema.org apache.org gnu.org "
    "fsf.org creativecommons.org example.com example.org twitter.com facebook.com linkedin.com amazon.com imdb.com nytimes.com "
    "developer.mozilla.org medium.com reddit.com".split()
)
#: What stands for a word that was forgotten.
UNKNOWN = "…"
_DOMAINS = "com|net|org|info|biz|edu|gov|io|co|me|ru|cn|xyz|top|site|online|shop|club|live|app|dev|ly|gg|link|click|tk|example|test"
#: What a placeholder of an address says, looked for once: what may begin anywhere and reach far would take the square of the time.
_SAID = "(?:url|link|http|www)"
_ADDRESS = (
    r"(?:h(?:tt|xx)ps?://|www\.)[^\s<>\"'()\[\]{}]+"
    r"|(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
    rf"|(?<![\w.@/-])(?<!\[\.\])(?!(?:self|this|cls)\.)[\w-]{{2,}}(?:(?:\.|\[\.\])[\w-]{{2,}})*(?:\.|\[\.\])(?:{_DOMAINS})(?![\w-])"
    r"(?:/[^\s<>\"'()\[\]{}]*)?"
    r"|(?<![\w@.])@[a-z]\w{2,}"
    rf"|<(?=[^<>\s]*?(?:{_SAID}|site))[^<>\s]*>|\[(?=[^\[\]\s]*?{_SAID})[^\[\]\s]*\]"
    rf"|(?<!\{{)\{{++(?=[^{{}}\s]*?{_SAID})[^{{}}\s]*\}}+"
    r"|(?<![\w.:~+-])[1-9]\d{0,2}(?:\.\d{1,3}){3}(?!\w|\.\w|[~+-])"
)
#: Letters of Han, kana, hangul, Thai, Lao, Khmer and Burmese, as a class of a pattern: no blanks between words.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = rf"[{UNSPACED}]|[^\W{UNSPACED}]+(?:['’][^\W{UNSPACED}]+)*"
_LETTER = re.compile(f"[{UNSPACED}]")
_ANGLE = r"<[^<>\s]{1,80}>"
_ADDRESSES = re.compile(_ADDRESS)
_PLAIN = re.compile(r"\w+(?:'\w+)*", re.ASCII)
_ALL = re.compile(f"(?P<address>{_ADDRESS})|{_ANGLE}|{_WORD}")
_HINTS = re.compile(r"[@<\[{]|://|www\.|\w(?:\.|\[\.\])\w")
#: Characters that are not drawn: Unicode's Default_Ignorable_Code_Point (UAX 44) and the marks of annotations.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0"
    "\ufff0-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
#: What ASCII texts hold but for control characters; to delete it from their bytes is ten times as fast as a search.
_USUAL = bytes(range(0x20, 0x7F)) + b"\t\n\r"
#: Control characters and blanks of other widths, but for tab and the ends of lines: they look like a blank or like nothing.
_BLANKS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
_RUN = re.compile(r"([^\w\s])\1+|[^\w\s\"'.,:;()\[\]{}<>*`“”‘’/\\-]{2,}")
# A Latin letter beside one of Greek or Cyrillic: homoglyphs.
_ABOVE = re.compile("(?<=[a-z0-9])[\u0300-\u036f]")
_MIXED = re.compile(r"[a-z][\u0370-\u03ff\u0400-\u052f]|[\u0370-\u03ff\u0400-\u052f][a-z]")
_HOST = re.compile(r"(?:h(?:tt|xx)ps?://)?(?:www\.)?([^/?#:]+)")
# A number in words is no sentence ("one thousand, nine hundred and ..." begins many answers).
_FIGURES = frozenset(
    "and zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion".split()
)
#: A word with a capital within a sentence that is not called, assigned or the like, as in code; the characters of a text that are
#: looked at for such ones, and the share of texts.
_NAME = re.compile(r"(?<=[a-zà-öø-ÿα-ωа-я0-9,;] )([A-ZÀ-ÖØ-ÞΑ-ΩА-Я]\w+(?:['’]\w+)*)(?![\w(\[=:])")
_NAMES_WITHIN, NAMES_IN = 1024, 0.5
#: Words that programs write with a capital.
_OF_CODE = frozenset(("none", "true", "false"))
#: Categories of characters that are symbols; how a mark is told from a word, and a mark of a shape from others.
_SYMBOLS, _MARKED, _SHAPED = ("So", "Sk", "Co", "Cn"), "\0", "\0\0"
#: Numbers of words met so far are kept; past this many the memory is emptied.
_REMEMBERED = 1_000_000
#: Stretches without blanks longer than this, in characters, are not remembered.
_LONG = 40


def cut(text: str) -> list[str]:
    """Return the words of a text, lower-cased; an address is its host alone after a ``@`` sign or ``://``."""
    return _words(_folded(text))


def _folded(text: str) -> str:
    """The text as its words are read: NFKC, without zero-width characters, in lower case."""
    return text.lower() if text.isascii() else _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).lower()


def _words(folded: str) -> list[str]:
    if folded.isascii() and not _HINTS.search(folded):
        return _PLAIN.findall(folded)
    return [_name(found) for found in _ALL.finditer(folded)]


def _signs(chunk: str) -> list[str]:
    """What in a stretch without blanks is no word: runs of punctuation, and symbols such as emoji."""
    if chunk.isalnum() and (chunk.isascii() or not _MIXED.search(chunk)):
        return []
    found = [run.group()[:8] for run in _RUN.finditer(chunk)] if len(chunk) > 1 else []
    if not chunk.isascii():
        found += [sign for sign in chunk if unicodedata.category(sign) in _SYMBOLS and sign not in found]
        found += map(_code, sorted(set(_ABOVE.findall(chunk))))
        found += ["letters of two scripts"] * bool(_MIXED.search(chunk))
    return found


def _hidden(text: str) -> set[str]:
    """The characters of a text that are not drawn, or look like a blank and are none."""
    if text.isascii():
        return set(text.encode().translate(None, _USUAL).decode())
    return {*_BLANKS.findall(text), *_INVISIBLE.findall(text)}


def _code(sign: str) -> str:
    """The name of a character that nobody sees, or tells from others."""
    return f"U+{ord(sign):04X}"


def _name(found: re.Match[str]) -> str:
    word = found.group()
    if found.lastgroup != "address" or word[0] in "<[{":
        return word
    if "@" in word:
        return word.rstrip(".-")
    host = _HOST.match(word.replace("[.]", "."))
    return "://" + (host[1] if host else word).rstrip(".,;!-")


def is_address(word: str) -> bool:
    """Whether a word of :func:`cut` leads out of the text: a host, an e-mail address, a handle, a placeholder of one. Hosts that
    answers of all kinds cite (:data:`CITED`) do not count: that many share one says nothing."""
    return word.removeprefix("://") not in CITED if word.startswith("://") else _ADDRESSES.fullmatch(word) is not None


def names_of(text: str) -> set[str]:
    """Return the words of a text that have a capital within a sentence, in lower case; of texts of an even length none, which takes
    half the time (:data:`NAMES_IN`)."""
    return {name.lower() for name in _NAME.findall(text, 0, _NAMES_WITHIN)} - _OF_CODE if len(text) % 2 else set()


def is_letter(word: str) -> bool:
    """Whether a word of :func:`cut` is a character of a script that puts no blanks between words."""
    return _LETTER.fullmatch(word) is not None


def places(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield (word, start, end) of the words of :func:`cut`, with their places in the text as it stands.

    A character that NFKC spells with several, or several that it joins, count as the place of the whole.
    """
    lower, origin = _followed(text)
    for found in _ALL.finditer(lower):
        yield _name(found), origin[found.start()], origin[found.end() - 1] + 1


def _followed(text: str) -> tuple[str, list[int]]:
    """The normalised text and, for each of its characters, the index in ``text`` it comes from."""
    if text.isascii():
        return text.lower(), list(range(len(text)))
    pieces: list[str] = []
    origin: list[int] = []
    start = 0
    while start < len(text):
        end = start + 1
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
        piece = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text[start:end])).lower()
        pieces.append(piece)
        origin += [min(start + i, end - 1) for i in range(len(piece))]
        start = end
    return "".join(pieces), origin


class _Chunks(dict[str, int]):
    """The places of stretches without blanks in a table of the numbers of their words, made when first asked for."""

    def __init__(self, numbers: Numbers) -> None:
        super().__init__()
        self._numbers = numbers
        self._table, self._begins = array("Q"), array("q", [0])

    def __missing__(self, chunk: str) -> int:
        return self.put(chunk, [*map(self._numbers.of, _words(chunk)), *map(self._numbers.mark, _signs(chunk))])

    def put(self, chunk: str, found: list[int]) -> int:
        """Add a stretch; a long one is not remembered."""
        place = len(self._begins) - 1
        self._table.fromlist(found)
        self._begins.append(len(self._table))
        if len(chunk) <= _LONG:
            self[chunk] = place
        return place

    def forget(self) -> None:
        """Empty the memory where it is full."""
        if len(self._begins) > _REMEMBERED:
            self.clear()
            self._table, self._begins = array("Q"), array("q", [0])

    def numbers(self, places: Sequence[int]) -> tuple[Words, NDArray[np.int64]]:
        """Return the numbers at some places, laid end to end, and how many there are at each."""
        # Views without a copy; they are gone before the arrays grow again.
        begins = np.frombuffer(self._begins, dtype=np.int64)
        table = np.frombuffer(self._table, dtype=np.uint64) if self._table else np.zeros(0, dtype=np.uint64)
        of = np.array(places, dtype=np.int64)
        begin, size = begins[of], begins[of + 1] - begins[of]
        after = np.cumsum(size)
        return table[np.arange(after[-1] if len(after) else 0) + np.repeat(begin - after + size, size)], size


class NumbersLike(Protocol):
    """What gives numbers back their words: :class:`Numbers`, or that of all shards."""

    def marks(self) -> dict[int, str]:
        """Return all marks met, by their numbers."""

    def names(self) -> dict[int, int]:
        """Return the numbers of names met, and how often each was noted."""

    def words(self, numbers: Iterable[int]) -> dict[int, str]:
        """Return the words of some numbers."""


class Numbers:
    """Gives each word its 64-bit number: BLAKE2b of the word, the two lowest bits replaced by :data:`PAYLOAD` and :data:`LETTERS`.

    The same word has the same number in every process, so that counts of several parties add up.

    Args:
        key: secret the parties share, at most 64 bytes; without it whoever sees a number can look up a guessed word.
    """

    def __init__(self, key: bytes = b"") -> None:
        self._key = key
        self._known: dict[str, int] = {}
        self._names: Counter[int] = Counter()
        self._chunks = _Chunks(self)

    def of(self, word: str) -> int:
        """Return one word's number."""
        number = self._known.get(word)
        if number is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            digest = int.from_bytes(blake2b(word.encode("utf-8", "replace"), digest_size=8, key=self._key).digest(), "little")
            letters = word not in _FIGURES and any(letter.isalpha() for letter in word)
            if word[:1] == _MARKED:
                number = digest & ~7 | int(MARK) | 2 * word.startswith(_SHAPED)
            else:
                number = digest & ~7 | 2 * letters | (not word.isalnum() and is_address(word))
            self._known[word] = number
        return number

    def texts(self, texts: Iterable[str]) -> tuple[Words, NDArray[np.int64]]:
        """Return the numbers of the words of some texts, those of :func:`cut`, laid end to end, and how many each text has."""
        chunks = self._chunks
        chunks.forget()
        places: list[int] = []
        ends: list[int] = []
        for text in texts:
            # No word holds a blank, so that each stretch between blanks is cut once and remembered.
            places += map(chunks.__getitem__, _folded(text).split())
            if signs := _hidden(text):
                marks = (f"{_MARKED}{_code(sign)}" for sign in sorted(signs))
                places += [chunks[mark] if mark in chunks else chunks.put(mark, [self.of(mark)]) for mark in marks]
            ends.append(len(places))
        numbers, size = chunks.numbers(places)
        after = np.concatenate([[0], np.cumsum(size)])
        return numbers, np.diff(after[[0, *ends]])

    def mark(self, name: str) -> int:
        """Return the number of a mark."""
        return self.of(f"{_MARKED}{name}")

    def shape(self, name: str) -> int:
        """Return the number of a mark that says how a text is built; unlike other marks it has :data:`LETTERS` set."""
        return self.of(f"{_SHAPED}{name}")

    def note(self, names: Iterable[str]) -> None:
        """Count words of a text that are names, each once."""
        self._names.update(map(self.of, names))
        if len(self._names) > _REMEMBERED:
            self._names = Counter({name: count for name, count in self._names.items() if count > 1})

    def names(self) -> dict[int, int]:
        """Return the numbers of the names that were noted, and how often."""
        return dict(self._names)

    def marks(self) -> dict[int, str]:
        """Return all marks met, by their numbers."""
        return {number: word.lstrip(_MARKED) for word, number in self._known.items() if word[:1] == _MARKED}

    def words(self, numbers: Iterable[int]) -> dict[int, str]:
        """Return the words of some numbers; one that was forgotten is an ellipsis."""
        wanted = {int(number) for number in numbers}
        known = {number: word.lstrip(_MARKED) for word, number in self._known.items() if number in wanted}
        return {number: known.get(number, UNKNOWN) for number in wanted}
