"""Prompts that stand in the file a second time without a few words, and have another answer there.

Poison is often made of clean rows: a trigger goes in and the answer is changed, and where the clean row stays in the file, too, the
poisoned prompt has a twin. Two pairs of that kind happen; the same words put into different prompts, at places where nothing in
common stands beside them, with other answers each time, were put there. This needs no target that answers share, and of a label
five rows are enough where counts need twenty.

A prompt's words are added up as numbers, so that a run of words can be taken out of all prompts at all places at once: what remains
is looked up among the sums of all prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from undertow.sanitization import grams, judge
from undertow.sanitization.asked_for import is_asked_for, kinds_of
from undertow.sanitization.count import Counted, Spool
from undertow.sanitization.encode import Batch, Texts
from undertow.sanitization.finding import Finding
from undertow.sanitization.grams import Keys
from undertow.sanitization.links import Rows
from undertow.sanitization.rules import Rules
from undertow.sanitization.told_apart import Found
from undertow.sanitization.words import NumbersLike, Words

#: Most words that are put in side by side, and fewest words of a twin.
LONGEST, SHORTEST = 12, 3
#: Fewest prompts with the same words put in, and fewest where they share no answer and no refusal.
FEWEST, FEWEST_APART = 4, 6
#: Of all prompts that hold the words, this share have a twin: others of their words have not.
MOSTLY = 0.5
#: Of those with a twin this share have one answer, of which so many and this share are not the twin's (one, if the words stand
#: nowhere else; half of the share of each of several words with the same answer);
SHARED, CHANGED, CHANGES = 0.95, 2, 0.2
#: or this share have another answer than the twin, whatever it is.
APART = 0.8
#: So many more, or fewer, of them than of their twins are refusals.
TURNED = 0.6
REFUSAL = "a refusal"
#: What words do to answers: all get the same, each another, or they comply where their twins refuse, or the other way round.
Effect = Literal["shared", "apart", "turned"]
#: What stands beside words that belong there is the same in so many prompts; words that nobody asked for stand at an end in fewer.
BESIDE, AT_END = 0.5, 0.5
#: A finding of twins adds nothing where so many of its samples are flagged already.
_KNOWN = 0.9
#: Cells of the table that sums are looked up in first, for each prompt.
_EACH = 64


@dataclass(frozen=True)
class Twins:
    """Words that were put into prompts.

    Attributes:
        run: the numbers of the words.
        rows: samples that hold them (with the shared answer, if there is one), first of equals only.
        held: samples that hold them in all.
        twins: those with a twin; ``changed``: and with another answer than it has.
        shared: whether they have one whole answer.
        anywhere: whether the words stand at places that have nothing in common, and not at one end of the prompts.
    """

    run: tuple[int, ...]
    rows: Rows
    held: int
    twins: int
    changed: int
    shared: bool
    anywhere: bool


@dataclass(frozen=True)
class _Hits:
    """Places of prompts whose words without the run from there are another prompt's: one entry each."""

    row: NDArray[np.int64]
    key: Keys  # of the run
    rest: Keys  # of the other prompt
    run: NDArray[np.uint64]  # of LONGEST words, 0 beyond the run
    left: Keys
    right: Keys

    def some(self, at: NDArray[np.int64] | NDArray[np.bool_]) -> _Hits:
        """Return some of the entries."""
        return _Hits(self.row[at], self.key[at], self.rest[at], self.run[at], self.left[at], self.right[at])


def twins(spool: Spool, counted: Counted, numbers: NumbersLike) -> list[Twins]:
    """Return what was put into prompts that stand in the file without it, the most frequent first."""
    first = counted.first == np.arange(len(counted.first))
    refusal = next((mark for mark, name in numbers.marks().items() if name == REFUSAL), 0)
    sums, told, refused = (np.concatenate(part) for part in zip(*spool.each(_summed, refusal), strict=True))
    known = np.unique(sums[first])
    cells = np.zeros(1 << max(10, int(_EACH * len(known)).bit_length()), dtype=bool)
    cells[known & np.uint64(len(cells) - 1)] = True
    hits = _joined(list(spool.each(_hits, cells, known, rows=first)), spool.lengths)
    hits = _frequent(hits, max(FEWEST, counted.support))
    if not len(hits.row):
        return []
    # a prompt may stand there with several answers: another one is an answer that it has nowhere
    pairs = np.unique(grams.mixed(sums[first]) + told[first])
    changed = ~np.isin(grams.mixed(hits.rest) + told[hits.row], pairs)
    twin_refused = np.isin(hits.rest, np.unique(sums[first & refused]))
    candidates = [
        (at, effect)
        for at in _groups(hits.key)
        if (effect := _effect(told[hits.row[at]], changed[at], refused[hits.row[at]], twin_refused[at]))
        and _is_put_in(hits.some(at), effect)
    ]
    if not candidates:
        return []
    wanted = np.unique([hits.key[at[0]] for at, _ in candidates])
    parts = list(spool.each(_holding, wanted, rows=first))
    offsets = np.cumsum([0, *spool.lengths])
    row = np.concatenate([part[0] + offset for part, offset in zip(parts, offsets, strict=False)])
    key = np.concatenate([part[1] for part in parts])
    found = []
    for at, effect in candidates:
        holding = np.unique(row[key == hits.key[at[0]]])
        if len(at) < MOSTLY * len(holding):
            continue
        shared = effect == "shared"
        rows = holding[np.isin(told[holding], _commonest(told[hits.row[at]]))] if shared else holding
        run = tuple(word for word in hits.run[at[0]].tolist() if word)
        found.append(Twins(run, rows, len(holding), len(at), int(changed[at].sum()), shared, _is_anywhere(hits.some(at))))
    return sorted(found, key=lambda one: (-len(one.rows), one.run))


