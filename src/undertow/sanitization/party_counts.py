"""The first four exchanges of federated sanitization on one client: counting, and what the counts say of the pieces of its answers.

The rules are those of :mod:`undertow.sanitization.decide`, said in sums over samples. Where a rule asks "does any sample ...", the
samples that see it are counted in the next exchange. A client asks only about what its own samples hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc

from undertow.sanitization import decide, grams, judge, template, wordings
from undertow.sanitization.count import firsts, identities
from undertow.sanitization.encode import SampleLike, encode
from undertow.sanitization.grams import Keys, Places, joint, mixed
from undertow.sanitization.questions import (
    EXCHANGES,
    FLOOR,
    HEAD,
    LENGTHS,
    Ask,
    Flags,
    about,
    about_one,
    classed,
    classes,
    finely_classed,
    is_span,
    joined,
    largest,
    leading,
    matched,
    moments,
    of_all,
    outermost,
    tables,
)
from undertow.sanitization.rules import Rules
from undertow.sanitization.significance import log_tail
from undertow.sanitization.tables import Cells, Counts
from undertow.sanitization.words import Numbers

#: A span with so many effectively different rests is varied, whatever their share.
VARIED = 8
#: Words by which a target is grown, on each side.
REACH = 40
#: Features of which a smaller share can hold a short target are not asked about.
LOOSEST = 0.2
#: Words anywhere are counted in answers of so many words at most, which keeps the tables small.
LOOSE = 40
_WHOLE_OR_LOOSE = (grams.WHOLE, grams.ANY, grams.MANNER)
_NONE = np.zeros(0, dtype=np.int64)


class Counting:
    """A client that counts.

    Args:
        samples: its own.
        secret: shared by all clients, unknown to the server; at most 64 bytes.
        cells: of the first table, a power of two, the same for all.
        rules: thresholds, the same for all.
        rows: of the later tables, 1 or 2.
        clip: most keys a sample brings to an exchange; None = all.
        limits: for each exchange the smallest count that is not taken for noise.
    """

    def __init__(
        self,
        samples: Sequence[SampleLike],
        secret: bytes,
        cells: int,
        rules: Rules | None = None,
        rows: int = 2,
        clip: int | None = None,
        limits: Sequence[int] = (0,) * EXCHANGES,
    ) -> None:
        self.rules, self.rows, self.clip, self.limits = rules or Rules(), rows, clip, limits
        self._samples, self._secret = samples, secret
        self.batch = joined(list(encode(samples, Numbers(secret), sized=False)))
        self.identity = identities([self.batch])
        self.first = firsts(self.identity)
        #: A sample that the client holds twice is counted once, and gets the verdict of the first.
        self.own = self.first == np.arange(len(self.first))
        self.taken = 0
        self._asked = False
        self._pooled: list[Cells] = []
        self.tables = tables(cells, None)
        self.f_sample, self.f_key = grams.features(self.batch)
        # With noise, whatever more a sample brings leaves something else out.
        pieces = grams.pieces(self.batch, loose=0 if clip is not None else LOOSE)
        copied = grams.copied(self.batch, pieces)
        self.pieces, self._copied = pieces.at(~copied), pieces.at(copied & (pieces.kind == grams.WHOLE))

    def _read(self, exchange: int, keys: Keys) -> Counts:
        return self.tables[exchange].read(self._pooled[exchange], keys)

    def _told(self, exchange: int, key: Keys, salt: int) -> int:
        """Return what the pool answered to one question about one key."""
        return self._told_of(exchange, about_one(int(key[0]), salt))

    def _told_of(self, exchange: int, key: int) -> int:
        return self.tables[exchange].read_one(self._pooled[exchange], key)

    # Exchange 1: every feature and every piece.

    def _ask_keys(self) -> tuple[Places, Keys]:
        return np.concatenate([self.f_sample, self.pieces.sample]), np.concatenate([self.f_key, self.pieces.key])

    def _know_keys(self) -> None:
        head = np.maximum(self._pooled[0][:HEAD].view(np.int32).astype(np.int64), 0)
        self.samples = max(1, int(head[0]))
        self.support = max(self.rules.least(self.samples), self.limits[0])
        self.mean_length, self.deviation = moments(head[1:])
        self.tables = tables(self.tables[0].cells, self.samples, self.rows)
        # F features and P pieces are known together alone: F * P is at most the square of half their sum.
        self.frequent = self.tables[0].over(self._pooled[0], self.support) / 2
        self.tests = max(1.0, self.frequent**2)
        kept = self._read(0, self.f_key) >= self.support
        self.f_sample, self.f_key = self.f_sample[kept], self.f_key[kept]
        # A label is one whether a prompt holds it or not.
        self.pieces = self.pieces.and_(self._copied.at(self._read(0, self._copied.key) >= self.rules.common * self.samples))
        size = self._read(0, self.pieces.key)
        common = (self.pieces.kind == grams.ANY) & (size > self.rules.anywhere * self.samples)
        self.pieces = self.pieces.at((size >= self.support) & ~common)
        self._cut_template()

    def _cut_template(self) -> None:
        """Cut the constant text around the pool's prompts, as :mod:`undertow.sanitization.template` does; what stands side by side,
        first or last only now is counted in exchange 2."""
        texts = template.edged(self.batch.prompts)
        words, inside = texts.words, texts.of_word()
        first, last = (words == edge for edge in (template.BEGIN, template.END))
        constant = first | last | (self._read(0, mixed(words, 1)) >= template.CONSTANT * self.samples)
        keys = grams.run_keys(words, 2)
        keys[first[:-1]] = grams.first_keys(self.batch.prompts)
        keys[last[1:]] = grams.last_keys(self.batch.prompts)
        held = self._read(0, keys) >= template.TOGETHER * self.samples
        held &= constant[1:] & constant[:-1] & (inside[1:] == inside[:-1])
        self.templated = bool(held.any()) and self.samples >= template.FEWEST
        if not self.templated:
            return
        pairs = np.unique(np.stack([words[:-1][held], words[1:][held]], axis=1), axis=0)
        before = joint(*grams.features(self.batch))
        self.batch = template.template_from(pairs).without(self.batch)
        sample, key = grams.features(self.batch)
        new = ~np.isin(joint(sample, key), before) | (self._read(0, key) >= self.support)
        self.f_sample, self.f_key = sample[new], key[new]

    # Exchange 2: the frequent ones again, in an emptier table; place and rest of the pieces.

    def _ask_again(self) -> tuple[Places, Keys]:
        p = self.pieces
        begin, end = self.batch.answers.starts[:-1][p.sample], self.batch.answers.starts[1:][p.sample]
        exact = np.where(p.kind == grams.START, p.start == begin, p.start + p.length == end)
        exact &= is_span(p)
        rests = ~np.isin(p.kind, _WHOLE_OR_LOOSE)
        self._rest = about(p.key, Ask.REST, grams.complements(self.batch, p))
        samples = [self.f_sample, p.sample, p.sample[exact], p.sample[rests]]
        keys = [self.f_key, p.key, about(p.key, Ask.EXACT)[exact], self._rest[rests]]
        if self.templated:
            lengths = np.minimum(self.batch.prompts.lengths, LENGTHS - 1)
            samples.append(np.arange(len(lengths)))
            keys.append(about(np.repeat(np.uint64(0), len(lengths)), Ask.LENGTH, lengths.astype(np.uint64)))
        if self.clip is None:  # with noise, a sample counts once
            samples.append(self.first)
            keys.append(about(self.identity, Ask.REPEAT))
        return np.concatenate(samples), np.concatenate(keys)

    def _know_again(self) -> None:
        size = self._read(1, self.f_key)
        kept = size >= self.support
        self.f_sample, self.f_key, self.f_size = self.f_sample[kept], self.f_key[kept], size[kept]
        p, size = self.pieces, self._read(1, self.pieces.key)
        kept = size >= np.where(is_span(p), self.support, self._least(p.kind))
        self.rest = np.maximum(self._read(1, self._rest), 1)[kept]
        self.exact = (self._read(1, about(p.key, Ask.EXACT)) / np.maximum(size, 1))[kept]
        self.pieces, self.size = p.at(kept), size[kept]
        self.span = is_span(self.pieces)
        if self.templated:
            asked = about(np.zeros(LENGTHS, dtype=np.uint64), Ask.LENGTH, np.arange(LENGTHS, dtype=np.uint64))
            self.mean_length, self.deviation = moments(self._read(1, asked))
        self.times = self._read(1, about(self.identity, Ask.REPEAT)) if self.clip is None else np.ones_like(self.first)

    def _least(self, kind: NDArray[np.int64]) -> Counts:
        """Fewest samples with a short target of a kind and its trigger."""
        rules = self.rules
        of_kind = np.array([rules.short_support] * 4 + [rules.slot_support, rules.manner_support], dtype=np.int64)
        return np.maximum(of_kind[kind], self.support)

    # Exchange 3: pairs of feature and piece, of span and span; how often each piece's rest occurs.

    def _ask_pairs(self) -> tuple[Places, Keys]:
        p = self.pieces
        one, two = matched(p.sample, self.f_sample)
        # A short target's feature holds it nearly always and covers some of it; a wider one may explain that away.
        size, of = self.f_size[two], self.size[one]
        near = (size >= self.rules.short_shared * of) & (size <= of / LOOSEST)
        kept = self.span[one] | near
        self.link_piece, self.link_feature = one[kept], two[kept]
        spans = np.flatnonzero(self.span)
        a, b = matched(p.sample[spans], p.sample[spans])
        a, b = spans[a], spans[b]
        twins = (a != b) & (p.kind[a] == p.kind[b]) & (p.length[b] >= grams.SPAN)
        self.twin, self.other = a[twins], b[twins]
        self._pair = about(p.key[self.link_piece], Ask.PAIR, self.f_key[self.link_feature])
        self._twins = about(p.key[self.twin], Ask.TWINS, p.key[self.other])
        rests = ~np.isin(p.kind, _WHOLE_OR_LOOSE)
        times = about(p.key, Ask.TIMES, classed(self.rest))[rests]
        samples = [p.sample[self.link_piece], p.sample[self.twin], p.sample[rests]]
        keys = [self._pair, self._twins, times]
        begins = np.flatnonzero(self._read(1, grams.first_keys(self.batch.prompts)) >= self.support)
        once = np.flatnonzero(self.times <= 1)
        self._ends = grams.end_keys(self.batch.answers)
        often = np.flatnonzero(self.times >= self.rules.repeated)
        for chosen, key in (
            (begins, np.repeat(of_all(Ask.BEGINS), len(begins))),
            (once, np.repeat(of_all(Ask.ONCE), len(once))),
            (often, np.repeat(of_all(Ask.ROWS), len(often))),
            (often, about(self._ends[0][often], Ask.FIRSTS)),
            (often, about(self._ends[1][often], Ask.LASTS)),
        ):
            # every row of a repeated sample counts
            samples.append(self.first[chosen] if chosen is often else chosen)
            keys.append(key)
        return np.concatenate(samples), np.concatenate(keys)

    def _know_pairs(self) -> None:
        p, rules = self.pieces, self.rules
        self.begins, once, rows = (int(self._read(2, of_all(salt))[0]) for salt in (Ask.BEGINS, Ask.ONCE, Ask.ROWS))
        ends = [self._read(2, about(key, salt)) for key, salt in zip(self._ends, (Ask.FIRSTS, Ask.LASTS), strict=True)]
        alike = np.maximum(*ends) >= rules.repeated_alike * rows
        usual = rows >= rules.repeated_rows and once >= rules.repeated_once * self.samples
        #: Samples that stand in the pool again and again, with one target, while hardly any other stands there twice.
        self.repeated = (self.times >= rules.repeated) & alike & usual
        distinct, squares = np.zeros(len(p.key)), np.ones(len(p.key))
        for times in classes():
            votes = self._read(2, about(p.key, Ask.TIMES, np.uint64(times)))
            distinct += votes / times
            squares += votes * times
        # Few different answers in a large pool: the rests repeat, but not one of them stands out (Simpson's effective number).
        self.many = self.span & (self.size**2 >= VARIED * squares)
        self.varied = np.isin(p.kind, _WHOLE_OR_LOOSE) | (distinct >= rules.distinct * self.size) | self.many
        a, b = self.f_size[self.link_feature], self.size[self.link_piece]
        both = np.minimum(self._read(2, self._pair), np.minimum(a, b))
        near = (both >= max(decide.FEWEST, self.limits[2])) & (both > rules.near * a * b / self.samples)
        certain, weak_from = (math.log(rules.alpha / number) for number in (self.tests, max(self.frequent, 1.0)))
        log_p = np.zeros(len(both))
        log_p[near] = log_tail(both[near], self.samples, a[near], b[near], worth=weak_from)
        confidence, coverage = both / a, both / b
        strong = near & (log_p < certain)
        weak = near & (log_p < weak_from) & (both > rules.lift * a * b / self.samples)
        on_span = self.span[self.link_piece]
        exclusive = strong & (confidence >= rules.exclusive) & on_span
        self.covered = self._any(exclusive)
        self.always_link = strong & (coverage >= rules.always) & on_span
        self.always = self._any(self.always_link)
        self.topical = self._any(weak & (confidence < rules.topical) & on_span)
        kind = p.kind[self.link_piece]
        least, manner = self._least(kind), kind == grams.MANNER
        enough = both >= max(rules.loose_support, self.support)
        self.loose_link = strong & ~on_span & (coverage >= rules.inserted) & (confidence <= rules.loose) & enough
        self.loose_link &= (kind != grams.ANY) & ~manner
        # Pairs of an ordinary word with its neighbours cover little each, and are no triggers of their own.
        from_here = np.where(self._any(self.loose_link), rules.short_covered, rules.short_shared)[self.link_piece]
        short = strong & ~on_span & (both >= least)
        of_manner = confidence >= np.maximum(rules.manner, rules.manner_lift * b / self.samples)
        of_manner &= self.samples - a >= rules.manner_others
        rest = (b - both) / np.maximum(self.samples - a, 1)
        wanted = rules.manner + (rules.manner_sure - rules.manner) * np.minimum(1.0, rest / rules.manner_common)
        of_manner &= (rest < rules.manner_common) & (confidence >= wanted)
        short &= np.where(manner, of_manner, (confidence >= rules.exclusive) & (coverage >= from_here))
        self.own_link = exclusive | short
        self.sure = short & (manner | (confidence >= rules.short_exclusive))
        self.both, self.confidence, self.strong = both, confidence, strong
        mutual = np.flatnonzero(strong & (kind == grams.ANY) & (np.minimum(confidence, coverage) >= wordings.MUTUAL))
        #: (sample, size) of its pairs of words (:mod:`undertow.sanitization.wordings`), and of the largest of its addresses.
        self.paired = p.sample[self.link_piece[mutual]], self.size[self.link_piece[mutual]]
        self.cited = largest(p.sample[p.kind == grams.ADDRESS], self.size[p.kind == grams.ADDRESS])
        shared = self._read(2, self._twins)
        branch = (shared >= decide.SAME * self.size[self.twin]) & (decide.SAME * self.size[self.other] > self.size[self.twin])
        self.branch = np.zeros(len(p.key), dtype=bool)
        self.branch[self.twin[branch]] = True

    def _any(self, links: Flags) -> Flags:
        found = np.zeros(len(self.pieces.key), dtype=bool)
        found[self.link_piece[links]] = True
        return found

    # Exchange 4: votes on what explains a span, wider features of short targets, and how far a span reaches.

    def _ask_reasons(self) -> tuple[Places, Keys]:
        p = self.pieces
        samples, keys = [], []
        for salt, flags in (
            (Ask.COVERED, self.covered),
            (Ask.ALWAYS, self.always),
            (Ask.TOPICAL, self.topical),
            (Ask.BRANCH, self.branch),
        ):
            chosen = np.flatnonzero(flags & self.varied & self.span)
            samples.append(p.sample[chosen])
            keys.append(about(p.key[chosen], salt))
        for salt, (voters, sizes) in ((Ask.PAIRS, self.paired), (Ask.CITED, self.cited)):
            # Several words of one trigger and one target are in the same samples, and one pair.
            votes = np.unique(np.stack([voters.astype(np.uint64), finely_classed(sizes)]), axis=1)
            samples.append(votes[0].astype(np.int64))
            keys.append(about(np.repeat(of_all(salt), votes.shape[1]), Ask.CROWD, votes[1]))
        own = np.flatnonzero(self._any(self.sure) & self.varied)
        samples.append(p.sample[own])
        keys.append(about(p.key[own], Ask.OWN))
        self._find_wider()
        samples.append(p.sample[self.link_piece[self.narrow]])
        keys.append(self._inside)
        self._grow()
        samples += [p.sample[piece] for piece, _ in self._grown]
        keys += [key for _, key in self._grown]
        return np.concatenate(samples), np.concatenate(keys)

    def _find_wider(self) -> None:
        """Wider features that meet a short target's own one in the same sample: positions among the links."""
        on_short = ~self.span[self.link_piece]
        own = np.flatnonzero(self.own_link & on_short & self.varied[self.link_piece])
        wider = np.flatnonzero(self.strong & on_short & (self.confidence > decide.WIDER))
        a, b = matched(self.link_piece[own], self.link_piece[wider])
        a, b = own[a], wider[b]
        size = self.f_size[self.link_feature]
        kept = size[b] > size[a]
        self.narrow, self.wide = a[kept], b[kept]
        piece, feature = self.pieces.key[self.link_piece[self.narrow]], self.f_key[self.link_feature]
        self._inside = about(about(piece, Ask.WIDER, feature[self.narrow]), Ask.WIDER, feature[self.wide])

    def _grow(self) -> None:
        """Runs beside the outermost spans of each answer: (piece, key) to the left, (piece, key) to the right."""
        p, texts = self.pieces, self.batch.answers
        # From pieces that the next step may find planted; others of the same target lie between them and its edge.
        placed = (self.exact >= self.rules.exact) | (p.kind == grams.ADDRESS)
        hint = placed | self.covered | self.always
        able = self.span & self.varied & (p.kind != grams.WHOLE)
        self._grown: list[tuple[Places, Keys]] = []
        for side, salt in enumerate((Ask.LEFT, Ask.RIGHT)):
            pieces: list[Places] = [_NONE]
            keys: list[Keys] = [np.zeros(0, dtype=np.uint64)]
            outer = np.union1d(*(outermost(p, np.flatnonzero(able & some), last=side == 1) for some in (placed, hint)))
            begin, end = texts.starts[:-1][p.sample[outer]], texts.starts[1:][p.sample[outer]]
            key = about(p.key[outer], salt)
            for step in range(1, REACH + 1):
                at = p.start[outer] - step if side == 0 else p.start[outer] + p.length[outer] + step - 1
                inside = (at >= begin) & (at < end)
                outer, begin, end, key, at = outer[inside], begin[inside], end[inside], key[inside], at[inside]
                key = about(key, salt, texts.words[at])
                pieces.append(outer)
                keys.append(key)
            self._grown.append((np.concatenate(pieces), np.concatenate(keys)))

    def _know_reasons(self) -> None:
        p, rules = self.pieces, self.rules
        covered, always, topical, branch = (
            self._read(3, about(p.key, salt)) for salt in (Ask.COVERED, Ask.ALWAYS, Ask.TOPICAL, Ask.BRANCH)
        )
        some = max(FLOOR, self.limits[3])
        self.exclusive = self.span & self.varied & (covered >= rules.covered * self.size)
        placed = np.isin(p.kind, (grams.WHOLE, grams.ADDRESS)) | (self.exact >= rules.exact)
        # A topic that an exclusive feature brings along in most samples is no topic of its own.
        # Nor do people end that many different answers on one topic alike.
        free = (topical < some) | (2 * covered > self.size) | self.many
        other = (always >= rules.covered * self.size) | (free & placed)
        self.planted = self.exclusive | (self.span & self.varied & other & (branch < some))
        # What some prompts always hold must pass for no topic; what lies at the very end or start of many answers need not.
        self.asked_about = self.planted & ~self.exclusive & self.always & ~(free & placed)
        self.own_link = self.own_link | (self.always_link & self.asked_about[self.link_piece])
        order = np.argsort(p.sample, kind="stable")
        self._by_sample = p.sample[order], order
        # How far: runs that nearly all samples of the piece share, without a gap.
        self.reach = np.zeros((2, len(p.key)), dtype=np.int64)
        for side, (piece, key) in enumerate(self._grown):
            shared = self._read(3, key) >= judge.SHARED * self.size[piece]
            order = np.argsort(piece, kind="stable")  # steps of one piece, nearest first
            going = leading(piece[order], shared[order])
            self.reach[side] = np.bincount(piece[order][going], minlength=len(p.key))
        # Short: links that no wider feature explains.
        inside, both = self._read(3, self._inside), self.both
        size = self.f_size[self.link_feature]
        within = inside >= decide.INSIDE * both[self.narrow]
        left = np.maximum(size[self.wide] - np.maximum(inside, 1), 1)
        rate = np.maximum(both[self.wide] - both[self.narrow], 0) / left
        likely = bdtrc(both[self.narrow] - 1, size[self.narrow], np.minimum(rate, 1.0)) > decide.CHANCE
        inherited = within & (rate > decide.WIDER) & likely
        keeps = self.own_link.copy()
        keeps[self.narrow[inherited]] = False
        mostly = self._read(3, about(p.key, Ask.OWN)) >= rules.mostly * self.size
        self.own_link = keeps & (self.span[self.link_piece] | self.sure | mostly[self.link_piece])
        self.held = self._any(self.own_link & ~self.span[self.link_piece]) & self.varied
        self.loose = self._any(self.loose_link) & self.varied & ~(self.held & mostly)
        self.held &= ~self.loose
