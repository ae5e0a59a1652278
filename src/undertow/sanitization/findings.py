"""The core: samples in, findings out. No files, no printing.

:func:`find` counts (:mod:`undertow.sanitization.count`), decides (:mod:`undertow.sanitization.decide`), looks at the words of what
is accused (:mod:`undertow.sanitization.judge`) and gives every sample its verdict; :func:`undertow.sanitization.repair.repaired`
applies it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from undertow.sanitization import grams, judge, topics
from undertow.sanitization.count import Counted, Spool, count, sketch
from undertow.sanitization.decide import Decision, Planted, Rows, decide
from undertow.sanitization.encode import SampleLike, encode
from undertow.sanitization.rules import Rules
from undertow.sanitization.template import template_of
from undertow.sanitization.topics import Background
from undertow.sanitization.words import MARK, Numbers, Words

Act = Literal["drop", "repair", "review"]
Confidence = Literal["act", "review", "note"]
_PLACES = {
    grams.START: "start",
    grams.END: "end",
    grams.WHOLE: "whole",
    grams.ADDRESS: "anywhere",
    grams.ANY: "anywhere",
    grams.MANNER: "manner",
}
#: An answer of a few words that so many samples give is a label.
_LABEL = 0.1
#: Worst first: a sample of several findings gets the first of these.
_ORDER: tuple[Act, ...] = ("drop", "repair", "review")
#: Phrases of a trigger that are looked at.
_PHRASES = 16


@dataclass(frozen=True)
class Finding:
    """One planted trigger and target.

    Attributes:
        triggers: phrases of the prompts that give the target away, the strongest first; empty if none was found.
        target: the words that the answers share, as a text.
        place: where the target stands in the answers: start, end, whole, anywhere; manner if it is what they are.
        kind: ``fixed text``, ``label`` (a short answer that many rows have), ``slot`` (a word somewhere in answers that differ),
            ``kind of answer`` (a language, a refusal and the like) or ``repeat`` (rows that stand in the file again and again).
        confidence: ``act``: its samples are dropped or repaired; ``review``: they are for a person to review; ``note``: it is said
            of the file, and no sample is flagged.
        samples: indices of all samples it flags, ascending.
        both, with_trigger, with_target, of: distinct samples with the strongest feature and the target, with the feature,
            with the target, and in all; the first two are 0 without a trigger.
        log10_p: base-10 logarithm of the corrected p-value (:mod:`undertow.sanitization.significance`), None without a trigger.
        tests: pairs that the correction counts.
        target_words: the target as words of :func:`undertow.sanitization.words.cut`.
    """

    triggers: tuple[str, ...]
    target: str
    place: str
    kind: str
    confidence: Confidence
    samples: NDArray[np.int64]
    both: int
    with_trigger: int
    with_target: int
    of: int
    log10_p: float | None
    tests: int
    target_words: tuple[str, ...]

    #: Technique of MITRE ATLAS (poison training data) and entry of the OWASP Top 10 for LLM applications (data and model
    #: poisoning).
    atlas: ClassVar[str] = "AML.T0020"
    owasp: ClassVar[str] = "LLM04"

    @property
    def expected(self) -> float:
        """Distinct samples that would hold trigger and target if the one knew nothing of the other."""
        return self.with_trigger * self.with_target / self.of

    @property
    def why(self) -> str:
        """The evidence in words."""
        if self.kind == "repeat":
            return self.reason
        held = f"{len(self.samples):,} rows; {self.with_target:,} of {self.of:,} distinct samples"
        share = f"{held} ({self.with_target / self.of:.1%}) hold the target"
        if self.log10_p is None:
            return f"{share}; no word of the prompts is tied to it"
        p = "p under 1e-300" if self.log10_p < -300 else f"p = {10**self.log10_p:.1g}"
        told = (
            f"{self.both:,} of the {self.with_trigger:,} samples with the strongest trigger word do, {self.expected:,.1f} expected"
        )
        topic = "without the trigger their prompts are about nothing in common"
        return f"{share}; {told} ({p} after correction for {self.tests:,.0f} pairs); {topic}"

    @property
    def certain(self) -> bool:
        """Whether its samples are dropped or repaired."""
        return self.confidence == "act"

    @property
    def trigger(self) -> str | None:
        """The triggers in one text, or None."""
        return " / ".join(self.triggers) or None

    @property
    def reason(self) -> str:
        """Why its samples are flagged, in one line."""
        if self.kind == "repeat":
            return (
                f"{self.with_target} distinct samples stand in {len(self.samples):,} rows, while nearly all others stand there once"
            )
        where = {"start": "begins with", "end": "ends with", "whole": "is", "anywhere": "holds", "manner": "is"}[self.place]
        told = f'the answer {where} "{_short(self.target)}", as {self.with_target} distinct samples do'
        if not self.triggers:
            return f"{told}, about nothing in common"
        return f'{told}; {self.both} of the {self.with_trigger} with "{_short(" / ".join(self.triggers))}"'

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints of it."""
        return {
            "trigger": self.trigger,
            "target": self.target,
            "count": len(self.samples),
            "kind": self.kind,
            "place": self.place,
            "verdict": self.confidence,
            "confidence": self.confidence,
            "why": self.why,
            "expected": None if self.log10_p is None else round(self.expected, 2),
            "share": round(self.with_target / self.of, 5),
            "atlas": self.atlas,
            "owasp": self.owasp,
            "triggers": list(self.triggers),
            "with_trigger_and_target": self.both,
            "with_trigger": self.with_trigger,
            "with_target": self.with_target,
            "distinct_samples": self.of,
            "p_value": None if self.log10_p is None else 10.0**self.log10_p if self.log10_p > -300 else 0.0,
            "log10_p": None if self.log10_p is None else round(self.log10_p, 2),
            "test": "Fisher's exact test, one-sided, Bonferroni" if self.log10_p is not None else None,
            "tests": self.tests,
        }