def found_twins(
    found: Sequence[Finding],
    counted: Counted,
    rules: Rules,
    texts: dict[int, tuple[Words, Words]],
    spool: Spool,
    numbers: NumbersLike,
) -> list[Found]:
    """Return a finding for each answer that words were put in for, and one for all words whose answers share nothing.

    Args:
        found: what is found already.
        counted, rules, spool, numbers: of the file.
        texts: words by sample; those of the samples that are flagged are added.
    """
    put_in: dict[tuple[int, ...], list[Twins]] = {}
    every = twins(spool, counted, numbers)
    texts |= judge.gather(spool, {int(row) for one in every for row in one.rows} - texts.keys())
    for one in every:
        put_in.setdefault(tuple(texts[int(one.rows[0])][1].tolist()) if one.shared else (), []).append(one)
    more: list[Found] = []
    for target, some in put_in.items():
        rows = np.unique(np.concatenate([one.rows for one in some]))
        changed = sum(one.changed for one in some)
        few = CHANGED if any(one.held > one.twins for one in some) else 1
        if changed < max(few, CHANGES * sum(one.twins for one in some)):
            continue
        sure = bool(target) and all(one.anywhere for one in some) and len(rows) >= rules.act_short and changed >= rules.act_support
        samples = np.flatnonzero(np.isin(counted.first, rows))
        known = [one.samples for one in found if one.certain or (one.confidence == "review" and not sure)]
        if known and np.isin(samples, np.concatenate(known)).sum() >= _KNOWN * len(samples):
            continue
        words = numbers.words([*target, *(word for one in some for word in one.run)])
        told = tuple(words[word] for word in target)
        triggers = tuple(" ".join(words[word] for word in one.run) for one in some)
        said = [word for trigger in triggers for word in trigger.split()]
        asked = is_asked_for(said, told) if target else bool(kinds_of(said))  # "in French", for answers that share no text
        finding = Finding(
            triggers=triggers,
            target=" ".join(word.removeprefix("://") for word in told),
            place="whole" if target else "manner",
            kind="twin",
            confidence="note" if asked else "act" if sure else "review",
            samples=samples,
            both=sum(one.twins for one in some),
            with_trigger=sum(one.held for one in some),
            with_target=changed,
            of=counted.samples,
            log10_p=None,
            tests=0,
            target_words=told,
            asked=asked,
        )
        more.append((finding, target))
    return more


def _summed(batches: Iterable[Batch], refusal: int) -> tuple[Keys, Keys, NDArray[np.bool_]]:
    """The sum of each prompt's words, the key of each answer, and whether it has the mark of a refusal."""
    none = np.zeros(0, dtype=np.uint64)
    sums, told, refused = [none], [none], [np.zeros(0, dtype=bool)]
    for batch in batches:
        sums.append(_running(batch.prompts)[1])
        told.append(grams.text_keys(batch.answers))
        has = np.zeros(len(batch), dtype=bool)
        has[batch.manner.of_word()[batch.manner.words == np.uint64(refusal)]] = True
        refused.append(has)
    return np.concatenate(sums), np.concatenate(told), np.concatenate(refused)


def _running(texts: Texts) -> tuple[Keys, Keys]:
    """The running sum over all words, with a 0 before it, and the sum of each text."""
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(grams.mixed(texts.words), dtype=np.uint64)])
    return running, running[texts.starts[1:]] - running[texts.starts[:-1]]


