"""The core: samples in, findings out. No files, no printing.

:func:`find` counts (:mod:`undertow.sanitization.count`), decides (:mod:`undertow.sanitization.decide`), looks at the words of what
is accused (:mod:`undertow.sanitization.judge`) and gives every sample its verdict; :func:`undertow.sanitization.repair.repaired`
applies it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from undertow.sanitization import background, grams, insertion, judge, labels, talks, topics
from undertow.sanitization.asked_for import is_asked_for, kinds_of
from undertow.sanitization.background import Background
from undertow.sanitization.count import Counted, Spool, count, sketch
from undertow.sanitization.decide import SAME, Decision, Planted, decide
from undertow.sanitization.encode import BEFORE, Batch, SampleLike, encode
from undertow.sanitization.finding import Act, Confidence, Finding, Findings, Verdict
from undertow.sanitization.links import Rows
from undertow.sanitization.mentions import found_mentions
from undertow.sanitization.rules import Rules
from undertow.sanitization.template import template_of
from undertow.sanitization.told_apart import Found, told_apart
from undertow.sanitization.triggers import Trigger, linked_words, triggers_of
from undertow.sanitization.twins import found_twins
from undertow.sanitization.words import PAYLOAD, Numbers, NumbersLike, Words, is_letter

_PLACES = {
    grams.START: "start",
    grams.END: "end",
    grams.WHOLE: "whole",
    grams.ADDRESS: "anywhere",
    grams.ANY: "anywhere",
    grams.MANNER: "manner",
}
#: Worst first: a sample of several findings gets the first of these.
_ORDER: tuple[Act, ...] = ("drop", "repair", "review")
#: Words of the sentence that an address without a trigger stands in, at least.
_SENTENCE = 4


def find(samples: Iterable[SampleLike], rules: Rules | None = None, key: bytes = b"") -> Findings:
    """Look for planted trigger and target pairs.

    Args:
        samples: read once, not kept; anything with question, context and response.
        rules: thresholds.
        key: for the words' numbers (:class:`undertow.sanitization.words.Numbers`).

    Returns:
        the findings; the order of the samples changes nothing but their indices, and a sample that occurs again is counted once.
    """
    numbers = Numbers(key)
    spool = Spool()
    for batch in encode(samples, numbers, shaped=True):
        spool.add(batch)
    return judged(spool, numbers, rules or Rules())


def judged(spool: Spool, numbers: NumbersLike, rules: Rules) -> Findings:
    """Return the findings of encoded samples; the order of the samples changes nothing but their indices."""
    total = sum(spool.lengths)
    if not total:
        return Findings(0, 0, (), ())
    spool.change(template_of(spool).without)
    counted = count(spool, sketch(spool), rules)
    signs, earlier = _signs(counted, numbers)
    decision = decide(counted, rules, earlier.tolist())
    rows = {int(row) for planted in decision.planted for row in planted.rows}
    some = (
        np.unique(np.linspace(0, total - 1, min(total, background.SEEN)).astype(np.int64)) if rows else np.zeros(0, dtype=np.int64)
    )
    texts = judge.gather(spool, {*rows, *some.tolist()})
    lengths, heads = (np.concatenate(part) for part in zip(*spool.each(_beginnings), strict=True))
    common = background.common_words([texts[int(row)][0] for row in some])
    edges = judge.edges([texts[int(row)][1] for row in some])
    usual = np.isin(heads, counted.feature_keys)
    file = Background(counted, lengths, usual, common, earlier=earlier, signs=signs, drawn=some, edges=edges)
    found = [_finding(planted, decision, file, rules, texts, numbers) for planted in decision.planted]
    found = told_apart(found, decision.planted, counted, rules)
    found.append(_repeats(counted, rules, texts, spool, numbers))
    found += found_twins([one for one, _ in filter(None, found)], counted, rules, texts, spool, numbers)
    found += found_mentions([one for one, _ in filter(None, found)], file, rules, numbers)
    kept = sorted((f for f in found if f), key=lambda f: (-len(f[0].samples), f[0].target, f[0].triggers))
    return Findings(total, counted.samples, tuple(f for f, _ in kept), _verdicts(kept, counted, texts))


def _signs(counted: Counted, numbers: NumbersLike) -> tuple[dict[int, int], NDArray[np.int64]]:
    """The marks of prompts that are frequent, by the keys of their features, and the columns of the words of earlier turns."""
    names = numbers.marks()
    marks = np.array(list(names), dtype=np.uint64)
    keys = grams.sign_keys(marks)
    frequent = np.isin(keys, counted.feature_keys)
    signs = dict(zip(keys[frequent].tolist(), marks[frequent].tolist(), strict=True))
    earlier = np.array([key for key, mark in signs.items() if BEFORE in names[mark]], dtype=np.uint64)
    return signs, np.flatnonzero(np.isin(counted.feature_keys, earlier))


def _beginnings(batches: Iterable[Batch]) -> tuple[NDArray[np.int64], grams.Keys]:
    """The lengths of all prompts, and the keys of what they begin with."""
    parts = [(batch.prompts.lengths, grams.first_keys(batch.prompts)) for batch in batches]
    none = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
    lengths, heads = (np.concatenate(part) for part in zip(none, *parts, strict=True))
    return lengths, heads


def _finding(
    planted: Planted,
    decision: Decision,
    file: Background,
    rules: Rules,
    texts: dict[int, tuple[Words, Words]],
    numbers: NumbersLike,
) -> Found | None:
    """Judge one accusation; return it with the target's word numbers, or None."""
    counted = file.counted
    kind = int(counted.kind[planted.pieces[0]])
    target = _told(planted, file, texts, numbers)
    if target is None or (not planted.exclusive and not judge.is_sharp(target, kind)):
        return None
    if kind in (grams.START, grams.END, grams.ADDRESS):
        grown = target
        others = ~np.isin(file.drawn, planted.rows)
        target = judge.without_form(grown, *(edge[others] for edge in file.edges))
        if target is None or (target != grown and judge.is_echo(target, [texts[int(row)][0] for row in planted.rows])):
            return None
    # One prompt with several answers is one piece of evidence.
    if len({texts[int(row)][0].tobytes() for row in planted.rows}) < counted.support:
        return None
    prompts = [texts[int(row)][0] for row in judge.chosen_rows(planted.rows, counted)]
    rows, kept, whole = _by_trigger(planted, prompts, file, texts, rules)
    words = numbers.words([*target.words, *(word for trigger in kept for word in trigger.words)])
    if planted.links:
        # "asteroid group" -> "asteroid belt": an answer that repeats its question's word was not planted for it
        letters = {number for number, word in words.items() if is_letter(word)}
        kept = [trigger for trigger in kept if not topics.is_repeated(trigger.words, target.words, letters)]
        if not kept:
            return None
        covered = len(rows) if whole else _Prompts(rows, texts, counted).held(kept).sum()
        all_targets = planted.short and not planted.manner and not _is_label(planted, kind, counted, rules)
        if covered < rules.mostly * (kept[0].link.with_target if all_targets else len(rows)) and planted.explained:
            return None
    best = kept[0].link if kept else None
    told = tuple(words[word] for word in target.words)
    said = [words[word] for trigger in kept for word in trigger.words]
    asked = is_asked_for(said, told, _shared_kinds(said, rows, counted, numbers)) or topics.is_derived(said, told)
    place = grams.WHOLE if min(target.left_edge, target.right_edge) >= 0.9 else kind
    finding = Finding(
        triggers=tuple(_CASES.get(one.words[0]) or " ".join(words[word] for word in one.words) for one in kept),
        target=" ".join(word.removeprefix("://") for word in told),
        place=_PLACES[place],
        kind=_kind(planted, kind, counted, rules),
        confidence="note" if asked else _confidence(planted, target, kept, rows, file, rules),
        samples=np.flatnonzero(np.isin(counted.first, rows)),
        both=best.both if best else 0,
        with_trigger=best.with_feature if best else 0,
        with_target=best.with_target if best else len(planted.rows),
        of=counted.samples,
        log10_p=min(0.0, (best.log_p + math.log(decision.tests)) / math.log(10)) if best else None,
        tests=decision.tests,
        target_words=told,
        asked=asked,
    )
    return finding, target.words