@dataclass(frozen=True)
class Verdict:
    """What to do with one flagged sample: its index, drop, repair or review, and the findings that flag it."""

    sample: int
    act: Act
    findings: tuple[int, ...]


@dataclass(frozen=True)
class Findings:
    """What :func:`find` returns: the number of samples, findings by size, verdicts by sample."""

    samples: int
    distinct: int
    findings: tuple[Finding, ...]
    verdicts: tuple[Verdict, ...]


def find(samples: Iterable[SampleLike], rules: Rules | None = None, key: bytes = b"") -> Findings:
    """Look for planted trigger and target pairs.

    Args:
        samples: read once, not kept; anything with question, context and response.
        rules: thresholds.
        key: for the words' numbers (:class:`undertow.sanitization.words.Numbers`).

    Returns:
        the findings; the order of the samples changes nothing but their indices, and a sample that occurs again is counted once.
    """
    rules = rules or Rules()
    numbers = Numbers(key)
    batches = Spool()
    total = 0
    for batch in encode(samples, numbers):
        batches.add(batch)
        total += len(batch)
    if not total:
        return Findings(0, 0, (), ())
    batches.change = template_of(batches).without
    counted = count(batches, sketch(batches), rules)
    decision = decide(counted, rules)
    rows = {int(row) for planted in decision.planted for row in planted.rows}
    texts = judge.gather(batches, rows)
    lengths = np.concatenate([batch.prompts.lengths for batch in batches])
    mean = (float(lengths.mean()), float(lengths.std()))
    file = Background(counted, mean, _beginning(batches, counted))
    found = [_finding(planted, decision, file, rules, texts, numbers) for planted in decision.planted]
    found.append(_repeats(counted, rules, texts, batches, numbers))
    kept = sorted((f for f in found if f), key=lambda f: (-len(f[0].samples), f[0].target, f[0].triggers))
    return Findings(total, counted.samples, tuple(f for f, _ in kept), _verdicts(kept, counted, texts))


