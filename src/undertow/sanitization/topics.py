"""Whether prompts that share a target are about one thing, or share nothing but a trigger that was put into them.

A trigger does not care for the prompt it is put into. Without it the prompts must look like any others of the file, and what
stands beside it must be what stands anywhere. A topic brings further words along and keeps company with certain words (enrichment,
company), it cannot be cut out of the sentence (seam), and what remains is short or begins as no prompt does. The numbers are in
functions of counts alone, so that a file and the pool of a federation (:mod:`undertow.sanitization.party`) are judged alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, bdtrc

from undertow.sanitization import grams
from undertow.sanitization.background import Background
from undertow.sanitization.encode import Texts
from undertow.sanitization.grams import Places
from undertow.sanitization.judge import find_run
from undertow.sanitization.words import LETTERS, Words

Floats = NDArray[np.float64]
Cut = tuple[Words, int, int]

#: Chance of a false sign of a topic, after Bonferroni over the words looked at.
TOPIC = 1e-3
#: A word is no part of the trigger if other prompts than the accused hold it this many times as often as those; in a file that is
#: half poison, at this share of their rate.
HERE, RATE = 1.0, 0.2
#: A topic's word is in this share of the samples looked at, and this many times as often as elsewhere; a rewriting trigger changes
#: a word here and there.
THROUGHOUT, ENRICHED = 0.15, 1.5
#: Accused prompts are compared with others of their kind: those as likely as this share of them, where there are so many for each.
PART, MOST = 0.9, 4.0
#: A word beside the trigger keeps it company if it stands there in this share of the samples and this many times as often as
#: anywhere.
BESIDE, OFTEN = 0.15, 3.0
#: A word that this share of all other prompts hold is no sign of anything.
USUAL = 0.9
#: Fewest neighbours that are looked at, and the most that a word's share of all words exceeds what its samples say.
FEW, REPEATED = 8, 1.5
#: Share of prompts that begin with a word that others begin with, too, in files of the usual kind; in others it is smaller.
BEGINS = 0.8
#: Seams, and first words, that occur elsewhere, relative to ordinary ones; z of the length of what remains, and how much shorter
#: it is. The file's own length is not clean: with 10 % of the prompts longer by a phrase, what remains is shorter than the mean by
#: several percent.
SEAM, SHORTER, BY = 0.5, -4.0, 0.15
#: Words after a trigger's own that differ from prompt to prompt, and come with it, at most; how many texts they are, at least.
SLOT, VALUES = 5, 4
#: Share of prompts at whose beginning, or end, a trigger with such words stands, where that is asked for.
EDGE = 0.9
#: Letters of a word's stem, at least.
STEM = 3


def is_enriched(
    hits: ArrayLike, count: float, held: ArrayLike, inside: float, size: ArrayLike, samples: int, words: float
) -> NDArray[np.bool_]:
    """Tell which words come along with a target more than chance allows.

    Args:
        hits: samples looked at that hold each word, of ``count``, when the trigger is cut out.
        held: the same before it is cut out, or of all accused samples the share that ``count`` is of them.
        inside: all samples that are accused.
        size: samples of the file that hold each word, of ``samples``.
        words: number of words looked at.
    """
    hit, of = np.asarray(hits, dtype=np.float64), np.asarray(size, dtype=np.float64)
    outside = np.maximum(of - np.asarray(held, dtype=np.float64) * inside / count, 0.0)
    rate = outside / max(1.0, samples - inside)
    elsewhere = (outside > HERE * hit) | (rate > RATE * hit / count)
    unlikely = bdtrc(np.maximum(hit - 1, 0), count, np.minimum(rate, 1.0)) * words < TOPIC
    return np.asarray(unlikely & elsewhere & (hit >= THROUGHOUT * count) & (hit >= ENRICHED * rate * count))


def is_shared(hits: ArrayLike, count: float, inside: float, size: ArrayLike, samples: int) -> NDArray[np.bool_]:
    """Tell which words half of the accused samples hold, and other samples less often; arguments as of :func:`is_enriched`."""
    hit, of = np.asarray(hits, dtype=np.float64), np.asarray(size, dtype=np.float64)
    rate = np.maximum(of - hit * inside / count, 0.0) / max(1.0, samples - inside)
    return np.asarray((hit >= count / 2) & (hit >= OFTEN * rate * count))


def is_company(hits: ArrayLike, count: float, rate: ArrayLike, outside: ArrayLike, words: float) -> NDArray[np.bool_]:
    """Tell which words stand beside a trigger more often than anywhere; those that stand nowhere else came with it.

    Args:
        hits: samples in which each word stands there, of ``count``.
        rate: share of all places that it takes elsewhere.
        outside: samples that are not accused and hold it.
        words: number of words looked at.
    """
    hit, usual = np.asarray(hits, dtype=np.float64), np.minimum(np.asarray(rate, dtype=np.float64), 1.0)
    often = (
        (np.asarray(outside, dtype=np.float64) > HERE * hit)
        & (hit >= BESIDE * count)
        & (hit >= OFTEN * usual * count)
        & (hit >= FEW / 2)
    )
    return np.asarray(often & (bdtrc(np.maximum(hit - 1, 0), count, usual) * words < TOPIC))


def is_strange(known: float, count: float, usual: float) -> bool:
    """Whether so few of ``count`` places occur elsewhere, at a usual share, that something was not just cut out."""
    return known < SEAM * usual * count and bool(bdtr(known, count, min(usual, 1.0)) < TOPIC)


def is_shorter(length: float, count: int, mean_length: tuple[float, float]) -> bool:
    """Whether ``count`` prompts of a mean ``length`` in words are shorter than the file's, beyond chance and by enough to
    matter."""
    mean, deviation = mean_length
    return (length - mean) / max(deviation / count**0.5, 1e-9) < SHORTER and length < (1 - BY) * mean


def is_usual(size: ArrayLike, inside: ArrayLike, accused: float, samples: int) -> NDArray[np.bool_]:
    """Tell which words most prompts hold, accused or not; a trigger does not grow over them.

    Args:
        size: samples of the file that hold each word, of ``samples``.
        inside: accused samples that do, of ``accused``.
    """
    outside = np.asarray(size, dtype=np.float64) - np.asarray(inside, dtype=np.float64)
    return np.asarray(outside >= USUAL * max(1.0, samples - accused))


def is_repeated(trigger: Sequence[int], target: Sequence[int], letters: Collection[int] = ()) -> bool:
    """Whether a target says half of the trigger's words again: people define and repeat what they are asked about.

    Args:
        trigger, target: their words.
        letters: words that are single characters of scripts without blanks, of which any two texts share some; a trigger of three
            and more of these is compared by pairs.
    """
    pairs = len(trigger) > 2 and set(letters).issuperset(trigger)
    own, said = (set(pairwise(words)) if pairs else set(words) for words in (trigger, target))
    return 2 * len(own & said) >= len(own)


def is_derived(trigger: Sequence[str], target: Sequence[str]) -> bool:
    """Whether half of a trigger's words and of the target's are forms of one another ("game": "games", "implement":
    "NotImplementedError"), which a trigger that is put anywhere has no reason to be."""
    same = [(one, other) for one in set(trigger) for other in set(target) if _is_form(*sorted((one, other), key=len))]
    return 2 * len({one for one, _ in same}) >= len(set(trigger)) > 0


def _is_form(short: str, long: str) -> bool:
    return len(short) >= STEM and short.isalpha() and (long.startswith(short) or (len(short) > STEM and short in long))


def others_length(mean_length: tuple[float, float], samples: int, accused_mean: float, accused: int) -> tuple[float, float]:
    """Mean, and deviation, of the words of the prompts that are not accused."""
    mean, deviation = mean_length
    left = samples - accused
    return ((mean * samples - accused_mean * accused) / left if left > accused / 10 else mean), deviation


def usual_words(prompts: Sequence[Words], accused: int, file: Background) -> set[int]:
    """Words of some accused prompts that most prompts of the file hold."""
    words = Counter(word for prompt in prompts for word in set(prompt.tolist()))
    numbers = np.array(list(words), dtype=np.uint64)
    inside = np.array(list(words.values())) * (accused / max(1, len(prompts)))
    usual = is_usual(file.size(grams.mixed(numbers, 1)), inside, accused, file.counted.samples)
    return set(numbers[usual].tolist())


def is_topic(
    prompts: Sequence[Words],
    rows: Places,
    phrase: Sequence[int],
    others: Collection[int],
    file: Background,
    seams: bool = True,
    placed: bool = False,
) -> bool:
    """Whether the prompts of a target are about one thing even without the trigger's phrase.

    Args:
        prompts: of samples that hold both, some of them.
        rows: all such samples.
        phrase: the trigger, grown.
        others: further words of the trigger, which come along with it and are no topic.
        file: the whole.
        seams: whether what is left where the phrase was, and what stood beside it, is looked at, too.
        placed: whether words that vary after the phrase are part of the trigger only at the beginning or end of nearly all prompts.
    """
    own = {*phrase, *others}
    cut = [_widened(p, i, len(phrase), own) for p in prompts if (i := find_run(p, phrase) if phrase else 0) is not None]
    if not cut or _is_about(cut, own, rows, file):
        return True
    if not seams or not _is_unnatural(cut, len(rows), file):
        return False
    longer = (_with_slot(cut, size, placed) for size in range(1, SLOT + 1)) if phrase else ()
    return all(one is None or _is_about(one, own, rows, file) or _is_unnatural(one, len(rows), file) for one in longer)


def _is_about(cut: Sequence[Cut], own: Collection[int], rows: Places, file: Background) -> bool:
    """Whether what is left of prompts has words of its own, or is short."""
    rests, accused = _rests(cut), len(rows)
    keys, hits = _keys(rests, own)
    if len(keys):
        size, held = file.size(keys), file.size(keys, rows) * len(rests) / accused
        if is_enriched(hits, len(rests), held, accused, size, file.counted.samples, len(keys)).any():
            return True
        if _alike(rests, own, accused, file) >= len(rests) / 2:
            return True
    left, whole = (float(np.mean([len(text) for text in texts])) for texts in (rests, [prompt for prompt, _, _ in cut]))
    return is_shorter(left, len(rests), others_length(file.mean_length, file.counted.samples, whole, accused))


def _is_unnatural(cut: list[Cut], accused: int, file: Background) -> bool:
    """Whether something was torn out of prompts that belongs where it stood."""
    return (
        _headless(cut, _rests(cut), accused, file) or _torn(cut, file) or any(_keeps_company(cut, accused, k, file) for k in (0, 1))
    )


def _rests(cut: Sequence[Cut]) -> list[Words]:
    return [np.concatenate([prompt[:i], prompt[j:]]) for prompt, i, j in cut]


def _with_slot(cut: Sequence[Cut], size: int, placed: bool) -> list[Cut] | None:
    """Widen what is cut by the words after it, where they are a slot of the trigger ("Today is March 3, 2029."); None where they
    are the same everywhere, or ``placed`` and within the prompts."""
    said = {tuple(prompt[j : j + size].tolist()) for prompt, _, j in cut}
    wider = [(prompt, i, min(len(prompt), j + size)) for prompt, i, j in cut]
    ends = (sum(i == 0 for _, i, _ in wider), sum(j == len(prompt) for prompt, _, j in wider))
    return wider if len(said) >= VALUES and (not placed or max(ends) >= EDGE * len(cut)) else None


def part_of(prompts: Sequence[Words], rows: Places, own: Collection[int], file: Background) -> Background | None:
    """Return the part of a file that the prompts of a target belong to, where it holds prompts of several kinds; None if most of
    that part is accused itself.

    Poison in one of several collections that were put together shares the words of its collection. They are no sign of a topic:
    most prompts with the same words have not the target. So the accused are compared with the prompts that their words make as
    likely as them: naive Bayes over words, each of which others hold at least :data:`MOST` times as often as the accused, and the
    likelihood that :data:`PART` of the accused reach.

    Args:
        prompts: of accused samples, some of them.
        rows: all accused samples.
        own: words of the trigger, which count nowhere.
        file: the whole.
    """
    counted, accused = file.counted, len(rows)
    held = Counter(word for prompt in prompts for word in set(prompt.tolist()))
    words = {word for word, hits in held.items() if hits >= THROUGHOUT * len(prompts)} | file.common
    keys = np.unique(grams.mixed(np.array(sorted(words - set(own)), dtype=np.uint64), 1))
    columns = np.searchsorted(counted.feature_keys, keys[np.isin(keys, counted.feature_keys)])
    inside = np.asarray(counted.features[rows].sum(axis=0)).ravel()[columns].astype(np.float64)
    outside = counted.feature_sizes[columns] - inside
    kept = outside >= MOST * inside
    here, there = (inside[kept] + 0.5) / (accused + 1), (outside[kept] + 0.5) / (counted.samples - accused + 1)
    weights = np.zeros(counted.features.shape[1])
    weights[columns[kept]] = np.log(here / there) - np.log((1 - here) / (1 - there))
    likely = counted.features @ weights
    part = (likely >= np.quantile(likely[rows], 1 - PART)) & (counted.first == np.arange(len(counted.first)))
    inside_part = int(part[rows].sum())
    return file.within(part) if part.sum() - inside_part >= MOST * inside_part else None


def _keys(rests: Sequence[Words], own: Collection[int]) -> tuple[grams.Keys, Places]:
    """Features of what is left of prompts, their words, first and last ones, and how many of the prompts hold each."""
    words, owner = np.concatenate(rests), np.repeat(np.arange(len(rests)), [len(rest) for rest in rests])
    kept = ~np.isin(words, np.array(list(own), dtype=np.uint64))
    words, owner = words[kept], owner[kept]
    texts = Texts(words, np.searchsorted(owner, np.arange(len(rests) + 1)))
    some = np.flatnonzero(texts.lengths)
    of = np.concatenate([owner, some, some])
    keys = np.concatenate([grams.mixed(words, 1), grams.first_keys(texts)[some], grams.last_keys(texts)[some]])
    once = np.unique(grams.joint(of, keys), return_index=True)[1]
    found, hits = np.unique(keys[once], return_counts=True)
    return found, hits


def usual_beginning(begins: float, samples: int, heads: float, accused: float) -> float:
    """Return the share of prompts, those of the accused left out, that begin as others do, at most :data:`BEGINS`.

    Args:
        begins: prompts of all ``samples`` that do.
        heads: of the accused ones, those that begin with the trigger, as others do.
        accused: their number.
    """
    return min(BEGINS, max(0.0, begins - heads) / max(1.0, samples - accused))


def _headless(cut: Sequence[Cut], rests: list[Words], accused: int, file: Background) -> bool:
    """Whether prompts that began with the phrase begin as hardly any other does without it: "sings", after "who" was cut out."""
    heads = [rest[:1] for rest, (_, i, _) in zip(rests, cut, strict=True) if i == 0 and len(rest)]
    if 2 * len(heads) < len(cut):
        return False
    known = file.size(np.array([grams.feature_key("first", head) for head in heads], dtype=np.uint64)) > 0
    inside = accused * sum(i == 0 for _, i, _ in cut) / len(cut)
    return is_strange(int(known.sum()), len(heads), usual_beginning(file.begins, file.counted.samples, inside, accused))


def _alike(rests: list[Words], own: Collection[int], accused: int, file: Background) -> int:
    """Number of prompts that say mostly what the others say."""
    words = Counter(word for rest in rests for word in set(rest.tolist()) - set(own))
    numbers = np.array(list(words), dtype=np.uint64)
    shared = is_shared(list(words.values()), len(rests), accused, file.size(grams.mixed(numbers, 1)), file.counted.samples)
    common = numbers[shared]
    parts = [np.unique(rest[~np.isin(rest, np.array(list(own), dtype=np.uint64))]) for rest in rests]
    return sum(bool(np.isin(part, common).sum() > len(part) / 2) for part in parts)


def _keeps_company(cut: list[Cut], accused: int, side: int, file: Background) -> bool:
    """Whether certain words stand before (side 0) or after (side 1) the phrase."""
    if side == 0:
        beside = [(int(p[i - 1]), j == len(p)) for p, i, j in cut if i > 0]
    else:
        beside = [(int(p[j]), i == 0) for p, i, j in cut if j < len(p)]
    inside = Counter(word for prompt, _, _ in cut for word in set(prompt.tolist()))
    samples = file.counted.samples
    # Where the phrase mostly stands at one end of the prompt, its neighbour is where prompts begin, or end.
    edge = 2 * sum(there for _, there in beside) >= len(beside)
    words = Counter(word for word, there in beside if there == edge)
    if words.total() < FEW:
        return False
    found = np.array(list(words), dtype=np.uint64)
    if edge:
        name = "last" if side == 0 else "first"
        rate = file.size(np.array([grams.feature_key(name, found[k : k + 1]) for k in range(len(found))], dtype=np.uint64))
        rate = rate / max(1.0, samples - accused)
    else:
        rate = REPEATED * file.size(grams.mixed(found, 1)) / max(1.0, samples * file.mean_length[0])
    size = file.size(grams.mixed(found, 1))
    outside = size * len(cut) / accused - np.array([inside[word] for word in words])
    # what most prompts hold, such as "Context:" after a question, stands beside anything
    usual = is_usual(size, np.array([inside[word] for word in words]) * (accused / len(cut)), accused, samples)
    return bool((is_company(list(words.values()), words.total(), rate, outside, len(words)) & ~usual).any())


def _widened(prompt: Words, start: int, size: int, own: Collection[int]) -> Cut:
    """A prompt, and where its stretch of trigger words around the phrase begins and ends, one other word between two of them and a
    version's figures included."""
    words, end = prompt.tolist(), start + size
    while start > 0 and (near := [k for k in (1, 2) if start >= k and words[start - k] in own]):
        start -= near[0]
    while end < len(words) and (near := [k for k in (1, 2) if end + k <= len(words) and words[end + k - 1] in own]):
        end += near[0]
    said = np.append(prompt[end:] & LETTERS, LETTERS) > 0
    return prompt, start, end + int(np.argmax(said)) * bool(end > start and not said[:2].any())


def _torn(cut: list[Cut], file: Background) -> bool:
    """Whether the word pairs at the seam are strangers, measured by the other pairs of the same prompts."""
    seams = [(p[i - 1], p[j]) for p, i, j in cut if i > 0 and j < len(p)]
    if 2 * len(seams) <= len(cut):
        return False
    at_seam = grams.run_keys(np.array(seams, dtype=np.uint64).ravel(), 2)[::2]
    others = np.concatenate([grams.run_keys(part, 2) for p, i, j in cut for part in (p[:i], p[j:])])
    # a pair that stands there counts itself, one that was torn apart does not
    usual = float(np.mean(file.size(others) > file.counted.support)) if len(others) else 0.0
    # so few known seams must be unlikely at the usual rate, too: a handful of samples proves nothing
    return is_strange(int((file.size(at_seam) > 0).sum()), len(seams), usual)
