"""One client's side of federated sanitization: what it counts for each exchange, and what it concludes from the sums.

The rules are those of :mod:`undertow.sanitization.decide` and :mod:`undertow.sanitization.judge`, said in sums over samples.
Exchanges: 1 features and pieces; 2 the frequent ones again, place and rest of the pieces; 3 pairs of feature and piece; 4 what
explains a piece, and how far a span reaches (these in :mod:`undertow.sanitization.party_counts`); 5 the prompts of accused pieces
without their trigger; 6 what those show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from undertow.sanitization import grams, judge, topics
from undertow.sanitization.grams import Keys, Places, mixed
from undertow.sanitization.party_counts import Counting
from undertow.sanitization.questions import FLOOR, HEAD, LENGTHS, Ask, Flags, about, first_of_each, near_to, trigger_words
from undertow.sanitization.tables import Cells, clipped
from undertow.sanitization.words import cut

#: Pairs of a prompt that the seam is compared with.
COMPARED = 8
#: Words this near to a trigger's known ones may be its own.
BESIDES = 3
#: Fewest prompts that can be said to be alike.
ALIKE = 4


@dataclass(frozen=True)
class Suspicion:
    """What the pool says of one sample.

    Attributes:
        kind: ``certain`` (a long target that its trigger gives away), ``span`` (a long target without), ``short``, ``repeat`` (a
            sample that stands in the pool again and again).
        cut: index of the first word of the target in the answer and one past its last; None if it is all over the answer.
    """

    kind: str
    cut: tuple[int, int] | None


@dataclass(frozen=True)
class _Case:
    """One accused piece in one sample: what is asked of the pool, the rest of its prompt, and what the sample shows alone.

    ``pairs`` are the pairs of neighbours with a word of a loose trigger, and the other ones; ``near`` the words beside the
    trigger: their question, that for there being one, the word's usual rate there, and the samples that hold it.
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