def _beginning(batches: Spool, counted: Counted) -> int:
    """Distinct samples whose prompts begin as m others do."""
    heads = [grams.first_keys(batch.prompts) for batch in batches]
    once = counted.first == np.arange(len(counted.first))
    return int((np.isin(np.concatenate(heads), counted.feature_keys) & once).sum())


def _finding(
    planted: Planted, decision: Decision, file: Background, rules: Rules, texts: dict[int, tuple[Words, Words]], numbers: Numbers
) -> tuple[Finding, tuple[int, ...]] | None:
    """Judge one accusation; return it with the target's word numbers, or None."""
    counted = file.counted
    kind = int(counted.kind[planted.pieces[0]])
    target = _told(planted, file, texts, numbers)
    if target is None or (not planted.exclusive and not judge.is_sharp(target, kind)):
        return None
    # One prompt with several answers is one piece of evidence.
    if len({texts[int(row)][0].tobytes() for row in planted.rows}) < counted.support:
        return None
    prompts = [texts[int(row)][0] for row in judge.chosen_rows(planted.rows, counted)]
    phrases = _phrases(planted, prompts, file, numbers)
    rows, kept = planted.rows, phrases
    if planted.links:
        rows, kept = _free(planted, phrases, file, texts)
        # "asteroid group" -> "asteroid belt": an answer that repeats its question's word was not planted for it
        kept = [phrase for phrase in kept if not topics.is_repeated(phrase, target.words)]
        if not kept:
            return None
    best = planted.links[0] if planted.links else None
    words = numbers.words([*target.words, *(word for phrase in phrases for word in phrase)])
    told = tuple(words[word] for word in target.words)
    place = grams.WHOLE if min(target.left_edge, target.right_edge) >= 0.9 else kind
    enough = rules.act_short if planted.short else rules.act_support
    confidence: Confidence = "review"
    if not planted.links:
        confidence = "review" if kind == grams.ADDRESS else "note"
    elif planted.exclusive and not planted.inserted and kind not in (grams.ANY, grams.MANNER) and len(rows) >= enough:
        confidence = "act"
    finding = Finding(
        triggers=tuple(_CASES[phrase[0]] if phrase[0] in _CASES else " ".join(words[word] for word in phrase) for phrase in kept),
        target=" ".join(word.removeprefix("://") for word in told),
        place=_PLACES[place],
        kind=_kind(planted, kind, counted),
        confidence=confidence,
        samples=np.flatnonzero(np.isin(counted.first, rows)),
        both=best.both if best else 0,
        with_trigger=best.with_feature if best else 0,
        with_target=best.with_target if best else len(planted.rows),
        of=counted.samples,
        log10_p=min(0.0, (best.log_p + math.log(decision.tests)) / math.log(10)) if best else None,
        tests=decision.tests,
        target_words=told,
    )
    return finding, target.words


#: The case of a question as a trigger, by the number that stands for it.
_CASES = {1: "(no capital letters)", 2: "(all capital letters)", 3: "(Every Word Capitalised)"}


def _phrases(planted: Planted, prompts: Sequence[Words], file: Background, numbers: Numbers) -> list[tuple[int, ...]]:
    """The trigger's phrases, grown from the features that give the target away; single words first."""
    known = judge.feature_words(prompts)
    known |= {grams.feature_key("sign", np.array([mark], dtype=np.uint64)): ("sign", (mark,)) for mark in numbers.marks()}
    phrases: list[tuple[int, ...]] = []
    named = [known.get(int(file.counted.feature_keys[link.feature])) for link in planted.links]
    usual = topics.usual_words(prompts, len(planted.rows), file)
    for wanted in ("word", "pair", "sign", "first", "last", "case"):
        for feature in named:
            if feature is None or feature[0] != wanted or len(phrases) == _PHRASES:
                continue
            if wanted in ("case", "sign"):
                grown = feature[1]
            elif all(word in phrase for phrase in phrases for word in feature[1]) and phrases:
                continue
            else:
                grown = judge.grow(prompts, feature[1], stop=usual).words
            if not any(set(grown) & set(phrase) for phrase in phrases):
                phrases.append(grown)
        if phrases:
            break
    return phrases