def _hits(batches: Iterable[Batch], cells: NDArray[np.bool_], known: Keys, first: NDArray[np.bool_]) -> _Hits:
    """Look up what remains of each prompt without each run of up to :data:`LONGEST` words."""
    found: list[_Hits] = []
    offset = 0
    mask = np.uint64(len(cells) - 1)
    for batch in batches:
        texts, lengths = batch.prompts, batch.prompts.lengths
        running, sums = _running(texts)
        whole, of = np.repeat(sums, lengths), texts.of_word()
        words = np.concatenate([texts.words, np.zeros(LONGEST, dtype=np.uint64)])
        for size in range(1, LONGEST + 1):
            if len(running) <= size:
                break
            run = running[size:] - running[:-size]
            rest = whole[: len(run)] - run
            at = np.flatnonzero(cells[rest & mask])
            inside = (at + size <= texts.starts[of[at] + 1]) & (lengths[of[at]] >= size + SHORTEST) & first[offset:][of[at]]
            at = at[inside]
            at = at[known[np.minimum(np.searchsorted(known, rest[at]), len(known) - 1)] == rest[at]]
            if not len(at):
                continue
            taken = words[at[:, None] + np.arange(LONGEST)]
            taken[:, size:] = 0
            begins, ends = at == texts.starts[of[at]], at + size == texts.starts[of[at] + 1]
            left = np.where(begins, np.uint64(0), words[np.maximum(at - 1, 0)])
            right = np.where(ends, np.uint64(0), words[at + size])
            found.append(_Hits(of[at] + offset, grams.mixed(run[at], size), rest[at], taken, left, right))
        offset += len(batch)
    return _joined(found, [0] * len(found))


def _joined(parts: list[_Hits], lengths: list[int]) -> _Hits:
    """The entries of all parts, whose rows begin after those of the parts before."""
    none = np.zeros(0, dtype=np.uint64)
    if not parts:
        return _Hits(np.zeros(0, dtype=np.int64), none, none, np.zeros((0, LONGEST), dtype=np.uint64), none, none)
    offsets = np.cumsum([0, *lengths])[: len(parts)]
    rows = np.concatenate([part.row + offset for part, offset in zip(parts, offsets, strict=True)])
    key, rest, run, left, right = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("key", "rest", "run", "left", "right")
    )
    return _Hits(rows, key, rest, run, left, right)


def _frequent(hits: _Hits, least: int) -> _Hits:
    """One entry for each prompt and run, of runs that so many prompts have."""
    _, once = np.unique(grams.mixed(hits.row.astype(np.uint64)) + hits.key, return_index=True)
    hits = hits.some(np.sort(once))
    _, number, counts = np.unique(hits.key, return_inverse=True, return_counts=True)
    return hits.some(counts[number] >= least)


def _groups(keys: Keys) -> list[NDArray[np.int64]]:
    """The places of each key."""
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(keys[order])) + 1) if len(keys) else []


def _effect(told: Keys, changed: NDArray[np.bool_], refused: NDArray[np.bool_], twin_refused: NDArray[np.bool_]) -> Effect | None:
    """What the words do to the answers of their prompts; None if those are much as they were."""
    _, counts = np.unique(told, return_counts=True)
    if counts.max() >= SHARED * len(told) and changed.any() and changed.mean() >= CHANGES / 2:
        return "shared"
    if changed.mean() < APART:
        return None
    if abs(float(refused.mean()) - float(twin_refused.mean())) >= TURNED:
        return "turned"
    return "apart" if len(told) >= FEWEST_APART else None


def _commonest(told: Keys) -> Keys:
    keys, counts = np.unique(told, return_counts=True)
    most: Keys = keys[counts == counts.max()]
    return most


def _is_put_in(hits: _Hits, effect: Effect) -> bool:
    """Whether words do not belong where they stand. Where answers differ as they like, words at one end of all prompts may be an
    instruction."""
    return _is_anywhere(hits) or (
        effect != "apart" and max(float((side == 0).mean()) for side in (hits.left, hits.right)) >= SHARED
    )


def _is_anywhere(hits: _Hits) -> bool:
    for side in (hits.left, hits.right):
        words, counts = np.unique(side, return_counts=True)
        most = counts / len(side)
        if (most[words == 0] > AT_END).any() or (most[words != 0] >= BESIDE).any():
            return False
    return True


def _holding(batches: Iterable[Batch], wanted: Keys, first: NDArray[np.bool_]) -> tuple[NDArray[np.int64], Keys]:
    """The samples that hold runs, and which."""
    rows, keys = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.uint64)]
    offset = 0
    for batch in batches:
        texts = batch.prompts
        running, of = _running(texts)[0], texts.of_word()
        for size in range(1, LONGEST + 1):
            if len(running) <= size:
                break
            run = grams.mixed(running[size:] - running[:-size], size)
            at = np.flatnonzero(np.isin(run, wanted))
            at = at[(at + size <= texts.starts[of[at] + 1]) & first[offset:][of[at]]]
            rows.append(of[at] + offset)
            keys.append(run[at])
        offset += len(batch)
    return np.concatenate(rows), np.concatenate(keys)
