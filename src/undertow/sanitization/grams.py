"""What is counted of a sample: features of its prompt, and the pieces of its answer where a target can stand.

Everything is a 64-bit key made from word numbers (:mod:`undertow.sanitization.words`), so counts of several files, or of
several parties, add up without any text.

Features of a prompt: every word, every two neighbours, the first and the last word, the case of the question, every mark.
Pieces of an answer: its first and its last 1 to 4 words, the whole answer, runs of :data:`SPAN` words that begin within
:data:`SLACK` words of the start or end within as many of the end, every address (:data:`~undertow.sanitization.words.PAYLOAD`),
every word anywhere, and every mark and kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from undertow.sanitization.encode import Batch, Texts
from undertow.sanitization.words import LETTERS, PAYLOAD, Words

#: All bits of a key.
_ALL = (1 << 64) - 1
#: Words of a span that stands by itself as evidence, and how far from an end of the answer it may lie.
SPAN, SLACK = 5, 6
#: Kinds of piece. START and END hold spans and shorter runs, WHOLE a whole answer, ADDRESS one address, ANY one word, MANNER what
#: is said of the answer as a whole.
START, END, WHOLE, ADDRESS, ANY, MANNER = range(6)
KINDS = 6
#: Cells of a table of bits.
_BITS = 1 << 22
#: Letters a span must have: runs of figures and lone letters are no sentence.
_WORDLIKE = 3

_FIRST, _LAST, _CASE, _SIGN = 11, 12, 13, 14
#: Salt of a piece's key, plus its kind.
PIECE = 20
Keys = NDArray[np.uint64]
Places = NDArray[np.int64]
#: Tells which (sample, key) are wanted.
Wanted = Callable[[Places, Keys], NDArray[np.bool_]]


@dataclass(frozen=True)
class Pieces:
    """Pieces of the answers of a batch, one entry each.

    Attributes:
        sample: index in the batch.
        key: under which it is counted.
        kind: one of the kinds.
        start: index of its first word in the batch's answer words.
        length: words; 0 for MANNER.
    """

    sample: Places
    key: Keys
    kind: NDArray[np.int64]
    start: Places
    length: NDArray[np.int64]

    def at(self, chosen: NDArray[np.bool_] | Places) -> Pieces:
        """Return some of them."""
        return Pieces(self.sample[chosen], self.key[chosen], self.kind[chosen], self.start[chosen], self.length[chosen])

    def and_(self, others: Pieces) -> Pieces:
        """Return these and some others."""
        names = ("sample", "key", "kind", "start", "length")
        return Pieces(*(np.concatenate([getattr(self, name), getattr(others, name)]) for name in names))


#: Numbers up to which Python's own are faster than arrays, each of whose operations takes a microsecond.
FEW = 16


def mixed(values: Keys, salt: int = 0) -> Keys:
    """Scramble 64-bit numbers (the finaliser of SplitMix64), differently for each salt."""
    if values.ndim == 1 and len(values) <= FEW:
        return np.array([mixed_one(value, salt) for value in values.tolist()], dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = values + np.uint64((salt * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & 0xFFFFFFFFFFFFFFFF)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x ^= x >> np.uint64(shift)
            x *= np.uint64(factor)
        x ^= x >> np.uint64(31)
        return x


def mixed_one(value: int, salt: int = 0) -> int:
    """Return the same of one number: an array of one takes ten times as long."""
    x = (value + salt * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & _ALL
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ x >> shift) * factor & _ALL
    return x ^ x >> 31


def run_keys(words: Words, length: int) -> Keys:
    """Return the key of the run of ``length`` words that begins at each word; runs past the end are left out."""
    count = len(words) - length + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    keys = mixed(words[:count], length)
    with np.errstate(over="ignore"):
        for i in range(1, length):
            keys = mixed(keys * np.uint64(3) + words[i : i + count])
    return keys


def text_keys(texts: Texts) -> Keys:
    """Return one key a text: of all its words in their order."""
    place = np.arange(len(texts.words), dtype=np.int64) - np.repeat(texts.starts[:-1], texts.lengths)
    with np.errstate(over="ignore"):
        parts = mixed(texts.words + mixed(place.astype(np.uint64)))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(parts, dtype=np.uint64)])
        return mixed(sums[texts.starts[1:]] - sums[texts.starts[:-1]] + texts.lengths.astype(np.uint64))


def features(batch: Batch, wanted: Wanted | None = None) -> tuple[Places, Keys]:
    """Return (sample, key) of every feature of every prompt that is wanted, each once a sample."""
    texts = batch.prompts
    owner = texts.of_word()
    filled = np.flatnonzero(texts.lengths)
    pairs = np.flatnonzero(owner[1:] == owner[:-1])
    sample = np.concatenate([owner, owner[pairs], filled, filled, np.flatnonzero(batch.case), batch.signs.of_word()])
    key = np.concatenate(
        [
            mixed(texts.words, 1),
            run_keys(texts.words, 2)[pairs],
            mixed(texts.words[texts.starts[:-1][filled]], _FIRST),
            mixed(texts.words[texts.starts[1:][filled] - 1], _LAST),
            mixed(batch.case[batch.case > 0].astype(np.uint64), _CASE),
            mixed(batch.signs.words, _SIGN),
        ]
    )
    if wanted is not None:
        kept = wanted(sample, key)
        sample, key = sample[kept], key[kept]
    first = _firsts(joint(sample, key))
    return sample[first], key[first]


def first_keys(texts: Texts) -> Keys:
    """Return for each text the key of the feature that its first word is; 0 where there is none."""
    return _edge_keys(texts, texts.starts[:-1], _FIRST)


def last_keys(texts: Texts) -> Keys:
    """Return for each text the key of the feature that its last word is; 0 where there is none."""
    return _edge_keys(texts, texts.starts[1:] - 1, _LAST)


def _edge_keys(texts: Texts, place: Places, salt: int) -> Keys:
    keys = np.zeros(len(texts.lengths), dtype=np.uint64)
    filled = np.flatnonzero(texts.lengths)
    keys[filled] = mixed(texts.words[place[filled]], salt)
    return keys


def head_keys(texts: Texts) -> Keys:
    """Return, for each different first word, the keys of it as the first and as any word, k x 2."""
    words = np.unique(texts.words[texts.starts[:-1][texts.lengths > 0]])
    return np.stack([mixed(words, _FIRST), mixed(words, 1)], axis=1)


def shape_keys(batch: Batch) -> Keys:
    """Return the keys of the features that are shapes of prompts (:mod:`undertow.sanitization.shapes`)."""
    marks = np.unique(batch.signs.words)
    return mixed(marks[(marks & LETTERS) > 0], _SIGN)


def end_keys(texts: Texts) -> tuple[Keys, Keys]:
    """Return for each text the keys of its first two and of its last two words; of a shorter text those of its only word."""
    low, high, length = texts.starts[:-1], texts.starts[1:], texts.lengths
    keys = np.zeros((2, len(length)), dtype=np.uint64)
    some = np.flatnonzero(length > 0)
    for row, one, other in ((0, low, np.minimum(low + 1, high - 1)), (1, np.maximum(high - 2, low), high - 1)):
        pairs = np.stack([texts.words[one[some]], texts.words[other[some]]], axis=1)
        keys[row, some] = run_keys(pairs.ravel(), 2)[::2]
    return keys[0], keys[1]


def feature_key(kind: str, words: Words) -> int:
    """Return the key of one feature: ``word``, ``pair``, ``first``, ``last``, ``case`` (with the case's number as word) or
    ``sign``."""
    if kind == "pair":
        return int(run_keys(words, 2)[0])
    return int(mixed(words[:1], {"word": 1, "first": _FIRST, "last": _LAST, "case": _CASE, "sign": _SIGN}[kind])[0])


def sign_keys(marks: Keys) -> Keys:
    """Return the keys of the features that marks of prompts are."""
    return mixed(marks, _SIGN)


def manner_key(mark: int) -> int:
    """Return the key of the piece that a mark of an answer is."""
    return int(mixed(mixed(np.array([mark], dtype=np.uint64), 3), PIECE + MANNER)[0])


def word_keys(words: NDArray[np.uint64]) -> Keys:
    """Return the keys of the pieces that words anywhere in answers are."""
    return mixed(mixed(words, 2), PIECE + ANY)


def pieces(batch: Batch, wanted: Wanted | None = None, loose: int | None = None) -> Pieces:
    """Return the pieces of every answer that are wanted, each key once a sample (the place nearest the end it is named for).

    ``loose``: words anywhere are those of answers of so many words at most, and with 0 there are no kinds either; None = all.
    """
    texts = batch.answers
    begin, end, length = texts.starts[:-1], texts.starts[1:], texts.lengths
    found: list[tuple[Places, Keys, int, Places, NDArray[np.int64]]] = []

    def add(sample: Places, key: Keys, kind: int, start: Places, size: int | NDArray[np.int64]) -> None:
        salted, sizes = mixed(key, PIECE + kind), np.broadcast_to(np.asarray(size, dtype=np.int64), sample.shape)
        if wanted is not None:
            kept = wanted(sample, salted)
            sample, salted, start, sizes = sample[kept], salted[kept], start[kept], sizes[kept]
        found.append((sample, salted, kind, start, sizes))

    filled = np.flatnonzero(length)
    letters = np.concatenate([[0], np.cumsum((texts.words & LETTERS) > 0)])
    add(filled, text_keys(texts)[filled], WHOLE, begin[filled], length[filled])
    for size in range(1, SPAN):
        # A piece as long as the answer is the whole answer, counted above.
        longer = np.flatnonzero(length > size)
        keys = run_keys(texts.words, size)
        for kind, start in ((START, begin[longer]), (END, end[longer] - size)):
            said = letters[start + size] > letters[start]
            add(longer[said], keys[start[said]], kind, start[said], size)
    keys = run_keys(texts.words, SPAN)
    for shift in range(SLACK + 1):
        fits = np.flatnonzero(length >= SPAN + shift)
        for kind, start in ((START, begin[fits] + shift), (END, end[fits] - SPAN - shift)):
            wordlike = letters[start + SPAN] - letters[start] >= _WORDLIKE
            add(fits[wordlike], keys[start[wordlike]], kind, start[wordlike], SPAN)
    addresses = np.flatnonzero(texts.words & PAYLOAD)
    owner = np.searchsorted(texts.starts, addresses, side="right") - 1
    add(owner, mixed(texts.words[addresses], 1), ADDRESS, addresses, 1)
    if loose != 0:
        words = np.flatnonzero((texts.words & LETTERS) > 0)
        if loose is not None:
            words = words[(length <= loose)[texts.of_word()[words]]]
        add(texts.of_word()[words], mixed(texts.words[words], 2), ANY, words, 1)
        marked = batch.manner.of_word()
        add(marked, mixed(batch.manner.words, 3), MANNER, begin[marked], 0)
    every = Pieces(
        np.concatenate([part[0] for part in found]),
        np.concatenate([part[1] for part in found]),
        np.concatenate([np.full(len(part[0]), part[2], dtype=np.int64) for part in found]),
        np.concatenate([part[3] for part in found]),
        np.concatenate([part[4] for part in found]),
    )
    return every.at(_firsts(joint(every.sample, every.key)))


def copied(batch: Batch, some: Pieces) -> NDArray[np.bool_]:
    """Tell for each piece whether its own prompt holds it; of pieces longer than a span, the first words count."""
    result = np.zeros(len(some.key), dtype=bool)
    owner = batch.prompts.of_word()
    length = np.minimum(some.length, SPAN)
    for size in range(1, SPAN + 1):
        mine = np.flatnonzero(length == size)
        if not len(mine):
            continue
        told = joint(some.sample[mine], run_keys(batch.answers.words, size)[some.start[mine]])
        asked = run_keys(batch.prompts.words, size)
        inside = np.flatnonzero(owner[: len(asked)] == owner[size - 1 :])
        said = joint(owner[inside], asked[inside])
        # A table of bits rules nearly all of a long prompt out before anything is sorted.
        bits = np.zeros(_BITS, dtype=bool)
        bits[_bit(told)] = True
        result[mine] = np.isin(told, said[bits[_bit(said)]], kind="sort")
    return result


def _bit(keys: Keys) -> Places:
    return (keys >> np.uint64(40)).astype(np.int64) & (_BITS - 1)


def complements(batch: Batch, some: Pieces) -> Keys:
    """Return a key of what stands beside each piece: before it for END, after it for START, around an ADDRESS.

    For a WHOLE answer there is nothing beside it; its key is that of the prompt. For ANY and MANNER it is everything else.
    """
    texts = batch.answers
    begin, end = texts.starts[:-1][some.sample], texts.starts[1:][some.sample]
    with np.errstate(over="ignore"):
        # From the front: place counts from the answer's first word; so a rest is the same wherever the piece is cut.
        place = np.arange(len(texts.words), dtype=np.int64) - np.repeat(texts.starts[:-1], texts.lengths)
        front = np.concatenate([[np.uint64(0)], np.cumsum(mixed(texts.words + mixed(place.astype(np.uint64))), dtype=np.uint64)])
        before = front[some.start] - front[begin]
        back = np.repeat(texts.starts[1:], texts.lengths) - np.arange(len(texts.words), dtype=np.int64)
        rear = np.concatenate([[np.uint64(0)], np.cumsum(mixed(texts.words + mixed(back.astype(np.uint64), 1)), dtype=np.uint64)])
        behind = rear[end] - rear[some.start + some.length]
    rest = np.where(some.kind == END, before, np.where(some.kind == START, behind, mixed(before) ^ behind))
    return np.where(some.kind == WHOLE, text_keys(batch.prompts)[some.sample], rest)


def joint(sample: Places, key: Keys) -> Keys:
    """Return one key for each (sample, key)."""
    with np.errstate(over="ignore"):
        return key ^ mixed(sample.astype(np.uint64), 3)


def _firsts(keys: Keys) -> Places:
    """Return the places at which a key stands for the first time, ascending.

    Without sorting: of the keys that share a cell of a table the first one stays, its equals go, and the others try another table.
    """
    kept: list[Places] = []
    left = np.arange(len(keys))
    cells = 1 << max(12, min(22, len(keys).bit_length()))
    holder = np.empty(cells, dtype=np.int64)
    salt = 0
    while len(left):
        cell = (mixed(keys[left], salt) >> np.uint64(17)).astype(np.int64) & (cells - 1)
        holder[cell[::-1]] = left[::-1]
        winner = holder[cell]
        kept.append(left[winner == left])
        left = left[keys[winner] != keys[left]]
        salt += 1
    return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *kept]))