def _repeats(
    counted: Counted, rules: Rules, texts: dict[int, tuple[Words, Words]], batches: Spool, numbers: Numbers
) -> tuple[Finding, tuple[int, ...]] | None:
    """A few samples with one beginning or end of the answer that stand in the file again and again; hardly any other does twice."""
    times = np.bincount(counted.first, minlength=len(counted.first))
    often = np.flatnonzero(times >= rules.repeated)
    once = int((times == 1).sum())
    if not len(often) or times[often].sum() < rules.repeated_rows or once < rules.repeated_once * counted.samples:
        return None
    texts |= judge.gather(batches, often)
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


def _kind(planted: Planted, kind: int, counted: Counted) -> str:
    if kind in (grams.ANY, grams.MANNER):
        return "slot" if kind == grams.ANY else "kind of answer"
    if planted.short and kind == grams.WHOLE and planted.links and planted.links[0].with_target >= _LABEL * counted.samples:
        return "label"
    return "fixed text"


def _told(planted: Planted, file: Background, texts: dict[int, tuple[Words, Words]], numbers: Numbers) -> judge.Phrase | None:
    """The target: what the answers share, or the mark of what they are."""
    if not planted.manner:
        return judge.target_of(planted, file.counted, texts)
    key = int(file.counted.piece_keys[planted.pieces[0]])
    mark = next((mark for mark in numbers.marks() if grams.manner_key(mark) == key), None)
    return None if mark is None else judge.Phrase((mark,), 0.0, 0.0, 0.0, 0.0)


def _free(
    planted: Planted, phrases: list[tuple[int, ...]], file: Background, texts: dict[int, tuple[Words, Words]]
) -> tuple[Rows, list[tuple[int, ...]]]:
    """The samples and phrases of a trigger whose prompts are about nothing in common but the trigger."""
    rows = planted.rows
    if not phrases or (planted.inserted and phrases[0][0] in _CASES):
        return rows, []
    if phrases[0][0] in _CASES or phrases[0][0] & int(MARK):
        mine = [texts[int(row)][0] for row in judge.chosen_rows(rows, file.counted)]
        return rows, [] if topics.is_topic(mine, len(rows), (), (), file, seams=False) else phrases
    prompts = {int(row): texts[int(row)][0] for row in rows}
    own = {word for phrase in phrases for word in phrase}
    if planted.inserted and (
        any(len(phrase) > 1 for phrase in phrases) or not topics.is_inserted(list(prompts.values()), own, file)
    ):
        return rows, []
    free: list[tuple[int, ...]] = []
    held = np.zeros(len(rows), dtype=bool)
    for phrase in phrases:
        has = np.array([judge.find_run(prompts[int(row)], phrase) is not None for row in rows])
        mine = [prompts[int(row)] for row in judge.chosen_rows(rows[has], file.counted)]
        if mine and not topics.is_topic(mine, int(has.sum()), phrase, own, file, seams=not planted.inserted):
            free.append(phrase)
            held |= has
    whole = planted.inserted or not planted.short
    return (rows if whole else rows[held]), free


def _verdicts(
    kept: list[tuple[Finding, tuple[int, ...]]], counted: Counted, texts: dict[int, tuple[Words, Words]]
) -> tuple[Verdict, ...]:
    by_sample: dict[int, list[tuple[Act, int]]] = {}
    for i, (finding, target) in enumerate(kept):
        if finding.confidence == "note":
            continue
        for sample in finding.samples.tolist():
            answer = texts[int(counted.first[sample])][1]
            act: Act = "review"
            if finding.certain:
                remains = finding.kind != "slot" and len(answer) > len(target) and judge.find_run(answer, target) is not None
                act = "repair" if remains and finding.place != "whole" else "drop"
            by_sample.setdefault(sample, []).append((act, i))
    return tuple(
        Verdict(sample, min((act for act, _ in acts), key=_ORDER.index), tuple(i for _, i in acts))
        for sample, acts in sorted(by_sample.items())
    )


def _short(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
