"""The fifth exchange of federated sanitization on one client: the prompts of accused pieces without the trigger's words.

The rules are those of :mod:`undertow.sanitization.topics` and :mod:`undertow.sanitization.judge`, said in sums over samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from undertow.sanitization import grams, judge, topics
from undertow.sanitization.asked_for import Asked
from undertow.sanitization.grams import Keys, Places, mixed, mixed_one
from undertow.sanitization.party_counts import Counting
from undertow.sanitization.party_parts import Parts
from undertow.sanitization.questions import (
    FLOOR,
    LENGTHS,
    Ask,
    Flags,
    about,
    about_one,
    first_of_each,
    near_to,
    of_all,
    trigger_words,
)
from undertow.sanitization.words import Numbers, cut

#: Pairs of a prompt that the seam is compared with.
COMPARED = 8
#: Words this near to a trigger's known ones may be its own.
BESIDES = 3
#: Fewest prompts that can be said to be alike.
ALIKE = 4


@dataclass(frozen=True)
class Case:
    """One accused piece in one sample: what is asked of the pool, the rest of its prompt, and what the sample shows alone.

    ``pairs`` are the pairs of neighbours with a word of a loose trigger, and the other ones; ``near`` the words beside the
    trigger: their question, that for there being one, the word's usual rate there, and the samples that hold it; ``mostly``:
    most of the prompt is trigger.
    """

    asked: list[int]
    rest: Keys
    pairs: tuple[Keys, Keys]
    explained: bool
    case_alone: bool
    shares: bool
    beside: list[tuple[int, int]]
    near: list[tuple[int, int, float, float]]
    trigger: int
    mostly: bool


class Prompting(Counting):
    """A client that asks about the prompts of what is accused; arguments as :class:`Counting`."""

    # Exchange 5: the prompts of what is accused, without the words that give the target away.

    def _ask_prompts(self) -> tuple[Places, Keys]:
        p = self.pieces
        self._asked_for = Asked(Numbers(self._secret))
        order = np.array([3, 0, 2, 1, 4, 5])  # by kind: END, ADDRESS, WHOLE, START, ANY, MANNER
        few = self.size < self.rules.act_support
        rank = np.lexsort((p.key, -self.size, order[p.kind], few, ~self.held, ~self.exclusive))
        short = (self.held | self.loose) & ~self.span
        groups = (self.planted, short & (p.kind < grams.ANY), short & (p.kind == grams.ANY), short & (p.kind == grams.MANNER))
        self.accused = np.concatenate([first_of_each(p.sample, rank[some[rank]]) for some in groups])
        links, both = self._links_of_accused()
        self._prompts = grams.text_keys(self.batch.prompts)
        samples: list[int] = []
        keys: list[int] = []
        self._cases: dict[int, Case] = {}
        for i in self.accused.tolist():
            case = self._case(i, links.get(i, {}), both.get(i, {}))
            self._cases[i] = case
            samples += [int(p.sample[i])] * len(case.asked)
            keys += case.asked
        for found, asked in self._parts(links):
            samples += found
            keys += asked
        #: Words that long targets come with which no trigger gives away alone: they may be several texts of one trigger.
        self.shared: dict[int, list[int]] = {}
        for i in self.accused.tolist() if self.clip is None else ():
            if self.span[i] and not self.exclusive[i]:
                self.shared[i] = list(both.get(i, {}))
                samples += [int(p.sample[i])] * len(self.shared[i])
                keys += [about_one(key, Ask.TEXTS) for key in self.shared[i]]
        spans = self.accused[self.span[self.accused]]  # one a sample
        samples += [*p.sample[spans].tolist(), *p.sample[spans].tolist()]
        keys += [*about(p.key[spans], Ask.ACCUSED).tolist(), *np.repeat(of_all(Ask.SPANS), len(spans)).tolist()]
        return np.array(samples, dtype=np.int64), np.array(keys, dtype=np.uint64)

    def _parts(self, links: dict[int, dict[int, int]]) -> list[tuple[list[int], list[int]]]:
        """What is asked about the client's prompts of the same kind as accused ones (:mod:`undertow.sanitization.party_parts`)."""
        p, words = self.pieces, self.batch.prompts
        sure = [i for i in self.accused.tolist() if self._cases[i].explained and not self.loose[i] and p.kind[i] != grams.MANNER]
        if not sure or self.clip is not None:  # with noise, a sample says little
            return []
        parts = Parts(words, self.identity.astype(np.int64), self.own)
        names = grams.mixed(parts.words, 1)
        begins = self._read(1, grams.first_keys(words)) >= self.support
        found = []
        for key in np.unique(p.key[sure]):
            of = [i for i in sure if p.key[i] == key]
            trigger = np.isin(names, np.array([link for i in of for link in links.get(i, {})], dtype=np.uint64))
            some = parts.like(np.unique(p.sample[of]), parts.words[trigger].tolist())
            if not len(some):
                continue
            own, word = parts.words_of(some)
            lengths = np.minimum(words.lengths[some], LENGTHS - 1).astype(np.uint64)
            each = np.repeat(key, len(some))
            asked = np.concatenate(
                [
                    about(each, Ask.PART),
                    about(each, Ask.PART_SIZE, lengths),
                    about(each[begins[some]], Ask.PART_BEGINS),
                    about(np.repeat(key, len(word)), Ask.PART_WORD, parts.words[word]),
                ]
            )
            found.append(([*some.tolist(), *some.tolist(), *some[begins[some]].tolist(), *own.tolist()], asked.tolist()))
        return found

    def _links_of_accused(self) -> tuple[dict[int, dict[int, int]], dict[int, dict[int, int]]]:
        """For each accused piece {feature: samples with both}: of the features that give it away, and of all."""
        own: dict[int, dict[int, int]] = {}
        every: dict[int, dict[int, int]] = {}
        for at in np.flatnonzero(np.isin(self.link_piece, self.accused)).tolist():
            piece, key, both = int(self.link_piece[at]), int(self.f_key[self.link_feature[at]]), int(self.both[at])
            every.setdefault(piece, {})[key] = both
            if self.loose_link[at] if self.loose[piece] else self.own_link[at]:
                own.setdefault(piece, {})[key] = both
        return own, every

    def _key(self, i: int) -> Keys:
        """The key under which an accused piece is asked about; samples with a loose trigger are counted apart."""
        key = self.pieces.key[i : i + 1]
        return about(key, Ask.LOOSE) if self.loose[i] else key

    def _case(self, i: int, links: dict[int, int], both: dict[int, int]) -> Case:
        """Cut the trigger's words out of one prompt, and list what is asked about the rest."""
        p = self.pieces
        k, key, sample = int(p.kind[i]), self._key(i), int(p.sample[i])
        prompts, answers = self.batch.prompts, self.batch.answers
        words = prompts.words[prompts.starts[sample] : prompts.starts[sample + 1]]
        loose = bool(self.loose[i])
        sizes = self._read(1, mixed(words, 1))
        usual = topics.is_usual(sizes, 0, 0, self.samples)
        own = (
            np.isin(mixed(words, 1), np.array(list(links), dtype=np.uint64)) if loose else trigger_words(words, links, both, usual)
        )
        case_alone = bool(links) and not own.any() and not loose
        low, high = self._extent(i) if self.span[i] else (int(p.start[i]), int(p.start[i] + p.length[i]))
        target = answers.words[low:high].tolist() if k != grams.MANNER else []
        trigger = words[own].tolist()
        shares = bool(trigger) and (
            topics.is_repeated(trigger, target) or self._asked_for.is_asked_for(set(trigger), set(target), int(p.key[i]))
        )
        asked: list[int] = []
        # A planted phrase that varies has words of its own beside those that are known; for a long target they are no topic.
        rest_words = np.unique(words[~(near_to(own, BESIDES) if self.span[i] else own)])
        near: list[tuple[int, int, float, float]] = []
        if own.any() or case_alone:
            rest = words[~own]
            asked += [*about(key, Ask.COUNT).tolist(), *about(key, Ask.SIZE, np.uint64(min(len(rest), LENGTHS - 1))).tolist()]
            asked += about(np.repeat(key, len(rest_words)), Ask.WORD, rest_words).tolist()
            if not loose and own.any():
                question = 0 if self.templated else len(cut(self._samples[sample].question))
                asked += self._seams(words, own, key, question)
                near = self._company(words, own, key)
                asked += [question for found in near for question in found[:2]] + self._head(words, own, key)
        pairs = grams.run_keys(words, 2)
        touched = (own[:-1] | own[1:]) & loose
        others = np.unique(pairs[~touched])[: COMPARED if loose and own.any() else 0]
        asked += [question for some in (pairs[touched], others) for question in _each(key, Ask.INSIDE, np.unique(some))]
        explained = bool(own.any()) or case_alone
        if self.span[i] or explained:
            asked += about(key, Ask.PROMPT, self._prompts[sample : sample + 1]).tolist()
        beside = []
        if not self.exclusive[i] and self.span[i] and k != grams.WHOLE:
            sides = (0, 1) if k == grams.ADDRESS else (0,) if k == grams.END else (1,)
            beside = [found for side in sides if (found := self._beside(i, side, key))]
            asked += [question for found in beside for question in found]
        return Case(
            asked,
            rest_words,
            (pairs[touched], others),
            explained,
            case_alone,
            shares,
            beside,
            near,
            int(own.sum()),
            2 * int(own.sum()) > len(words),
        )

    def _company(self, words: Keys, own: Flags, key: Keys) -> list[tuple[int, int, float, float]]:
        """The words before and after the first stretch of the trigger."""
        start = int(np.argmax(own))
        end = start + int(np.argmin(np.append(own[start:], False)))
        found = []
        for salt, at, edge in ((Ask.BEFORE, start - 1, end == len(words)), (Ask.AFTER, end, start == 0)):
            if not 0 <= at < len(words):
                continue
            word = words[at : at + 1]
            asked, held = int(salt) + (100 if edge else 0), float(self._told_of(1, mixed_one(int(word[0]), 1)))
            if edge:  # the neighbour is where prompts begin, or end
                rate = self._told_of(1, grams.feature_key("last" if at < start else "first", word)) / self.samples
            else:
                rate = topics.REPEATED * held / (self.samples * max(self.mean_length, 1.0))
            found.append((int(about(key, asked, word)[0]), int(about(key, asked)[0]), rate, held))
        return found

    def _head(self, words: Keys, own: Flags, key: Keys) -> list[int]:
        """Of a prompt that begins with the trigger: whether others begin as it does without."""
        rest = words[~own]
        if not own[0] or not len(rest):
            return []
        known = self._told_of(1, grams.feature_key("first", rest[:1])) >= self.support
        return [about_one(int(key[0]), salt) for salt in (Ask.HEAD, Ask.HEAD_KNOWN)[: 1 + bool(known)]]

    def _seams(self, words: Keys, own: Flags, key: Keys, question: int) -> list[int]:
        """The word pair where a trigger was cut out, and ordinary pairs of the same prompt: which are known in the pool.

        The last word of the question (of ``question`` words, if they are known) and the first of the context are no pair.
        """
        outside = np.flatnonzero(~own)
        pairs = np.stack([words[outside[:-1]], words[outside[1:]]], axis=1)
        seam = np.diff(outside) > 1
        inside = (outside[:-1] >= question) | (outside[1:] < question)
        pairs, seam = pairs[inside], seam[inside]
        if not len(pairs):
            return []
        size = self._read(1, grams.run_keys(pairs.ravel(), 2)[::2])
        asked = [Ask.TORN] * bool(seam.any())
        for known in size[seam][:COMPARED] >= self.support:
            asked += [Ask.SEAM, Ask.KNOWN][: 1 + bool(known)]
        # a pair that stands there counts itself, one that was torn apart does not
        for usual in size[~seam][:COMPARED] > self.support:
            asked += [Ask.OTHER, Ask.USUAL][: 1 + bool(usual)]
        return [about_one(int(key[0]), salt) for salt in asked]

    def _beside(self, i: int, side: int, key: Keys) -> tuple[int, int] | None:
        """Keys of the word beside a grown span, and of there being one; None at the end of the answer."""
        p, texts = self.pieces, self.batch.answers
        low, high = self._extent(i)
        at = low - 1 if side == 0 else high
        sample = int(p.sample[i])
        if not texts.starts[sample] <= at < texts.starts[sample + 1]:
            return None
        word = about(key, Ask.BESIDE + 100 * side, texts.words[at : at + 1])
        return int(word[0]), int(about(key, Ask.GOES_ON + 100 * side)[0])

    def _know_prompts(self) -> None:
        #: Samples with any accused span.
        self.spans = int(self._read(4, of_all(Ask.SPANS))[0])
        self._signs: dict[int, tuple[bool, ...]] = {}
        for i, case in self._cases.items():
            key = self._key(i)
            count = self._told(4, key, Ask.COUNT)
            topic, alike = False, False
            if len(case.rest) and count:
                hits = np.minimum(self._read(4, about(np.repeat(key, len(case.rest)), Ask.WORD, case.rest)), count)
                size = self._read(1, mixed(case.rest, 1))
                words = count * max(self.mean_length, 1.0)  # at least as many as were looked at
                many = hits >= max(FLOOR, self.limits[4])
                topic = bool((topics.is_enriched(hits, count, hits, count, size, self.samples, words) & many).any())
                alike = 2 * int(topics.is_shared(hits, count, count, size, self.samples).sum()) > len(case.rest)
                part = self._part(key, count) if topic or alike else 0
                if part:
                    size = hits + self._read(4, about(np.repeat(key, len(case.rest)), Ask.PART_WORD, case.rest))
                    topic = bool((topics.is_enriched(hits, count, hits, count, size, part + count, words) & many).any())
                    alike = 2 * int(topics.is_shared(hits, count, count, size, part + count).sum()) > len(case.rest)
            topic |= any(self._keeps_company(*found) for found in case.near)
            besides = [[self._told_of(4, one) for one in both] for both in case.beside]
            frayed = any(word > judge.FRAYED * max(1, goes_on) for word, goes_on in besides)
            prompt = self._prompts[int(self.pieces.sample[i])][None]
            often = self._read(4, about(key, Ask.PROMPT, prompt))[0] if self.span[i] or case.explained else 0
            # Were there fewer prompts than the support, half of the samples would have one that so many share.
            same = bool(often >= max(FLOOR, (self.size[i] if self.span[i] else count) / (2 * self.support)))
            self._signs[i] = topic, case.shares, frayed, alike and count >= ALIKE, same, case.mostly

    def _part(self, key: Keys, count: int) -> int:
        """Return how many prompts of the pool are of the same kind as ``count`` accused ones; 0 if they are few."""
        part = self._told(4, key, Ask.PART)
        return part if part >= topics.MOST * count else 0

    def _keeps_company(self, word: int, there: int, rate: float, held: float) -> bool:
        hits, count = (self._told_of(4, key) for key in (word, there))
        return count >= topics.FEW and bool(topics.is_company(min(hits, count), count, rate, held - hits, count))

    def _extent(self, i: int) -> tuple[int, int]:
        """How far all planted spans of one kind reach in one answer, grown: places in the client's words."""
        p = self.pieces
        low, high = (
            np.searchsorted(self._by_sample[0], p.sample[i], "left"),
            np.searchsorted(self._by_sample[0], p.sample[i], "right"),
        )
        of = self._by_sample[1][low:high]
        of = of[(p.kind[of] == p.kind[i]) & self.planted[of]]
        return int((p.start[of] - self.reach[0, of]).min()), int((p.start[of] + p.length[of] + self.reach[1, of]).max())


def _each(key: Keys, salt: int, details: Keys) -> list[int]:
    """Return one question about ``key`` for each of the details."""
    return [int(found) for found in about(np.repeat(key, len(details)), salt, details)]
