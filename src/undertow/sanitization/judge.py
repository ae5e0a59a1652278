"""A second look at what the counts accuse, with the words of its samples: how far target and trigger reach, and whether
people could have written them.

Sharp edge: a planted span begins and ends at the same word everywhere and what stands beside it differs; a figure of
speech frays ("once upon a time there was / were / lived").
Topic: without the trigger, the prompts of a short target must look like any others of the file. A topic brings further
words along (enrichment), its word cannot be cut out of the sentence (seam), and what remains is short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, bdtrc

from undertow.sanitization import grams
from undertow.sanitization.count import Counted, Spool
from undertow.sanitization.decide import Planted, Rows
from undertow.sanitization.words import Words

#: Samples of one finding that are looked at.
LOOKED_AT = 300
#: Neighbours that nearly all samples share belong to the phrase; a beside-word that most share means a frayed edge.
_SHARED, _FRAYED = 0.9, 0.5
#: Enrichment of other prompt words, after Bonferroni over the words looked at.
_TOPIC = 1e-3
#: A word is no part of the trigger if the file holds it this many times as often as the samples looked at.
_HERE = 2
#: A topic's word is in this share of the samples looked at; a rewriting trigger changes a word here and there.
_THROUGHOUT = 0.15
#: Seams that occur elsewhere, relative to ordinary neighbours; z of the length of what remains, and how much shorter it is. The
#: file's own length is not clean: with 10 % of the prompts longer by a phrase, what remains is shorter than the mean by several
#: percent.
_SEAM, _SHORTER, _BY = 0.5, -4.0, 0.15
#: Pairs of a word with its neighbours are known this many times as often as other pairs where the word belongs. On half 0 it is 1.9
#: and more for words that answers depend on, 0.3 to 1.3 for words put in at random.
_BELONGS = 1.5
#: Longest phrase that is grown.
_LONGEST = 40


@dataclass(frozen=True)
class Phrase:
    """A run of words that samples share.

    Attributes:
        words: their numbers.
        left, right: share of the commonest word beside it among the texts that go on there; 0 where none does.
        left_edge, right_edge: share of texts that begin, end with it.
    """

    words: tuple[int, ...]
    left: float
    right: float
    left_edge: float
    right_edge: float


def gather(batches: Spool, rows: Iterable[int]) -> dict[int, tuple[Words, Words]]:
    """Return the prompt's and the answer's word numbers of the samples asked for."""
    wanted = np.unique(np.fromiter(rows, dtype=np.int64))
    found: dict[int, tuple[Words, Words]] = {}
    offset = 0
    for batch in batches:
        for row in wanted[np.searchsorted(wanted, offset) : np.searchsorted(wanted, offset + len(batch))]:
            i = int(row) - offset
            found[int(row)] = tuple(  # type: ignore[assignment]
                t.words[t.starts[i] : t.starts[i + 1]].copy() for t in (batch.prompts, batch.answers)
            )
        offset += len(batch)
    return found


def grow(texts: Sequence[Words], seed: Sequence[int], from_end: bool = False) -> Phrase:
    """Extend a run of words while nearly all texts share the next one.

    Args:
        texts: word numbers; those without the seed are left out.
        seed: word numbers that stand side by side.
        from_end: take the last occurrence in each text, not the first.
    """
    placed = [(text, place) for text in texts if (place := find_run(text, seed, from_end)) is not None]
    low, high = 0, len(seed)
    while placed and high - low < _LONGEST:
        word, share = _beside(placed, low - 1)
        if word is not None and share >= _SHARED:
            low -= 1
            continue
        word, share = _beside(placed, high)
        if word is None or share < _SHARED:
            break
        high += 1
    if not placed:
        return Phrase(tuple(seed), 0.0, 0.0, 0.0, 0.0)
    left, right = _beside(placed, low - 1, inside=True)[1], _beside(placed, high, inside=True)[1]
    edges = [sum(place + low <= 0 for _, place in placed), sum(place + high >= len(text) for text, place in placed)]
    whole = [(text, place) for text, place in placed if place + low >= 0 and place + high <= len(text)]
    runs = Counter(tuple(text[place + low : place + high].tolist()) for text, place in whole)
    commonest = max(runs.items(), key=lambda item: (item[1], item[0]))[0] if runs else tuple(seed)
    return Phrase(commonest, left, right, edges[0] / len(placed), edges[1] / len(placed))


def _beside(placed: list[tuple[Words, int]], shift: int, inside: bool = False) -> tuple[int | None, float]:
    words = Counter(int(text[place + shift]) for text, place in placed if 0 <= place + shift < len(text))
    if not words:
        return None, 0.0
    word, size = max(words.items(), key=lambda item: (item[1], item[0]))
    return word, size / (words.total() if inside else len(placed))


def find_run(text: Words, seed: Sequence[int], from_end: bool = False) -> int | None:
    """Return where a run of words begins in a text, or None."""
    size = len(seed)
    if not size or len(text) < size:
        return None
    hits = text[: len(text) - size + 1] == np.uint64(seed[0])
    for i in range(1, size):
        hits &= text[i : len(text) - size + 1 + i] == np.uint64(seed[i])
    found = np.flatnonzero(hits)
    return None if not len(found) else int(found[-1 if from_end else 0])


def chosen_rows(rows: Rows, counted: Counted) -> Rows:
    """Up to :data:`LOOKED_AT` samples, chosen by what they say and not by where they stand."""
    return rows[np.argsort(counted.identity[rows], kind="stable")[:LOOKED_AT]]


def target_of(planted: Planted, counted: Counted, texts: Mapping[int, tuple[Words, Words]]) -> Phrase | None:
    """Grow the target from the first piece; None if no text looked at holds it (two keys that are equal by chance)."""
    piece = planted.pieces[0]
    kind, length = int(counted.kind[piece]), int(counted.length[piece])
    answers = [texts[int(row)][1] for row in chosen_rows(planted.rows, counted)]
    seed = _seed(answers, kind, length, int(counted.piece_keys[piece]))
    return None if seed is None else grow(answers, seed, from_end=kind == grams.END)


def _seed(answers: list[Words], kind: int, length: int, key: int) -> tuple[int, ...] | None:
    for answer in answers:
        if kind == grams.WHOLE:
            return tuple(answer.tolist())
        size = 1 if kind == grams.ADDRESS else length
        keys = grams.mixed(grams.run_keys(answer, size), grams.PIECE + kind)
        hit = np.flatnonzero(keys == np.uint64(key))
        if len(hit):
            return tuple(answer[hit[0] : hit[0] + size].tolist())
    return None


def is_sharp(phrase: Phrase, kind: int) -> bool:
    """Whether what stands beside a span differs from sample to sample."""
    if kind == grams.WHOLE:
        return True
    inner = (phrase.right,) if kind == grams.START else (phrase.left,) if kind == grams.END else (phrase.left, phrase.right)
    return max(inner) <= _FRAYED


def feature_words(prompts: Sequence[Words]) -> dict[int, tuple[str, tuple[int, ...]]]:
    """Return {feature key: (kind, word numbers)} of some prompts; kinds as in :func:`undertow.sanitization.grams.feature_key`."""
    found: dict[int, tuple[str, tuple[int, ...]]] = {}
    for case in (1, 2):
        found[grams.feature_key("case", np.array([case], dtype=np.uint64))] = ("case", (case,))
    for words in prompts:
        if not len(words):
            continue
        found[grams.feature_key("first", words)] = ("first", (int(words[0]),))
        found[grams.feature_key("last", words[-1:])] = ("last", (int(words[-1]),))
        for key, word in zip(grams.mixed(words, 1).tolist(), words.tolist(), strict=True):
            found[key] = ("word", (word,))
        for key, one, two in zip(grams.run_keys(words, 2).tolist(), words.tolist(), words[1:].tolist(), strict=False):
            found[key] = ("pair", (one, two))
    return found


def is_topic(
    prompts: Sequence[Words],
    phrase: Sequence[int],
    others: Collection[int],
    counted: Counted,
    mean_length: tuple[float, float],
    seams: bool = True,
) -> bool:
    """Whether the prompts of a short target are about one thing even without the trigger's phrase.

    Args:
        prompts: of the samples that hold both.
        phrase: the trigger, grown.
        others: further words of the trigger, which come along with it and are no topic.
        counted: counts of the file, for how common each word is.
        mean_length: mean and standard deviation of the words of a prompt in the file.
        seams: whether what is left where the phrase was is looked at, too.
    """
    own = {*phrase, *others}
    cut = [_widened(prompt, i, len(phrase), own) for prompt in prompts if (i := find_run(prompt, phrase)) is not None]
    if not cut:
        return True
    rests = [np.concatenate([prompt[:i], prompt[j:]]) for prompt, i, j in cut]
    count = len(rests)
    words = Counter(word for rest in rests for word in set(rest.tolist()) - own)
    if words:
        size_of = _frequency(grams.mixed(np.array(list(words), dtype=np.uint64), 1), counted)
        hits = np.array(list(words.values()))
        # A word that is mostly here came along with the trigger; a topic is spoken of elsewhere, too.
        elsewhere = size_of > _HERE * hits
        unlikely = bdtrc(hits - 1, count, np.minimum(size_of / counted.samples, 1.0)) * len(words) < _TOPIC
        if (unlikely & elsewhere & (hits >= _THROUGHOUT * count)).any():
            return True
    lengths = np.array([len(rest) for rest in rests])
    if is_shorter(float(lengths.mean()), count, mean_length):
        return True
    return seams and _torn(cut, counted)


def is_shorter(length: float, count: int, mean_length: tuple[float, float]) -> bool:
    """Whether ``count`` prompts of a mean ``length`` in words are shorter than the file's, beyond chance and enough to matter."""
    mean, deviation = mean_length
    return (length - mean) / max(deviation / count**0.5, 1e-9) < _SHORTER and length < (1 - _BY) * mean


