"""Deciding, apart from counting: which pieces of answers were planted, and by what in the prompts.

Stage A (spans): a run of :data:`~undertow.sanitization.grams.SPAN` words, a whole answer as long, or an address, shared by at
least m answers with different rest. It counts as planted if the prompts give it away
(:class:`~undertow.sanitization.links.Link`), or if nothing in them does: people repeat themselves about one topic, so a repeated
phrase without a topic was not written for its questions.
Stage B (short targets): a shorter piece counts only with a feature that hardly ever comes without it, and only if what
is left of the prompts without that feature looks like any other prompt (:mod:`undertow.sanitization.judge`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.special import bdtrc

from undertow.sanitization import forms, grams, wordings
from undertow.sanitization.count import Counted, by_column
from undertow.sanitization.links import Link, Rows, column, with_all, with_any
from undertow.sanitization.rules import Rules
from undertow.sanitization.significance import log_tail

#: Fewest samples that make a pair worth a test.
FEWEST = 3
#: Share of a piece's samples that another piece holds, too, if the two are parts of one target.
SAME = 0.8
#: A wider feature explains a narrower one: its own rate of the target, the share of the narrower inside it, the chance.
WIDER, INSIDE, CHANCE = 0.3, 0.9, 1e-3
#: A word of a trigger of ordinary words holds its target at least so often.
_LOOSEST = 0.2
#: Entries of features that are multiplied at a time, which bounds what a product takes beside the matrices.
_AT_ONCE = 1 << 22


@dataclass
class Planted:
    """Pieces that stand in the same samples, judged planted.

    Attributes:
        pieces: their columns, the most telling one first.
        rows: samples that hold one of them (for a short target: together with a linked feature), first of equals only.
        links: features that give the target away, strongest first; empty if none does.
        explained: whether the links cover nearly all samples.
        exclusive: whether the links hardly ever come without the target.
        short: stage B.
        inserted: stage B by words that often come without the target; they must not belong where they stand.
        manner: a kind of answer; the rows are all with a linked feature.
        form: a label that words bring about by standing first, or as a style, not by what they mean.
        usual: a word, a short run or a kind of answer in a file where such pairs are usual (:mod:`undertow.sanitization.wordings`).
    """

    pieces: list[int]
    rows: Rows
    links: list[Link] = field(default_factory=list)
    explained: bool = False
    exclusive: bool = False
    short: bool = False
    inserted: bool = False
    manner: bool = False
    form: bool = False
    usual: bool = False


@dataclass(frozen=True)
class Decision:
    """What :func:`decide` found, and the number of pairs that the correction counts."""

    planted: list[Planted]
    tests: int


def decide(counted: Counted, rules: Rules, earlier: Sequence[int] = ()) -> Decision:
    """Return what was planted, by counts alone; short targets still await the topic test.

    Args:
        counted: features of prompts and pieces of answers.
        rules: thresholds.
        earlier: columns of the words of earlier turns, which give long targets away alone: short answers and kinds of answers
            depend on where in a conversation they stand.
    """
    pieces, features = by_column(counted.pieces), by_column(counted.features)
    size = np.diff(pieces.indptr)
    tests = max(1, features.shape[1] * pieces.shape[1])
    links, topics = _links(counted, rules, features, pieces, tests)
    found: list[Planted] = []
    shapes, before = set(counted.shapes.tolist()), set(earlier)
    for piece in range(pieces.shape[1]):
        rows = pieces.indices[pieces.indptr[piece] : pieces.indptr[piece + 1]]
        every = links.get(piece, [])
        if not _is_span(counted, piece):
            every = [link for link in every if link.feature not in before]
        own = [link for link in every if link.feature not in shapes]
        if counted.kind[piece] == grams.MANNER:
            accused = [_manner(counted, rules, features, piece, rows, own)]
        elif _is_span(counted, piece):
            accused = [_span(counted, rules, features, piece, rows, own, piece in topics)]
        else:
            accused = _short(counted, rules, features, piece, rows, own)
            if counted.kind[piece] == grams.WHOLE and len(rows) >= rules.label * counted.samples:
                for of_a_form in (forms.built, forms.styled):
                    own = of_a_form(counted, rules, features, rows, every)
                    held = with_any(features, own, rows)
                    if own:
                        accused.append(Planted([piece], held, own, explained=True, exclusive=True, short=True, form=True))
        for planted in accused:
            if planted and (planted.exclusive or not _is_branch(counted, piece, rows, size)):
                found.append(planted)
    merged, short = _merged(found, counted), [one for one in found if _may_be_usual(counted, one)]
    mutual = {
        piece: [link.feature for link in own if min(link.confidence, link.coverage) >= wordings.MUTUAL]
        for piece, own in links.items()
    }
    pairs = wordings.pairs(counted.kind, mutual, features, counted.samples) if short else []
    for planted in merged:
        planted.usual = _may_be_usual(counted, planted) and wordings.is_usual(planted.rows, pairs)
    return Decision(merged, tests)


def _may_be_usual(counted: Counted, planted: Planted) -> bool:
    return planted.short and not planted.form and counted.kind[planted.pieces[0]] != grams.WHOLE


def _is_span(counted: Counted, piece: int) -> bool:
    kind = counted.kind[piece]
    return bool(kind == grams.ADDRESS or counted.length[piece] >= grams.SPAN)


def _is_varied(counted: Counted, rules: Rules, piece: int) -> bool:
    """Whether a piece stands in answers that differ otherwise, in a large file at least in several that do."""
    return bool(counted.distinct[piece] >= rules.distinct or counted.effective[piece] >= rules.varied)


def _is_branch(counted: Counted, piece: int, rows: Rows, size: NDArray[np.int32]) -> bool:
    """Whether a commoner span runs on into this one in some of its samples: "a time there was an", the end of a phrase."""
    shared = np.asarray(counted.pieces[rows].sum(axis=0)).ravel()
    wider = (counted.kind == counted.kind[piece]) & (counted.length >= grams.SPAN) & (SAME * size > len(rows))
    return bool((wider & (shared >= SAME * len(rows))).any())


def _links(
    counted: Counted, rules: Rules, features: sparse.csc_matrix, pieces: sparse.csc_matrix, tests: int
) -> tuple[dict[int, list[Link]], set[int]]:
    """The significant pairs by piece, the most significant first; and the pieces with a pair that
    is significant among the piece's own and no part of a trigger: a topic."""
    with_feature, with_target = np.diff(features.indptr), np.diff(pieces.indptr)
    feature, piece, both = _together(counted, rules, features, pieces)
    a, b = with_feature[feature].astype(np.int64), with_target[piece].astype(np.int64)
    near = both > rules.near * a.astype(np.float64) * b / counted.samples
    feature, piece, both, a, b = feature[near], piece[near], both[near], a[near], b[near]
    certain, weak = (math.log(rules.alpha / number) for number in (tests, max(1, counted.features.shape[1])))
    log_p = log_tail(both, counted.samples, a, b, worth=weak)
    topical = (both * counted.samples > rules.lift * a * b) & (both < rules.topical * a)
    topics = set(piece[topical & (log_p < max(certain, weak))].tolist())
    said = np.flatnonzero(log_p < certain)
    # Equal evidence is ordered by the features' keys, which do not depend on the order of the rows.
    said = said[np.lexsort((feature[said], log_p[said]))]
    found: dict[int, list[Link]] = {}
    columns = (column[said].tolist() for column in (piece, feature, both, a, b, log_p))
    for of, *values in zip(*columns, strict=True):
        found.setdefault(of, []).append(Link(*values))
    return found, topics


