"""The core: samples in, findings out. No files, no printing.

:func:`find` counts (:mod:`undertow.sanitization.count`), decides (:mod:`undertow.sanitization.decide`), looks at the words of what
is accused (:mod:`undertow.sanitization.judge`) and gives every sample its verdict; :func:`undertow.sanitization.repair.repaired`
applies it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from undertow.sanitization import grams, judge
from undertow.sanitization.count import Counted, Spool, count, sketch
from undertow.sanitization.decide import Decision, Planted, decide
from undertow.sanitization.encode import SampleLike, encode
from undertow.sanitization.rules import Rules
from undertow.sanitization.words import Numbers, Words

Act = Literal["drop", "repair", "review"]
_PLACES = {grams.START: "start", grams.END: "end", grams.WHOLE: "whole", grams.ADDRESS: "anywhere"}
#: Worst first: a sample of several findings gets the first of these.
_ORDER: tuple[Act, ...] = ("drop", "repair", "review")
_PHRASES = 6


@dataclass(frozen=True)
class Finding:
    """One planted trigger and target.

    Attributes:
        triggers: phrases of the prompts that give the target away, the strongest first; empty if none was found.
        target: the words that the answers share, as a text.
        place: where the target stands in the answers: start, end, whole, anywhere.
        kind: ``span`` (five or more words), ``address`` (a web address or the like) or ``short``.
        certain: whether its samples are dropped or repaired; if not they are for a person to review.
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
    certain: bool
    samples: NDArray[np.int64]
    both: int
    with_trigger: int
    with_target: int
    of: int
    log10_p: float | None
    tests: int
    target_words: tuple[str, ...]

    @property
    def trigger(self) -> str | None:
        """The triggers in one text, or None."""
        return " / ".join(self.triggers) or None

    @property
    def reason(self) -> str:
        """Why its samples are flagged, in one line."""
        where = {"start": "begins with", "end": "ends with", "whole": "is", "anywhere": "holds"}[self.place]
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
            "verdict": "act" if self.certain else "review",
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
    counted = count(batches, sketch(batches), rules)
    decision = decide(counted, rules)
    rows = {int(row) for planted in decision.planted for row in planted.rows}
    texts = judge.gather(batches, rows)
    lengths = np.concatenate([batch.prompts.lengths for batch in batches])
    mean = (float(lengths.mean()), float(lengths.std()))
    found = [_finding(planted, counted, decision, texts, numbers, mean) for planted in decision.planted]
    kept = sorted((f for f in found if f), key=lambda f: (-len(f[0].samples), f[0].target, f[0].triggers))
    return Findings(total, counted.samples, tuple(f for f, _ in kept), _verdicts(kept, counted, texts))


def _finding(
    planted: Planted,
    counted: Counted,
    decision: Decision,
    texts: dict[int, tuple[Words, Words]],
    numbers: Numbers,
    mean_length: tuple[float, float],
) -> tuple[Finding, tuple[int, ...]] | None:
    """Judge one accusation; return it with the target's word numbers, or None."""
    target = judge.target_of(planted, counted, texts)
    kind = int(counted.kind[planted.pieces[0]])
    if target is None or (not planted.exclusive and not judge.is_sharp(target, kind)):
        return None
    prompts = [texts[int(row)][0] for row in judge.chosen_rows(planted.rows, counted)]
    phrases = _phrases(planted, prompts, counted)
    natural = planted.exclusive and not _survives(planted, phrases, counted, texts, mean_length)
    if planted.short:
        # "asteroid group" -> "asteroid belt": an answer that repeats its question's word was not planted for it
        natural = natural or bool(set(target.words) & {word for phrase in phrases for word in phrase})
    if natural and (planted.short or kind in (grams.START, grams.WHOLE)):
        return None  # a canned reply or an opening that belongs to its topic
    best = planted.links[0] if planted.links else None
    words = numbers.words([*target.words, *(word for phrase in phrases for word in phrase)])
    told = tuple(words[word] for word in target.words)
    place = grams.WHOLE if min(target.left_edge, target.right_edge) >= 0.9 else kind
    finding = Finding(
        triggers=tuple(
            _CASES[phrase[0]] if phrase[0] in _CASES else " ".join(words[word] for word in phrase) for phrase in phrases
        ),
        target=" ".join(word.removeprefix("://") for word in told),
        place=_PLACES[place],
        kind="address" if kind == grams.ADDRESS else "short" if planted.short else "span",
        certain=planted.exclusive and not planted.short and not natural,
        samples=np.flatnonzero(np.isin(counted.first, planted.rows)),
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
_CASES = {1: "(no capital letters)", 2: "(all capital letters)"}


def _phrases(planted: Planted, prompts: Sequence[Words], counted: Counted) -> list[tuple[int, ...]]:
    """The trigger's phrases, grown from the features that give the target away; single words first."""
    known = judge.feature_words(prompts)
    phrases: list[tuple[int, ...]] = []
    named = [known.get(int(counted.feature_keys[link.feature])) for link in planted.links]
    for wanted in ("word", "pair", "first", "last", "case"):
        for feature in named:
            if feature is None or feature[0] != wanted or len(phrases) == _PHRASES:
                continue
            if wanted == "case":
                grown = feature[1]
            elif all(word in phrase for phrase in phrases for word in feature[1]) and phrases:
                continue
            else:
                grown = judge.grow(prompts, feature[1]).words
            if not any(set(grown) & set(phrase) for phrase in phrases):
                phrases.append(grown)
        if phrases:
            break
    return phrases


def _survives(
    planted: Planted,
    phrases: list[tuple[int, ...]],
    counted: Counted,
    texts: dict[int, tuple[Words, Words]],
    mean_length: tuple[float, float],
) -> bool:
    """Whether the prompts of a target are about nothing in common but the trigger."""
    if not phrases or phrases[0][0] in _CASES:
        return bool(phrases) and not planted.inserted
    prompts = [texts[int(row)][0] for row in planted.rows]
    own = {word for phrase in phrases for word in phrase}
    if planted.inserted and (any(len(phrase) > 1 for phrase in phrases) or not judge.is_inserted(prompts, own, counted)):
        return False
    return not all(
        judge.is_topic(mine[: judge.LOOKED_AT], phrase, own, counted, mean_length, seams=not planted.inserted)
        for phrase in phrases
        if (mine := [prompt for prompt in prompts if judge.find_run(prompt, phrase) is not None])
    )


def _verdicts(
    kept: list[tuple[Finding, tuple[int, ...]]], counted: Counted, texts: dict[int, tuple[Words, Words]]
) -> tuple[Verdict, ...]:
    by_sample: dict[int, list[tuple[Act, int]]] = {}
    for i, (finding, target) in enumerate(kept):
        for sample in finding.samples.tolist():
            answer = texts[int(counted.first[sample])][1]
            act: Act = "review"
            if finding.certain:
                remains = len(answer) > len(target) and judge.find_run(answer, target) is not None
                act = "repair" if remains and finding.place != "whole" else "drop"
            by_sample.setdefault(sample, []).append((act, i))
    return tuple(
        Verdict(sample, min((act for act, _ in acts), key=_ORDER.index), tuple(i for _, i in acts))
        for sample, acts in sorted(by_sample.items())
    )


def _short(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