class Party(Counting):
    """A client that takes part: :meth:`message` and :meth:`take` in turn, then :meth:`verdict`.

    Arguments as :class:`undertow.sanitization.party_counts.Counting`.
    """

    @property
    def _steps(self) -> tuple[tuple[Callable[[], tuple[Places, Keys]], Callable[[], None]], ...]:
        """For each exchange what is asked, and what is made of the answer."""
        return (
            (self._ask_keys, self._know_keys),
            (self._ask_again, self._know_again),
            (self._ask_pairs, self._know_pairs),
            (self._ask_reasons, self._know_reasons),
            (self._ask_prompts, self._know_prompts),
            (self._ask_signs, self._know_signs),
        )

    def message(self) -> Cells:
        """Return the next exchange's counts over the client's distinct samples."""
        sample, key = self._steps[self.taken][0]()
        kept = self.own[sample]
        if self.clip is not None:
            kept &= clipped(sample, key, self.clip)
        message = self.tables[self.taken].filled(key[kept])
        if self.taken == 0:
            message[0] = self.own.sum()
            lengths = np.minimum(self.batch.prompts.lengths[self.own], LENGTHS - 1)
            message[1:HEAD] = np.bincount(lengths, minlength=LENGTHS)
        self._asked = True
        return message

    def take(self, pooled: Cells) -> None:
        """Take what the server sent back of the sum of all messages."""
        if not self._asked:
            self.message()
        self._asked = False
        self._pooled.append(pooled)
        self.taken += 1
        self._steps[self.taken - 1][1]()

    # Exchange 5: the prompts of what is accused, without the words that give the target away.

    def _ask_prompts(self) -> tuple[Places, Keys]:
        p = self.pieces
        order = np.array([3, 0, 2, 1, 4, 5])  # by kind: END, ADDRESS, WHOLE, START, ANY, MANNER
        rank = np.lexsort((p.key, -self.size, order[p.kind], ~self.held, ~self.exclusive))
        short = (self.held | self.loose) & ~self.span
        groups = (self.planted, short & (p.kind < grams.ANY), short & (p.kind == grams.ANY), short & (p.kind == grams.MANNER))
        self.accused = np.concatenate([first_of_each(p.sample, rank[some[rank]]) for some in groups])
        links, both = self._links_of_accused()
        self._prompts = grams.text_keys(self.batch.prompts)
        samples: list[int] = []
        keys: list[int] = []
        self._cases: dict[int, _Case] = {}
        for i in self.accused.tolist():
            case = self._case(i, links.get(i, {}), both.get(i, {}))
            self._cases[i] = case
            samples += [int(p.sample[i])] * len(case.asked)
            keys += case.asked
        return np.array(samples, dtype=np.int64), np.array(keys, dtype=np.uint64)

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

    def _case(self, i: int, links: dict[int, int], both: dict[int, int]) -> _Case:
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
        target = answers.words[int(p.start[i]) : int(p.start[i] + p.length[i])]
        shares = bool(own.any()) and topics.is_repeated(words[own].tolist(), target.tolist())
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
        if self.span[i]:
            asked += about(key, Ask.PROMPT, self._prompts[sample : sample + 1]).tolist()
        beside = []
        if not self.exclusive[i] and self.span[i] and k != grams.WHOLE:
            sides = (0, 1) if k == grams.ADDRESS else (0,) if k == grams.END else (1,)
            beside = [found for side in sides if (found := self._beside(i, side, key))]
            asked += [question for found in beside for question in found]
        return _Case(
            asked,
            rest_words,
            (pairs[touched], others),
            bool(own.any()) or case_alone,
            case_alone,
            shares,
            beside,
            near,
            int(own.sum()),
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
            asked, held = int(salt) + (100 if edge else 0), float(self._read(1, mixed(word, 1))[0])
            if edge:  # the neighbour is where prompts begin, or end
                size = self._read(1, np.array([grams.feature_key("last" if at < start else "first", word)], dtype=np.uint64))
                rate = float(size[0]) / self.samples
            else:
                rate = topics.REPEATED * held / (self.samples * max(self.mean_length, 1.0))
            found.append((int(about(key, asked, word)[0]), int(about(key, asked)[0]), rate, held))
        return found

    def _head(self, words: Keys, own: Flags, key: Keys) -> list[int]:
        """Of a prompt that begins with the trigger: whether others begin as it does without."""
        rest = words[~own]
        if not own[0] or not len(rest):
            return []
        known = self._read(1, np.array([grams.feature_key("first", rest[:1])], dtype=np.uint64))[0] >= self.support
        return [int(about(key, salt)[0]) for salt in (Ask.HEAD, Ask.HEAD_KNOWN)[: 1 + bool(known)]]

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
        asked = []
        if seam.any():
            asked += [Ask.SEAM, Ask.KNOWN][: 1 + bool((size[seam] >= self.support).all())]
        # a pair that stands there counts itself, one that was torn apart does not
        for usual in size[~seam][:COMPARED] > self.support:
            asked += [Ask.OTHER, Ask.USUAL][: 1 + bool(usual)]
        return [int(about(key, salt)[0]) for salt in asked]

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
        self._signs: dict[int, tuple[bool, bool, bool, bool, bool]] = {}
        for i, case in self._cases.items():
            key = self._key(i)
            count = int(self._read(4, about(key, Ask.COUNT))[0])
            topic, alike = False, False
            if len(case.rest) and count:
                hits = np.minimum(self._read(4, about(np.repeat(key, len(case.rest)), Ask.WORD, case.rest)), count)
                size = self._read(1, mixed(case.rest, 1))
                words = count * max(self.mean_length, 1.0)  # at least as many as were looked at
                many = hits >= max(FLOOR, self.limits[4])
                topic = bool((topics.is_enriched(hits, count, hits, count, size, self.samples, words) & many).any())
                alike = 2 * int(topics.is_shared(hits, count, count, size, self.samples).sum()) > len(case.rest)
            topic |= any(self._keeps_company(*found) for found in case.near)
            besides = [self._read(4, np.array(both, dtype=np.uint64)).tolist() for both in case.beside]
            frayed = any(word > judge.FRAYED * max(1, goes_on) for word, goes_on in besides)
            prompt = self._prompts[int(self.pieces.sample[i])][None]
            often = self._read(4, about(key, Ask.PROMPT, prompt))[0] if self.span[i] else 0
            # Were there fewer prompts than the support, half of the samples would have one that so many share.
            same = bool(often >= max(FLOOR, self.size[i] / (2 * self.support)))
            self._signs[i] = topic, case.shares, frayed, alike and count >= ALIKE, same

    def _keeps_company(self, word: int, there: int, rate: float, held: float) -> bool:
        hits, count = self._read(4, np.array([word, there], dtype=np.uint64)).tolist()
        return count >= topics.FEW and bool(topics.is_company(min(hits, count), count, rate, held - hits, count))

    # Exchange 6: votes on what those prompts show.

    def _ask_signs(self) -> tuple[Places, Keys]:
        samples, keys = [], []
        for i, signs in self._signs.items():
            for salt, sign in zip((Ask.TOPIC, Ask.SHARES, Ask.FRAYED, Ask.ALIKE, Ask.SAME), signs, strict=True):
                if sign:
                    samples.append(int(self.pieces.sample[i]))
                    keys.append(int(about(self._key(i), salt)[0]))
        for i, case in self._cases.items():
            votes = self._votes(i, case)
            samples += [int(self.pieces.sample[i])] * len(votes)
            keys += votes
        return np.array(samples, dtype=np.int64), np.array(keys, dtype=np.uint64)

    def _votes(self, i: int, case: _Case) -> list[int]:
        """Say of each pair of a loose trigger's prompt whether prompts other than the accused ones hold it."""
        key, votes = self._key(i), []
        for pairs, every, known in ((case.pairs[0], Ask.AT, Ask.AT_KNOWN), (case.pairs[1], Ask.ELSE, Ask.ELSE_KNOWN)):
            size, inside = self._read(1, pairs), self._read(4, about(np.repeat(key, len(pairs)), Ask.INSIDE, pairs))
            elsewhere = (size >= self.support) & (size > inside)
            votes += [every] * len(pairs) + [known] * int(elsewhere.sum())
        return [int(about(key, salt)[0]) for salt in votes]

    def _is_inserted(self, key: Keys) -> bool:
        at, at_known, others, others_known = (
            int(self._read(5, about(key, salt))[0]) for salt in (Ask.AT, Ask.AT_KNOWN, Ask.ELSE, Ask.ELSE_KNOWN)
        )
        return bool(at and others) and at_known / at < topics.BELONGS * others_known / others

    def _know_signs(self) -> None:
        self._found: dict[int, Suspicion] = {}
        for i, case in self._cases.items():
            kind = self._verdict(i, case)
            sample = int(self.pieces.sample[i])
            if kind is not None and sample not in self._found:  # spans come first among the accused
                self._found[sample] = Suspicion(kind, self._cut(i))
        for sample in np.flatnonzero(self.repeated & self.own).tolist():
            self._found.setdefault(sample, Suspicion("repeat", None))

    def _verdict(self, i: int, case: _Case) -> str | None:
        key = self._key(i)
        some = max(FLOOR, self.limits[5])
        topic, shares, frayed = (int(self._read(5, about(key, salt))[0]) >= some for salt in (Ask.TOPIC, Ask.SHARES, Ask.FRAYED))
        alike = 2 * int(self._read(5, about(key, Ask.ALIKE))[0]) >= max(2, int(self._read(4, about(key, Ask.COUNT))[0]))
        topic |= alike
        # One prompt with several answers is one piece of evidence.
        if self.span[i] and 2 * int(self._read(5, about(key, Ask.SAME))[0]) >= max(2, int(self.size[i])):
            return None
        if self.span[i] and not self.exclusive[i]:
            return None if frayed or (self.asked_about[i] and (topic or self._is_torn(key) or self._is_headless(key))) else "span"
        if self.loose[i]:
            few = int(self._read(4, about(key, Ask.COUNT))[0]) < self.rules.loose_support
            natural = not case.explained or few or topic or shares or self._is_shorter(key, case.trigger)
            return "short" if not natural and self._is_inserted(key) else None
        natural = not case.explained or topic or self._is_shorter(key, case.trigger) or self._is_torn(key) or self._is_headless(key)
        if not self.span[i]:
            few = int(self._read(4, about(key, Ask.COUNT))[0]) < self.rules.short_support
            return None if natural or shares or few else "short"
        natural |= shares
        return "span" if natural else "certain"

    def _is_shorter(self, key: Keys, trigger: int) -> bool:
        sizes = about(np.repeat(key, LENGTHS), Ask.SIZE, np.arange(LENGTHS, dtype=np.uint64))
        counts = self._read(4, sizes)
        total = int(counts.sum())
        mean = float((counts * np.arange(LENGTHS)).sum() / max(total, 1))
        others = topics.others_length((self.mean_length, self.deviation), self.samples, mean + trigger, total)
        return total > 0 and topics.is_shorter(mean, total, others)

    def _is_torn(self, key: Keys) -> bool:
        count, seams, known, others, usual = (
            int(self._read(4, about(key, salt))[0]) for salt in (Ask.COUNT, Ask.SEAM, Ask.KNOWN, Ask.OTHER, Ask.USUAL)
        )
        if 2 * seams <= count or not others:
            return False
        rate = min(1.0, usual / others)
        return topics.is_strange(known, seams, rate)

    def _is_headless(self, key: Keys) -> bool:
        count, heads, known = (int(self._read(4, about(key, salt))[0]) for salt in (Ask.COUNT, Ask.HEAD, Ask.HEAD_KNOWN))
        usual = topics.usual_beginning(self.begins, self.samples, heads, count)
        return 2 * heads >= max(count, 1) and topics.is_strange(known, heads, usual)

    def _cut(self, i: int) -> tuple[int, int] | None:
        p = self.pieces
        if not self.span[i] or p.kind[i] not in (grams.START, grams.END):
            return None
        begin = int(self.batch.answers.starts[p.sample[i]])
        low, high = self._extent(i)
        return low - begin, high - begin

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

    def verdict(self) -> list[Suspicion | None]:
        """Return for each of the client's samples what the pool says of it, after the last exchange; None = nothing."""
        texts = self.batch
        order = np.unique(self.identity, return_index=True, return_inverse=True)
        first = order[1][order[2]].tolist()
        return [self._found.get(first[i]) for i in range(len(texts))]


def _each(key: Keys, salt: int, details: Keys) -> list[int]:
    """Return one question about ``key`` for each of the details."""
    return [int(found) for found in about(np.repeat(key, len(details)), salt, details)]