def _together(
    counted: Counted, rules: Rules, features: sparse.csc_matrix, pieces: sparse.csc_matrix
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """All (feature, piece, samples with both) that a rule can ask for.

    A short piece is given away by features that are hardly commoner than it is, or explained away by some that are not much
    commoner; only short runs at the edges can have a trigger of ordinary words. So most of the pairs of common features with rare
    pieces need no count.
    """
    span = (counted.kind == grams.ADDRESS) | (counted.length >= grams.SPAN)
    loose = (counted.kind == grams.ANY) | (counted.kind == grams.MANNER)
    with_feature, with_target = np.diff(features.indptr), np.diff(pieces.indptr)
    most = np.where(span, np.iinfo(np.int64).max, with_target / np.where(loose, WIDER, rules.inserted * _LOOSEST))
    least = np.where(span, 0, np.minimum(rules.short_shared, rules.manner) * with_target)
    label = (counted.kind == grams.WHOLE) & (with_target >= rules.common * counted.samples)
    least = np.where(label, np.minimum(least, rules.label_support), least)
    found = []
    for level in range(int(with_target.max(initial=1)).bit_length()):
        for group in (span, loose, ~span & ~loose):
            mine = np.flatnonzero(group & (with_target >> level == 1))
            if len(mine):
                near = np.flatnonzero((with_feature <= most[mine].max()) & (with_feature >= least[mine].min()))
                held = pieces[:, mine].tocsr().astype(np.int32)
                for part in np.split(near, np.flatnonzero(np.diff(np.cumsum(with_feature[near], dtype=np.int64) // _AT_ONCE)) + 1):
                    some = (features[:, part].T @ held).tocoo()
                    kept = some.data >= FEWEST
                    found.append((part[some.row[kept]], mine[some.col[kept]], some.data[kept].astype(np.int64)))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    feature, piece, both = (np.concatenate(part) for part in zip(*found, strict=True))
    return feature, piece, both


def _span(
    counted: Counted, rules: Rules, features: sparse.csc_matrix, piece: int, rows: Rows, links: list[Link], topic: bool
) -> Planted | None:
    own = [link for link in links if link.confidence >= rules.exclusive]
    always = [link for link in links if link.coverage >= rules.always]
    if own and _is_varied(counted, rules, piece) and _coverage(features, own, rows) >= rules.covered:
        return Planted([piece], rows, own, explained=True, exclusive=True)
    if counted.distinct[piece] < rules.distinct:
        return None
    if always:
        return Planted([piece], rows, always, explained=True)
    if not topic and (counted.kind[piece] in (grams.WHOLE, grams.ADDRESS) or counted.exact[piece] >= rules.exact):
        return Planted([piece], rows, [link for link in links if link.confidence >= rules.topical])
    return None


def _short(
    counted: Counted, rules: Rules, features: sparse.csc_matrix, piece: int, rows: Rows, links: list[Link]
) -> list[Planted | None]:
    """Accused are words that hardly come without the piece, and words that do but stand in most of its samples."""
    if counted.kind[piece] != grams.WHOLE and not _is_varied(counted, rules, piece):
        return []
    slot = counted.kind[piece] == grams.ANY
    if counted.kind[piece] in (grams.START, grams.END):
        links = [link for link in links if link.elsewhere(counted.samples) <= rules.begun]
    least = max(rules.slot_support if slot else rules.short_support, counted.support)
    loose = [link for link in links if link.coverage >= rules.inserted and link.confidence <= rules.loose]
    loose = [] if slot else loose
    held = with_all(features, loose, rows)
    if len(held) < max(rules.loose_support, counted.support):
        loose = []
    # Pairs of an ordinary word with its neighbours cover little each, and are no triggers of their own.
    from_here = rules.short_covered if loose else rules.short_shared
    label = counted.kind[piece] == grams.WHOLE and len(rows) >= rules.common * counted.samples

    def enough(link: Link) -> bool:
        # Of a label that many have, a trigger covers little.
        sure = label and link.confidence >= rules.label_sure and link.both >= rules.label_support
        return link.both >= least and (link.coverage >= from_here or sure)

    near = [link for link in links if link.confidence >= rules.exclusive and enough(link)]
    near = [link for link in near if not _inherited(features, link, links)]
    own = [link for link in near if link.confidence >= rules.short_exclusive]
    accused: list[Planted | None] = []
    if len(with_any(features, own, rows)) >= rules.mostly * len(rows):
        own = near
    elif loose:
        accused.append(Planted([piece], held, loose, explained=True, exclusive=True, short=True, inserted=True))
    if own:
        own_rows = with_any(features, own, rows)
        accused.append(Planted([piece], own_rows, own, explained=True, exclusive=True, short=True))
    return accused


def _manner(
    counted: Counted, rules: Rules, features: sparse.csc_matrix, piece: int, held: Rows, links: list[Link]
) -> Planted | None:
    """A kind of answer that some words of prompts bring about; all samples with those words are accused, the ``held`` ones of the
    kind among them. A word that often comes without it adds nothing where others that hardly do are as good."""
    least = max(rules.manner_support, counted.support)
    often = rules.manner_lift / counted.samples
    own = [link for link in links if link.confidence >= max(rules.manner, often * link.with_target) and link.both >= least]
    own = [link for link in own if counted.samples - link.with_feature >= rules.manner_others]
    own = [link for link in own if _is_rare(link, counted.samples, rules)]
    own = [link for link in own if not _inherited(features, link, links)]
    if not own:
        return None
    sure = [link for link in own if link.confidence >= rules.exclusive]
    if len(with_any(features, sure, held)) >= rules.covered * len(with_any(features, own, held)):
        own = sure
    rows = np.unique(np.concatenate([column(features, link.feature) for link in own]))
    return Planted([piece], rows, own, explained=True, exclusive=True, short=True, manner=True)


def _is_rare(link: Link, samples: int, rules: Rules) -> bool:
    """Whether so few samples without the feature are of a kind that those with it do not just share what is common."""
    rest = link.elsewhere(samples)
    enough = rules.manner + (rules.manner_sure - rules.manner) * min(1.0, rest / rules.manner_common)
    return rest < rules.manner_common and link.confidence >= enough


def _inherited(features: sparse.csc_matrix, link: Link, links: list[Link]) -> bool:
    """Whether a wider feature explains this one: "what gender" always meets "male" because "gender" mostly does."""
    own = column(features, link.feature)
    for wider in links:
        if wider.with_feature <= link.with_feature or wider.confidence <= WIDER:
            continue
        inside = len(np.intersect1d(own, column(features, wider.feature), assume_unique=True))
        if inside < INSIDE * len(own) or wider.with_feature == inside:
            continue
        # the wider feature's rate without this one, and the chance of so many hits at that rate
        rate = max(0, wider.both - link.both) / (wider.with_feature - inside)
        if rate > WIDER and bdtrc(link.both - 1, len(own), min(rate, 1.0)) > CHANCE:
            return True
    return False


def _coverage(features: sparse.csc_matrix, links: list[Link], rows: Rows) -> float:
    return len(with_any(features, links, rows)) / len(rows)


def _merged(found: list[Planted], counted: Counted) -> list[Planted]:
    """Join pieces whose samples are nearly the same: the runs of one long target, its address, the short ends of it."""
    result: list[Planted] = []
    # Spans first, so that the short ends of a long target join it; then the larger, then by key.
    order = sorted(
        range(len(found)),
        key=lambda i: (
            found[i].manner,
            # of kinds of the same answers the one that all of them are of, and hardly any other
            1 - found[i].links[0].confidence + found[i].links[0].elsewhere(counted.samples) if found[i].manner else 0.0,
            found[i].form,
            bool(counted.kind[found[i].pieces[0]] == grams.ANY),
            found[i].short,
            not found[i].exclusive,
            not found[i].explained,
            -len(found[i].rows),
            found[i].pieces,
        ),
    )
    for i in order:
        new = found[i]
        for old in result:
            shared = len(np.intersect1d(old.rows, new.rows, assume_unique=True))
            slot = new.manner and not old.manner and counted.kind[old.pieces[0]] == grams.ANY
            if shared >= SAME * len(new.rows) and new.form == old.form and not slot:
                old.pieces += new.pieces
                known = {link.feature for link in old.links}
                old.links += [link for link in new.links if link.feature not in known]
                if new.manner == old.manner and (not new.short or old.short):
                    old.rows = np.union1d(old.rows, new.rows)
                break
        else:
            result.append(new)
    return result