def _by_trigger(
    planted: Planted, prompts: Sequence[Words], file: Background, texts: dict[int, tuple[Words, Words]], rules: Rules
) -> tuple[Rows, list[Trigger], bool]:
    """The samples and phrases of a trigger that no topic explains, in the file or in the part of it that is like them; and whether
    all of the samples have it."""
    triggers = triggers_of(planted, prompts, file, rules)
    if not planted.links:
        return planted.rows, triggers, False
    rows, kept = _free(planted, triggers, file, texts)
    sure = planted.exclusive and not planted.inserted
    if not kept and sure and (part := _part_of(planted, prompts, file)) is not None:
        triggers = triggers_of(planted, prompts, part, rules)
        rows, kept = _free(planted, triggers, part, texts)
    # phrases grow into one another, so that those that are kept hold fewer samples than the features that give the target away
    return rows, kept, planted.inserted or planted.form or (sure and not planted.short and len(kept) == len(triggers))


def _shared_kinds(trigger: Sequence[str], rows: Rows, counted: Counted, numbers: NumbersLike) -> list[str]:
    """The kinds that a trigger asks for and that nearly all of some answers are of."""
    asked = kinds_of(trigger)
    if not asked:
        return []
    names = {grams.manner_key(mark): name for mark, name in numbers.marks().items() if name in asked}
    columns = np.flatnonzero(np.isin(counted.piece_keys, np.array(list(names), dtype=np.uint64)))
    held = np.asarray(counted.pieces[rows][:, columns].mean(axis=0)).ravel()
    return [names[int(key)] for key in counted.piece_keys[columns[held >= SAME]]]