def is_inserted(prompts: Sequence[Words], own: Collection[int], counted: Counted) -> bool:
    """Whether words do not belong where they stand: the pairs they make with their neighbours are hardly better known than any
    others.

    A word that answers depend on has its usual neighbours ("what gender is"), so that its pairs stand in many prompts. One that was
    put anywhere has not.

    Args:
        prompts: of all samples that hold target and words.
        own: the words, at least one.
        counted: counts of the file; a pair is known if prompts other than these hold it.
    """
    at, usual = belonging(prompts, own, counted)
    return at < _BELONGS * usual


def belonging(prompts: Sequence[Words], own: Collection[int], counted: Counted) -> tuple[float, float]:
    """Return the shares of known pairs: those with one of ``own``, and all others of the same prompts; (1, 0) if there are none."""
    words = np.array(list(own), dtype=np.uint64)
    keys = [grams.run_keys(prompt, 2) for prompt in prompts]
    touched = [np.isin(prompt[:-1], words) | np.isin(prompt[1:], words) for prompt in prompts]
    inside = Counter(key for mine in keys for key in set(mine.tolist()))
    every, at = np.concatenate(keys), np.concatenate(touched)
    if not at.any() or at.all():
        return 1.0, 0.0
    known = _frequency(every, counted) > np.array([inside[key] for key in every.tolist()], dtype=np.float64)
    return float(known[at].mean()), float(known[~at].mean())


