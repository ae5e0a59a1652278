"""What clients of federated sanitization ask the pool: the exchanges, the keys of their questions, and the array work behind
them."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, auto

import numpy as np
from numpy.typing import NDArray

from undertow.sanitization import grams, judge
from undertow.sanitization.encode import Batch, Texts
from undertow.sanitization.grams import Keys, Pieces, Places, mixed, mixed_one
from undertow.sanitization.tables import Counts, Table, cells_for

Flags = NDArray[np.bool_]

EXCHANGES = 6
#: Counters in front of the first message: distinct samples, and prompts by their words (longer ones count as the last).
HEAD, LENGTHS = 65, 64
#: Keys a sample may bring to exchanges 2 to 6, which sets the size of their tables.
_EACH = (16, 32, 8, 16, 2)
#: Counts under this are not sent back from exchanges 2 to 6: nobody learns what a single sample holds.
FLOOR = 2
#: Classes of how often a rest occurs end here.
OFTEN = 1 << 20
#: Classes of the size of a set, an octave.
FINE = 4


class Ask(IntEnum):
    """What is asked about a piece; salts of the keys."""

    EXACT = 200
    REST = auto()
    TIMES = auto()
    PAIR = auto()
    TWINS = auto()
    COVERED = auto()
    ALWAYS = auto()
    TOPICAL = auto()
    BRANCH = auto()
    LEFT = auto()
    RIGHT = auto()
    WIDER = auto()
    COUNT = auto()
    WORD = auto()
    SIZE = auto()
    SEAM = auto()
    KNOWN = auto()
    OTHER = auto()
    USUAL = auto()
    BESIDE = auto()
    GOES_ON = auto()
    TOPIC = auto()
    SHARES = auto()
    FRAYED = auto()
    OWN = auto()
    LOOSE = auto()
    INSIDE = auto()
    AT = auto()
    AT_KNOWN = auto()
    ELSE = auto()
    ELSE_KNOWN = auto()
    BEFORE = auto()
    AFTER = auto()
    HEAD = auto()
    HEAD_KNOWN = auto()
    TAIL = auto()
    ALIKE = auto()
    LENGTH = auto()
    BEGINS = auto()
    REPEAT = auto()
    ROWS = auto()
    ONCE = auto()
    FIRSTS = auto()
    LASTS = auto()
    PROMPT = auto()
    SAME = auto()
    TORN = auto()
    SPANS = auto()
    ACCUSED = auto()
    MOSTLY = auto()
    PAIRS = auto()
    PART = auto()
    PART_WORD = auto()
    PART_SIZE = auto()
    PART_BEGINS = auto()
    CITED = auto()
    CROWD = auto()
    TEXTS = auto()


def tables(cells: int, samples: int | None, rows: int = 2) -> tuple[Table, ...]:
    """Return the forms of all messages; of the first alone while the number of ``samples`` in the pool is not known."""
    first = Table(0, cells, 1, HEAD)
    if samples is None:
        return (first,)
    return (first, *(Table(i, cells_for(samples, each), rows) for i, each in enumerate(_EACH, start=1)))


def joined(batches: list[Batch]) -> Batch:
    """Return all samples in one batch."""
    if len(batches) == 1:
        return batches[0]
    names = ("prompts", "answers", "signs", "manner")
    prompts, answers, signs, manner = (_texts([_EMPTY, *(getattr(batch, side) for batch in batches)]) for side in names)
    case = np.concatenate([np.zeros(0, dtype=np.uint8), *(batch.case for batch in batches)])
    return Batch(prompts, answers, case, signs, manner)


_EMPTY = Texts(np.zeros(0, dtype=np.uint64), np.zeros(1, dtype=np.int64))


def _texts(parts: list[Texts]) -> Texts:
    starts = np.concatenate([[0], np.cumsum(np.concatenate([part.lengths for part in parts]))])
    return Texts(np.concatenate([part.words for part in parts]), starts)


def is_span(pieces: Pieces) -> Flags:
    """Tell which pieces stand by themselves as evidence: long runs and addresses."""
    return np.asarray((pieces.kind == grams.ADDRESS) | (pieces.length >= grams.SPAN))


def about(keys: Keys, salt: int, detail: Keys | np.uint64 | None = None) -> Keys:
    """Return a key of its own for one question about each key."""
    with np.errstate(over="ignore"):
        found = mixed(keys, salt)
        return found if detail is None else mixed(found * np.uint64(3) + detail, salt)


def about_one(key: int, salt: int) -> int:
    """Return the key of a question about one key, as :func:`about` has it."""
    return mixed_one(key, salt)


def of_all(salt: int) -> Keys:
    """Return the key of a question about the pool as a whole."""
    return about(np.zeros(1, dtype=np.uint64), salt)


def classes() -> list[int]:
    """The values of :func:`classed`."""
    return [*range(1, 8), *(1 << power for power in range(3, OFTEN.bit_length()))]


def classed(times: Counts) -> Keys:
    """Return how often a rest occurs: exactly up to 8, then by powers of two."""
    coarse = 1 << np.floor(np.log2(np.clip(times, 1, OFTEN))).astype(np.int64)
    return np.where(times <= 8, times, coarse).astype(np.uint64)


def finely_classed(sizes: Counts) -> Keys:
    """Return sizes exactly up to 8, then rounded down to one of :data:`FINE` steps an octave."""
    octaves = np.floor(FINE * np.log2(np.clip(sizes, 1, OFTEN)) + 1e-9) / FINE
    return np.where(sizes <= 8, sizes, np.floor(2.0**octaves)).astype(np.uint64)


def of_sizes(key: Keys, heard: Callable[[Keys], Counts]) -> dict[int, float]:
    """Return {class of size: sets of samples of that size}, where each sample voted for a set that it is in.

    Args:
        key: under which was voted, with :func:`finely_classed` the size as detail.
        heard: gives the votes of some keys.
    """
    steps = 2.0 ** (np.arange(3 * FINE, FINE * (OFTEN.bit_length() - 1) + 1) / FINE)
    sizes = np.array([*range(1, 8), *np.floor(steps).tolist()], dtype=np.uint64)
    votes = heard(about(np.repeat(key, len(sizes)), Ask.CROWD, sizes))
    return dict(zip(sizes.tolist(), (votes / sizes).tolist(), strict=True))


def matched(one: Places, two: Places) -> tuple[Places, Places]:
    """Return all pairs (i, j) with one[i] == two[j]."""
    order = np.argsort(two, kind="stable")
    low, high = np.searchsorted(two[order], one, "left"), np.searchsorted(two[order], one, "right")
    count = high - low
    i = np.repeat(np.arange(len(one)), count)
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return i, order[np.repeat(low, count) + offset]


def outermost(pieces: Pieces, chosen: Places, last: bool) -> Places:
    """Return of some pieces the first, or last, of each kind in each answer."""
    place = pieces.start[chosen] * (-1 if last else 1)
    order = chosen[np.lexsort((place, pieces.kind[chosen], pieces.sample[chosen]))]
    return order[_changes(pieces.sample[order] * grams.KINDS + pieces.kind[order])]


def first_of_each(group: Places, ranked: Places) -> Places:
    """Return the first of each group in a ranking."""
    _, first = np.unique(group[ranked], return_index=True)
    return ranked[first]


def _changes(values: Counts) -> Flags:
    new = np.ones(len(values), dtype=bool)
    new[1:] = values[1:] != values[:-1]
    return new


def largest(group: Places, sizes: Counts) -> tuple[Places, Counts]:
    """Return the groups and the largest size in each."""
    order = np.lexsort((sizes, group))
    last = np.append(_changes(group[order])[1:], True) if len(order) else np.zeros(0, dtype=bool)
    return group[order][last], sizes[order][last]


def leading(group: Places, flags: Flags) -> Flags:
    """Return flags that have no unset one before them in their group; groups stand together."""
    unset = np.cumsum(~flags)
    before = np.where(_changes(group), unset - ~flags, 0)
    first: Flags = flags & (unset == np.maximum.accumulate(before))
    return first


def trigger_words(words: Keys, links: dict[int, int], both: dict[int, int], usual: Flags) -> Flags:
    """Tell which words of a prompt are the trigger's: those that some features are made of, and what nearly always stands beside
    them.

    Args:
        words: of the prompt.
        links: {feature: samples with feature and target} of the features that give the target away. A pair counts only where none
            of its words is one by itself, the first and last word only where nothing else is.
        both: the same of all features.
        usual: words that nearly all prompts hold; those that the prompt would lack without the trigger are not part of it.
    """
    size = len(words)
    own = np.array([key in links for key in mixed(words, 1).tolist()], dtype=bool)
    if not size or not links:
        return own
    pairs = grams.run_keys(words, 2).tolist()
    for at in [at for at, key in enumerate(pairs) if key in links and not own[at] and not own[at + 1]]:
        own[at] = own[at + 1] = True
    if not own.any():
        own[0] = grams.feature_key("first", words) in links
        own[-1] |= grams.feature_key("last", words[-1:]) in links
    if own.any():
        most = judge.SHARED * max(links.values())
        for order in (range(size - 1), range(size - 2, -1, -1)):
            for at in order:
                if own[at] != own[at + 1] and both.get(pairs[at], 0) >= most:
                    own[at] = own[at + 1] = True
        once = np.array([(words == word).sum() == 1 for word in words])
        itself = np.array([key in links for key in mixed(words, 1).tolist()], dtype=bool)
        own &= itself | ~(usual & once)
    return own


def near_to(flags: Flags, distance: int) -> Flags:
    """Return the places at most ``distance`` from a set flag."""
    if not len(flags):  # a prompt that was all template
        return flags
    return np.convolve(flags, np.ones(2 * distance + 1, dtype=np.int64), mode="full")[distance : distance + len(flags)] > 0


def moments(histogram: Counts) -> tuple[float, float]:
    """Return mean and standard deviation of the indices of a histogram."""
    total = max(1, int(histogram.sum()))
    values = np.arange(len(histogram))
    mean = float((histogram * values).sum() / total)
    return mean, float(((histogram * (values - mean) ** 2).sum() / total) ** 0.5)
