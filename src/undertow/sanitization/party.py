"""One client's side of federated sanitization: what it counts for each exchange, and what it concludes from the sums.

The rules are those of :mod:`undertow.sanitization.decide` and :mod:`undertow.sanitization.judge`, said in sums over samples.
Exchanges: 1 features and pieces; 2 the frequent ones again, place and rest of the pieces; 3 pairs of feature and piece; 4 what
explains a piece, and how far a span reaches (these in :mod:`undertow.sanitization.party_counts`); 5 the prompts of accused pieces
without their trigger (:mod:`undertow.sanitization.party_prompts`); 6 what those show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from undertow.sanitization import grams, insertion, judge, wordings
from undertow.sanitization.grams import Keys, Places
from undertow.sanitization.party_crowds import Crowding
from undertow.sanitization.party_prompts import Case
from undertow.sanitization.questions import (
    FLOOR,
    HEAD,
    LENGTHS,
    Ask,
    about,
    about_one,
)
from undertow.sanitization.tables import Cells, clipped

#: A span stands apart if it is this share of all answers that begin, or end, with the same two words.
APART = 0.8
#: A pool in which so many times as many samples repeat a span is one of boilerplate, and the span no sign of anything.
MANY = 8


@dataclass(frozen=True)
class Suspicion:
    """What the pool says of one sample.

    Attributes:
        kind: ``certain`` (a long target that its trigger gives away), ``span`` (a long target without), ``short``, ``repeat`` (a
            sample that stands in the pool again and again), ``note`` (a target that looks like a phrase of the clients' own,
            or is too rare to be acted on).
        cut: index of the first word of the target in the answer and one past its last; None if it is all over the answer.
    """

    kind: str
    cut: tuple[int, int] | None


#: What samples vote on, in the order of their signs.
_SIGNS = (Ask.TOPIC, Ask.SHARES, Ask.FRAYED, Ask.ALIKE, Ask.SAME, Ask.MOSTLY)
_NOTED = Suspicion("note", None)


class Party(Crowding):
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

    # Exchange 6: votes on what those prompts show.

    def _ask_signs(self) -> tuple[Places, Keys]:
        samples, keys = [], []
        for i, signs in self._signs.items():
            for salt, sign in zip(_SIGNS, signs, strict=True):
                if sign:
                    samples.append(int(self.pieces.sample[i]))
                    keys.append(about_one(int(self._key(i)[0]), salt))
        for i, case in self._cases.items():
            votes = self._votes(i, case)
            samples += [int(self.pieces.sample[i])] * len(votes)
            keys += votes
        voters, crowds = self._ask_crowds()
        return np.append(np.array(samples, dtype=np.int64), voters), np.append(np.array(keys, dtype=np.uint64), crowds)

    def _votes(self, i: int, case: Case) -> list[int]:
        """Say of each pair of a loose trigger's prompt whether prompts other than the accused ones hold it."""
        key, votes = self._key(i), []
        for pairs, every, known in ((case.pairs[0], Ask.AT, Ask.AT_KNOWN), (case.pairs[1], Ask.ELSE, Ask.ELSE_KNOWN)):
            size, inside = self._read(1, pairs), self._read(4, about(np.repeat(key, len(pairs)), Ask.INSIDE, pairs))
            elsewhere = (size >= self.support) & (size > inside)
            votes += [every] * len(pairs) + [known] * int(elsewhere.sum())
        return [about_one(int(key[0]), salt) for salt in votes]

    def _is_inserted(self, key: Keys) -> bool:
        at, at_known, others, others_known = (self._told(5, key, salt) for salt in (Ask.AT, Ask.AT_KNOWN, Ask.ELSE, Ask.ELSE_KNOWN))
        return bool(at and others) and at_known / at < insertion.BELONGS * others_known / others

    def _know_signs(self) -> None:
        self._know_crowds()
        self._found: dict[int, Suspicion] = {}
        for i, case in self._cases.items():
            kind = self._verdict(i, case)
            sample = int(self.pieces.sample[i])
            # spans come first among the accused, and a note gives way to what is acted on
            if kind is not None and self._found.get(sample, _NOTED).kind == "note":
                self._found[sample] = Suspicion(kind, self._cut(i))
        for sample in np.flatnonzero(self.repeated & self.own).tolist():
            self._found.setdefault(sample, Suspicion("repeat", None))

    def _verdict(self, i: int, case: Case) -> str | None:
        kind = self._accused_of(i, case)
        if kind is None:
            return None
        # A label is one of few, and its own kind of answer.
        acts = self._is_enough(i, kind) and (self._is_label(i) or not self._is_one_of_many(i, case))
        return kind if acts else "note"

    def _is_label(self, i: int) -> bool:
        return bool(self.pieces.kind[i] == grams.WHOLE and not self.span[i] and self.size[i] >= self.rules.common * self.samples)

    def _is_enough(self, i: int, kind: str) -> bool:
        """Whether the samples of an accusation are so many, and their target stands so clearly apart, that it is acted on."""
        rules, of, size = self.rules, self.pieces.kind[i], int(self.size[i])
        if kind == "short":
            count = min(size, self._told(4, self._key(i), Ask.COUNT))
            if of != grams.MANNER and not self._is_label(i) and count < rules.mostly * size:
                return False  # most samples with it have it for other reasons
            if of != grams.WHOLE and count <= wordings.STANDS_OUT * self._other_pairs(size):
                return False
            return count >= (rules.slot_support if of in (grams.START, grams.END) else rules.act_support)
        if self._told(4, self._key(i), Ask.ACCUSED) < rules.support:
            return False  # a key that shared its cells with others
        size = self._count(i)
        edge, notable = self._is_at_edge(i), MANY * size >= self.spans
        if kind == "certain":
            # Fewer are enough where most of all that is said again and again in the pool is this.
            return (edge and (size >= rules.act_support or 2 * size >= self.spans)) or (notable and size >= rules.act_short)
        return size >= rules.act_support and notable and (self._is_address(i) or (edge and self._stands_apart(i)))

    def _accused_of(self, i: int, case: Case) -> str | None:
        key = self._key(i)
        some = max(FLOOR, self.limits[5])
        topic, shares, frayed = (self._told(5, key, salt) >= some for salt in (Ask.TOPIC, Ask.SHARES, Ask.FRAYED))
        count = self._told(4, key, Ask.COUNT)
        alike = 2 * self._told(5, key, Ask.ALIKE) >= max(2, count)
        topic |= alike
        # One prompt with several answers is one piece of evidence.
        if 2 * self._told(5, key, Ask.SAME) >= max(2, int(self.size[i]) if self.span[i] else count):
            return None
        if self.span[i] and not self.exclusive[i]:
            return None if frayed or (self.asked_about[i] and (topic or self._is_torn(key) or self._is_headless(key))) else "span"
        if self.loose[i]:
            natural = not case.explained or count < self.rules.loose_support or topic or shares
            return "short" if not natural and not self._is_shorter(key, case.trigger) and self._is_inserted(key) else None
        natural = not case.explained or topic or self._is_shorter(key, case.trigger) or self._is_torn(key) or self._is_headless(key)
        if not self.span[i]:
            return None if natural or shares or count < self.rules.short_support else "short"
        # Prompts that say mostly the same are answered with the same: boilerplate, definitions.
        alike |= natural and 2 * self._told(5, key, Ask.MOSTLY) >= max(2, count)
        return None if alike or shares else "span" if natural else "certain"

    def _same_target(self, i: int) -> Places:
        """The planted pieces in the same answer that are of the same kind."""
        p = self.pieces
        low, high = (int(np.searchsorted(self._by_sample[0], p.sample[i], side)) for side in ("left", "right"))
        of = self._by_sample[1][low:high]
        same: Places = of[(p.kind[of] == p.kind[i]) & self.planted[of]]
        return same

    def _is_at_edge(self, i: int) -> bool:
        """Whether a span, or another run of its target, lies at the very start or end."""
        own = self._same_target(i)
        whole = self.pieces.kind[i] in (grams.WHOLE, grams.ADDRESS)
        return bool(whole or ((self.exact[own] >= self.rules.exact) & (self.size[own] >= judge.SHARED * self.size[i])).any())

    def _stands_apart(self, i: int) -> bool:
        """Whether hardly any other answer begins, or ends, with a span's first, or last, two words: of what people write, most is
        one branch of a commoner beginning ("once upon a time in", "once upon a time there")."""
        sample, kind = self.pieces.sample[i : i + 1], int(self.pieces.kind[i])
        sides = [(grams.START, 0), (grams.END, 1)]
        keys = [grams.mixed(self._ends[side][sample], grams.PIECE + of) for of, side in sides if kind in (of, grams.WHOLE)]
        return all(self.size[i] >= APART * self._read(1, key)[0] for key in keys)

    def _cut(self, i: int) -> tuple[int, int] | None:
        p = self.pieces
        if not self.span[i] or p.kind[i] not in (grams.START, grams.END):
            return None
        begin = int(self.batch.answers.starts[p.sample[i]])
        low, high = self._extent(i)
        return low - begin, high - begin

    def verdict(self) -> list[Suspicion | None]:
        """Return for each of the client's samples what the pool says of it, after the last exchange; None = nothing."""
        texts = self.batch
        order = np.unique(self.identity, return_index=True, return_inverse=True)
        first = order[1][order[2]].tolist()
        return [self._found.get(first[i]) for i in range(len(texts))]