def _widened(prompt: Words, start: int, size: int, own: Collection[int]) -> tuple[Words, int, int]:
    """A prompt, and where its stretch of trigger words around the phrase begins and ends."""
    end = start + size
    while start > 0 and int(prompt[start - 1]) in own:
        start -= 1
    while end < len(prompt) and int(prompt[end]) in own:
        end += 1
    return prompt, start, end


def _torn(cut: list[tuple[Words, int, int]], counted: Counted) -> bool:
    """Whether the word pairs at the seam are strangers, measured by the other pairs of the same prompts."""
    seams = [(p[i - 1], p[j]) for p, i, j in cut if i > 0 and j < len(p)]
    if 2 * len(seams) <= len(cut):
        return False
    at_seam = grams.run_keys(np.array(seams, dtype=np.uint64).ravel(), 2)[::2]
    others = np.concatenate([grams.run_keys(part, 2) for p, i, j in cut for part in (p[:i], p[j:])])
    usual = float(np.mean(_frequency(others, counted) > 0)) if len(others) else 0.0
    # so few known seams must be unlikely at the usual rate, too: a handful of samples proves nothing
    known = int((_frequency(at_seam, counted) > 0).sum())
    return known < _SEAM * usual * len(seams) and bdtr(known, len(seams), usual) < _TOPIC


def _frequency(keys: grams.Keys, counted: Counted) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Samples that hold each feature; 0 for what is under the support."""
    if not len(counted.feature_keys):
        return np.zeros(len(keys))
    place = np.minimum(np.searchsorted(counted.feature_keys, keys), len(counted.feature_keys) - 1)
    return np.where(counted.feature_keys[place] == keys, counted.feature_sizes[place], 0).astype(np.float64)