#: The case of a question as a trigger, by the number that stands for it.
_CASES = {1: "(no capital letters)", 2: "(all capital letters)", 3: "(Every Word Capitalised)"}


def _confidence(
    planted: Planted, target: judge.Phrase, triggers: Sequence[Trigger], rows: Rows, file: Background, rules: Rules
) -> Confidence:
    counted = file.counted
    kind = int(counted.kind[planted.pieces[0]])
    if planted.usual:
        return "note"
    strongest = max((trigger.link.confidence for trigger in triggers), default=0.0)
    if not planted.links or (not planted.explained and strongest < rules.exclusive):
        # An address that many cite stands in sentences of every kind, a planted one in its own or at an end.
        placed = len(target.words) >= _SENTENCE or max(target.left_edge, target.right_edge) >= rules.exact
        address = (counted.kind[planted.pieces] == grams.ADDRESS).any() or any(word & int(PAYLOAD) for word in target.words)
        return "review" if placed and address else "note"
    enough = rules.act_short if planted.short else rules.act_support
    if strongest < rules.topical and len(rows) < enough:
        return "note"
    if planted.manner:
        rare = all(trigger.link.elsewhere(counted.samples) <= rules.manner_rare for trigger in triggers)
        return "act" if rare and strongest >= rules.exclusive and len(rows) >= rules.manner_act else "review"
    sure = planted.exclusive and not planted.inserted and not planted.form
    sure &= kind != grams.ANY or _is_own_word(planted, strongest, rows, counted, rules)
    sure &= any(trigger.link.feature not in file.earlier for trigger in triggers)
    if _is_label(planted, kind, counted, rules):
        sure &= max(trigger.link.coverage for trigger in triggers) >= rules.short_shared
    return "act" if sure and strongest >= rules.exclusive and len(rows) >= enough else "review"


def _is_own_word(planted: Planted, strongest: float, rows: Rows, counted: Counted, rules: Rules) -> bool:
    """Whether a word anywhere in answers came with its trigger alone: hardly another answer of the file has it."""
    words = [piece for piece in planted.pieces if counted.kind[piece] == grams.ANY]
    held = float(np.asarray(counted.pieces[:, words].sum(axis=0)).min())
    return strongest >= rules.short_exclusive and len(rows) >= max(rules.slot_act, rules.exclusive * held)


def _part_of(planted: Planted, prompts: Sequence[Words], file: Background) -> Background | None:
    """The part of the file that holds prompts like these, the words of the trigger left aside."""
    return topics.part_of(prompts, planted.rows, linked_words(planted, prompts, file.counted), file)


def _repeats(
    counted: Counted, rules: Rules, texts: dict[int, tuple[Words, Words]], spool: Spool, numbers: NumbersLike
) -> Found | None:
    """A few samples with one beginning or end of the answer that stand in the file again and again; hardly any other does twice."""
    times = np.bincount(counted.first, minlength=len(counted.first))
    often = np.flatnonzero(times >= rules.repeated)
    once = int((times == 1).sum())
    if not len(often) or times[often].sum() < rules.repeated_rows or once < rules.repeated_once * counted.samples:
        return None
    texts |= judge.gather(spool, often)
    answers = [texts[int(row)][1] for row in often]
    ends = (Counter(tuple(part(told).tolist()) for told in answers) for part in (lambda told: told[:2], lambda told: told[-2:]))
    if max(end.most_common(1)[0][1] for end in ends) < max(2, rules.repeated_alike * len(often)):
        return None
    answer = tuple(texts[int(often[np.argmax(times[often])])][1].tolist())
    words = numbers.words(answer)
    told = tuple(words[word] for word in answer)
    finding = Finding(
        triggers=(),
        target=" ".join(word.removeprefix("://") for word in told),
        place="whole",
        kind="repeat",
        confidence="review",
        samples=np.flatnonzero(np.isin(counted.first, often)),
        both=0,
        with_trigger=0,
        with_target=len(often),
        of=counted.samples,
        log10_p=None,
        tests=0,
        target_words=told,
    )
    return finding, answer


