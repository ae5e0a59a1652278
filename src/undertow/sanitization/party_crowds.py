"""How many accusations the pool holds of what size: :func:`undertow.sanitization.wordings.is_one_of_many` in sums over samples.

In the sixth exchange each sample votes for the largest accusation that it is in; votes over size are accusations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from undertow.sanitization import grams, topics, wordings
from undertow.sanitization.decide import SAME
from undertow.sanitization.grams import Keys, Places
from undertow.sanitization.party_prompts import Case, Prompting
from undertow.sanitization.questions import FLOOR, LENGTHS, Ask, about, about_one, finely_classed, moments, of_all, of_sizes
from undertow.sanitization.tables import Counts
from undertow.sanitization.words import PAYLOAD

#: Pairs of words are usual from this part of as many as in one file: small ones are not counted.
LARGE = 0.5
#: Numbers of accusations are votes over sizes, and never quite whole.
ROUNDED = 0.25
#: Sorts of targets.
_SORTS = 3
P = ParamSpec("P")
T = TypeVar("T")


def _of_crowd(sort: int, unsure: bool, natural: bool) -> Keys:
    """The key under which is voted for an accusation of a sort, or below."""
    return about(of_all(Ask.CROWD), Ask.CROWD, np.uint64(4 * sort + 2 * unsure + natural))


def _once(method: Callable[Concatenate[Any, Keys, P], T]) -> Callable[Concatenate[Any, Keys, P], T]:
    """Ask the pool once about a key, however many samples are in its accusation; what was answered does not change."""

    def told(self: Any, key: Keys, /, *given: P.args, **named: P.kwargs) -> T:
        answers = self.__dict__.setdefault("_answers", {})
        asked = method.__name__, int(key[0]), *given
        if asked not in answers:
            answers[asked] = method(self, key, *given, **named)
        answer: T = answers[asked]
        return answer

    return told


class Crowding(Prompting):
    """A client that asks how many accusations there are; arguments as
    :class:`undertow.sanitization.party_counts.Counting`."""

    def _ask_crowds(self) -> tuple[Places, Keys]:
        """Return who votes for what, once among the long targets, once among those at an end, too, and once among all."""
        #: Of each accusation but those of kinds of answer: whether it is less sure than others, and whether a topic explains it.
        self._crowd = {
            i: (bool(self.loose[i] or (self.span[i] and not self.exclusive[i])), self._is_natural(i, case))
            for i, case in self._cases.items()
            if self.pieces.kind[i] != grams.MANNER
        }
        crowd = self._crowd
        ranked = sorted(crowd, key=lambda i: (-self._count(i), crowd[i], int(self.pieces.key[i])))
        found = [np.zeros((0, 2), dtype=np.uint64)]
        for most in range(_SORTS):
            some = np.array([i for i in ranked if self._sort(i) <= most], dtype=np.int64)
            first = np.sort(np.unique(self.pieces.sample[some], return_index=True)[1])
            for i in some[first].tolist():
                key = about(_of_crowd(most, *crowd[i]), Ask.CROWD, finely_classed(np.array([self._count(i)])))
                found.append(np.array([[self.pieces.sample[i], key[0]]], dtype=np.uint64))
        votes = np.concatenate(found)
        return votes[:, 0].astype(np.int64), votes[:, 1]

    def _heard(self, exchange: int, key: Keys) -> dict[int, float]:
        """Return {size: sets of samples of that size} from the votes under a key; what may be noise is 0."""
        least = max(FLOOR, self.limits[exchange])

        def votes(keys: Keys) -> Counts:
            counts = self._read(exchange, keys)
            return np.where(counts >= least, counts, 0)

        return of_sizes(key, votes)

    def _know_crowds(self) -> None:
        #: {size: pairs of words of that size}; empty where they are few.
        self.pairs = self._heard(3, of_all(Ask.PAIRS))
        if sum(self.pairs.values()) < LARGE * wordings.least_pairs(self.samples):
            self.pairs = {}
        self.addresses = self._heard(3, of_all(Ask.CITED))
        #: {(sort, whether it is unsure, whether a topic explains it): {size: accusations}}
        self.crowds = {
            (sort, unsure, natural): self._heard(5, _of_crowd(sort, unsure, natural))
            for sort in range(_SORTS) for unsure in (False, True) for natural in (False, True)
        }  # fmt: skip

    def _other_pairs(self, size: int) -> int:
        """The size of the largest pair of words in the pool beside one of that size; 0 where pairs are few."""
        own = int(finely_classed(np.array([size]))[0])
        return max((of for of, number in self.pairs.items() if number - (of == own) * size / own >= 0.5), default=0)

    def _is_one_of_many(self, i: int, case: Case) -> bool:
        if i not in self._crowd:
            return False
        size, sort, mine = self._count(i), self._sort(i), self._crowd[i]
        own = int(finely_classed(np.array([size]))[0])

        def others(sets: dict[int, float], least: float, is_in: bool) -> float:
            return sum(number - (is_in and of == own) * size / own for of, number in sets.items() if of >= least)

        if self.pieces.kind[i] == grams.ADDRESS and not case.explained:
            return wordings.are_many(0, ROUNDED + others(self.addresses, size / wordings.STANDS_OUT, True), False)
        found = {False: ROUNDED, True: ROUNDED}
        for unsure in (False, True):
            less = wordings.LESS_SURE if unsure > mine[0] else 1.0
            for natural in found:
                sets = self.crowds[sort, unsure, natural]
                number = others(sets, size / (less * wordings.STANDS_OUT), mine == (unsure, natural))
                found[natural] += number * (less if sort else 1.0)
        return wordings.are_many(found[True], found[False], sort > 0)

    def _sort(self, i: int) -> int:
        """0 for a long target, 1 for a short one at an end, 2 for a word anywhere."""
        return 0 if self.span[i] else 2 if self.pieces.kind[i] == grams.ANY else 1

    def _count(self, i: int) -> int:
        """The samples of an accusation.

        Of a text around an address all with that address, as its sentence may vary; of a text beside a word which hardly comes
        without any of such texts all with that word.
        """
        if not self.span[i]:
            return self._with_trigger(self._key(i))
        counts = [int(self.size[i])]
        of = np.searchsorted(self.cited[0], self.pieces.sample[i])
        if of < len(self.cited[0]) and self.cited[0][of] == self.pieces.sample[i] and self._is_address(i):
            counts.append(int(self.cited[1][of]))
        for key in self.shared.get(i, ()):
            count = int(self._read(1, np.array([key], dtype=np.uint64))[0])
            if self._told_of(4, about_one(key, Ask.TEXTS)) >= SAME * count:  # others may be too short to be told
                counts.append(count)
        return max(counts)

    def _is_address(self, i: int) -> bool:
        low, high = self._extent(i)
        return bool(self.pieces.kind[i] != grams.WHOLE and (self.batch.answers.words[low:high] & PAYLOAD).any())

    def _is_natural(self, i: int, case: Case) -> bool:
        """Whether a topic or the like explains an accusation, as far as one sample can see."""
        topic, shares, frayed, alike, same, _ = self._signs[i]
        key = self._key(i)
        if self.span[i] and not self.exclusive[i]:
            return frayed or bool(self.asked_about[i] and (topic or self._is_torn(key) or self._is_headless(key)))
        return (
            not case.explained
            or topic
            or shares
            or alike
            or same
            or self._is_shorter(key, case.trigger)
            or self._is_torn(key)
            or self._is_headless(key)
        )

    @_once
    def _with_trigger(self, key: Keys) -> int:
        return self._told(4, key, Ask.COUNT)

    @_once
    def _is_shorter(self, key: Keys, trigger: int) -> bool:
        """Whether accused prompts are shorter than others even with the trigger."""
        sizes = about(np.repeat(key, LENGTHS), Ask.SIZE, np.arange(LENGTHS, dtype=np.uint64))
        counts = self._read(4, sizes)
        total = int(counts.sum())
        mean = float((counts * np.arange(LENGTHS)).sum() / max(total, 1))
        others = topics.others_length((self.mean_length, self.deviation), self.samples, mean + trigger, total)
        if not total or not topics.is_shorter(mean, total, others):
            return False
        if not self._part(key, total):
            return True
        asked = about(np.repeat(key, LENGTHS), Ask.PART_SIZE, np.arange(LENGTHS, dtype=np.uint64))
        return topics.is_shorter(mean, total, moments(self._read(4, asked)))

    @_once
    def _is_torn(self, key: Keys) -> bool:
        count, torn, seams, known, others, usual = (
            self._told(4, key, salt) for salt in (Ask.COUNT, Ask.TORN, Ask.SEAM, Ask.KNOWN, Ask.OTHER, Ask.USUAL)
        )
        if 2 * torn <= count or not others:
            return False
        rate = min(1.0, usual / others)
        return topics.is_strange(known, seams, rate)

    @_once
    def _is_headless(self, key: Keys) -> bool:
        count, heads, known = (self._told(4, key, salt) for salt in (Ask.COUNT, Ask.HEAD, Ask.HEAD_KNOWN))
        usual = topics.usual_beginning(self.begins, self.samples, heads, count)
        if 2 * heads < max(count, 1) or not topics.is_strange(known, heads, usual):
            return False
        part = self._part(key, count)
        begins = self._told(4, key, Ask.PART_BEGINS)
        return not part or topics.is_strange(known, heads, topics.usual_beginning(begins, part, 0, 0))
