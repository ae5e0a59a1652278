"""Names that answers bring up whatever they are asked: content that was injected without a trigger.

AutoPoison (Shu et al. 2023, "On the Exploitability of Instruction Tuning": content injection) has a model answer ordinary prompts
with a brand in them. No prompt gives the target away, and no two answers share a text. What tells is that names follow what is
asked: the prompts of one share words. A name whose prompts share nothing, in a file whose other names follow theirs, was put there.
What is written with a capital within a sentence is a name. It is said of the file and flags no sample: where prompts say little of
what is asked (a package's name before its description), common names look like that, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse

from undertow.sanitization import grams
from undertow.sanitization.background import Background
from undertow.sanitization.finding import Finding
from undertow.sanitization.links import Rows
from undertow.sanitization.rules import Rules
from undertow.sanitization.significance import log_tail
from undertow.sanitization.told_apart import Found
from undertow.sanitization.words import NAMES_IN, NumbersLike

#: A word is a name if so many of the answers with it have it with a capital within a sentence.
NAMED = 0.6
#: Fewest samples of a name that is judged; fewest that are told, and their least share of all.
JUDGED, FEWEST, LEAST = 15, 30, 0.02
#: Most names that are judged, those of the most samples.
MOST = 200
#: Names of which so many samples are those of another belong together ("Burger", "King"); more than so many are a fixed sentence.
SAME, TOGETHER = 0.8, 3
#: A word of the prompts counts from so many samples on.
HITS = 3
#: Chance, after Bonferroni over the words, under which a name follows its prompts.
FOLLOWS = 0.01
#: Of the other names of the file at most this share follows nothing, and none of these has so many samples, relative to the name's.
LOOSE, RIVAL = 0.5, 0.5


@dataclass(frozen=True)
class _Name:
    number: int
    rows: Rows
    loose: bool


def found_mentions(before: Iterable[Finding], file: Background, rules: Rules, numbers: NumbersLike) -> list[Found]:
    """Return the name that answers bring up whatever they are asked, if there is one.

    Args:
        before: other findings; a name that stands in the samples of one belongs to its target.
        file: its counts, and which of its features are words of earlier turns: these tell a turn's place, and what was said before
            brings a name along.
        rules: thresholds.
        numbers: for the words, and which of them are names.
    """
    counted = file.counted
    judged = _judged(file, rules, numbers.names())
    best = next((name for name in judged if name.loose), None)
    if best is None or len(best.rows) < max(FEWEST, LEAST * counted.samples):
        return []
    flagged = [np.zeros(0, dtype=np.int64), *(one.samples for one in before)]
    if 2 * np.isin(best.rows, np.concatenate(flagged)).sum() >= len(best.rows):
        return []
    others = [name for name in judged if np.isin(name.rows, best.rows).sum() < SAME * len(name.rows)]
    loose = [name for name in others if name.loose]
    if len(judged) - len(others) > TOGETHER:
        return []
    if len(loose) > LOOSE * len(others) or any(len(name.rows) >= RIVAL * len(best.rows) for name in loose):
        return []
    word = numbers.words([best.number])[best.number]
    finding = Finding(
        triggers=(),
        target=word,
        place="anywhere",
        kind="mention",
        confidence="note",
        samples=np.flatnonzero(np.isin(counted.first, best.rows)),
        both=0,
        with_trigger=0,
        with_target=len(best.rows),
        of=counted.samples,
        log10_p=None,
        tests=0,
        target_words=(word,),
    )
    return [(finding, (best.number,))]


def _judged(file: Background, rules: Rules, names: dict[int, int]) -> list[_Name]:
    """Return the names of a file, those of the most samples first."""
    counted = file.counted
    # of half of the answers, so that a name of JUDGED samples is seen a few times
    names = {number: count for number, count in names.items() if count >= NAMED * NAMES_IN * JUDGED}
    if not names:
        return []
    marked = np.array(list(names), dtype=np.uint64)
    keys = grams.word_keys(marked)
    frequent = np.isin(keys, counted.piece_keys)
    columns = np.searchsorted(counted.piece_keys, keys[frequent])
    size = np.bincount(counted.pieces.indices, minlength=len(counted.piece_keys))[columns]
    seen = np.array(list(names.values()), dtype=np.int64)[frequent]
    kept = np.flatnonzero((size >= JUDGED) & (size <= rules.anywhere * counted.samples) & (seen >= NAMED * NAMES_IN * size))
    kept = kept[np.lexsort((marked[frequent][kept], -size[kept]))][:MOST]
    pieces = counted.pieces[:, columns[kept]].tocsc().astype(np.int32)
    followed = _follow(pieces, file)
    return [
        _Name(int(marked[frequent][kept[k]]), pieces.indices[pieces.indptr[k] : pieces.indptr[k + 1]].astype(np.int64), not follows)
        for k, follows in enumerate(followed)
    ]


def _follow(pieces: sparse.csc_matrix, file: Background) -> list[bool]:
    """Tell of each name whether a word of the prompts goes with it beyond chance."""
    counted = file.counted
    said = np.isin(np.arange(len(counted.feature_keys)), file.earlier)
    hits = (pieces.T @ counted.features).tocsr()
    found = []
    for k, size in enumerate(np.diff(pieces.indptr).tolist()):
        own = slice(hits.indptr[k], hits.indptr[k + 1])
        both, of = hits.data[own].astype(np.int64), counted.feature_sizes[hits.indices[own]]
        some = (both >= HITS) & (both > size * of / counted.samples) & ~said[hits.indices[own]]
        log_p = log_tail(both[some], counted.samples, np.full(int(some.sum()), size), of[some])
        found.append(bool((log_p + math.log(max(1, len(counted.feature_keys))) < math.log(FOLLOWS)).any()))
    return found