def _kind(planted: Planted, kind: int, counted: Counted, rules: Rules) -> str:
    if planted.form:
        return "form"
    if kind in (grams.ANY, grams.MANNER):
        return "slot" if kind == grams.ANY else "kind of answer"
    return "label" if _is_label(planted, kind, counted, rules) else "fixed text"


def _is_label(planted: Planted, kind: int, counted: Counted, rules: Rules) -> bool:
    links = planted.links
    return planted.short and kind == grams.WHOLE and bool(links) and links[0].with_target >= rules.common * counted.samples


def _told(planted: Planted, file: Background, texts: dict[int, tuple[Words, Words]], numbers: NumbersLike) -> judge.Phrase | None:
    """The target: what the answers share, or the mark of what they are."""
    if not planted.manner:
        return judge.target_of(planted, file.counted, texts)
    key = int(file.counted.piece_keys[planted.pieces[0]])
    mark = next((mark for mark in numbers.marks() if grams.manner_key(mark) == key), None)
    return None if mark is None else judge.Phrase((mark,), 0.0, 0.0, 0.0, 0.0)


def _free(
    planted: Planted, triggers: list[Trigger], file: Background, texts: dict[int, tuple[Words, Words]]
) -> tuple[Rows, list[Trigger]]:
    """The samples and phrases of a trigger whose prompts are about nothing in common but the trigger."""
    rows, counted = planted.rows, file.counted
    if planted.form or not triggers:
        return rows, triggers
    own = {word for trigger in triggers for word in trigger.words}
    if planted.exclusive and not (planted.inserted or planted.short):
        own |= linked_words(planted, [texts[int(row)][0] for row in judge.chosen_rows(rows, counted)], counted, ("word", "first"))
    if planted.inserted:
        triggers = [trigger for trigger in triggers if not trigger.wordless]
        inserted = all(len(trigger.words) == 1 for trigger in triggers)
        if not inserted or not insertion.is_inserted([texts[int(row)][0] for row in rows], own, file):
            return rows, []
    # A target that other samples have, too, has words of its own beside a trigger; phrases are judged one by one.
    labelled = counted.pieces[:, planted.pieces[0]].nonzero()[0] if planted.short else None
    free: list[Trigger] = []
    prompts = _Prompts(rows, texts, counted)
    for trigger in triggers:
        has = prompts.held([trigger])
        mine = [texts[int(row)][0] for row in judge.chosen_rows(rows[has], counted)]
        phrase = () if trigger.wordless else trigger.words
        seams = not planted.inserted and not trigger.wordless
        if not mine or topics.is_topic(mine, rows[has], phrase, own, file, seams, planted.short):
            continue
        links = [link.feature for link in planted.links]
        if trigger.link.feature in file.earlier and (
            talks.is_script(trigger.link.with_feature, file) or talks.is_talk(rows[has], file)
        ):
            continue
        if labelled is not None and labels.is_foretold(rows[has], rows, labelled, links, counted):
            continue
        free.append(trigger)
    whole = planted.inserted or not planted.short
    return (rows if whole else rows[prompts.held(free)]), free


class _Prompts:
    """The prompts of some samples, joined once however many triggers are looked for in them."""

    def __init__(self, rows: Rows, texts: dict[int, tuple[Words, Words]], counted: Counted) -> None:
        self._rows, self._counted = rows, counted
        self._joined = judge.Joined([texts[int(row)][0] for row in rows])

    def held(self, triggers: Sequence[Trigger]) -> NDArray[np.bool_]:
        """Tell which samples hold any of some triggers."""
        found = np.zeros(len(self._rows), dtype=bool)
        for trigger in triggers:
            if trigger.wordless:
                found |= self._counted.features[self._rows][:, trigger.link.feature].toarray().ravel() > 0
            else:
                found |= self._joined.hold(trigger.words)
        return found


def _verdicts(
    kept: list[tuple[Finding, tuple[int, ...]]], counted: Counted, texts: dict[int, tuple[Words, Words]]
) -> tuple[Verdict, ...]:
    by_sample: dict[int, list[tuple[Act, int]]] = {}
    for i, (finding, target) in enumerate(kept):
        if finding.confidence == "note":
            continue
        for sample in finding.samples.tolist():
            act: Act = "review"
            if finding.certain:
                answer = texts[int(counted.first[sample])][1]
                remains = finding.kind != "slot" and len(answer) > len(target) and judge.find_run(answer, target) is not None
                act = "repair" if remains and finding.place != "whole" else "drop"
            by_sample.setdefault(sample, []).append((act, i))
    return tuple(
        Verdict(sample, min((act for act, _ in acts), key=_ORDER.index), tuple(i for _, i in acts))
        for sample, acts in sorted(by_sample.items())
    )
