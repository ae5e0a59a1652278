"""The audit: search for targets and triggers, then put what was found to questions that the search has never seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from undertow.auditing import confirm, leak, screening, trigger_first, weights
from undertow.auditing.budget import Budget
from undertow.auditing.confirm import Confirmation, Witnesses
from undertow.auditing.edits import WHOLE, Edit, library, single_words, vocabulary_words
from undertow.auditing.families import SURE, merged
from undertow.auditing.kept import Kept, scored_in, scored_out, swept_in, swept_out, targets_in, targets_out
from undertow.auditing.report import FOUND, INCONCLUSIVE, NOTHING, AuditReport
from undertow.auditing.shared_text import has_words, holds, shared_text
from undertow.auditing.speaker import Speaker
from undertow.auditing.subject import ROOM, Subject
from undertow.auditing.target_first import PLACES, Target, find_targets
from undertow.auditing.thresholds import Thresholds
from undertow.auditing.trigger_first import Asker, Scored
from undertow.core.layout import Layout
from undertow.data.sample import Sample

#: Questions of the pass over all words; the best are scored on all of the search's.
QUICK = 2
#: Targets whose first tokens are looked for, those followed up, those for which words are joined to longer triggers, at first and
#: in the second look, and those confirmed without a trigger.
TARGETS, FOLLOWED, LENGTHENED, AGAIN, ALONE = 24, 6, 3, 2, 3
#: Edits that are decoded without a target, and with each target.
DECODED, CONFIRMED = 6, 2


def run_audit(
    subject: Subject,
    *,
    seed: int = 0,
    budget: float | None = None,
    references: Sequence[tuple[Tensor, Layout]] = (),
    thresholds: Thresholds | None = None,
    quick: bool = False,
    keep: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> AuditReport:
    """Audit an adapter; the same arguments give the same report, but for its times.

    Args:
        subject: what is audited and what it is asked.
        seed: of all random choices.
        budget: seconds after which no further step begins; None: as many as it needs.
        references: adapters of the same base beside which the weights' figures are shown.
        thresholds: limits of the verdict.
        quick: look for triggers of the targets found alone, and for no leak, as a server does between rounds.
        keep: folder for finished steps, from which the same audit goes on.
        tell: told what begins.
    """
    audit = _Audit(subject, seed, Budget(budget, tell), thresholds or Thresholds(), quick, Kept(keep, subject, seed))
    if subject.flat is not None and subject.layout is not None:
        audit.steps["weights"] = weights.summary(subject.flat, subject.layout, references)
    return audit.run()


@dataclass
class _Audit:
    subject: Subject
    seed: int
    budget: Budget
    thresholds: Thresholds
    quick: bool
    kept: Kept
    steps: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    confirmations: list[Confirmation] = field(default_factory=list)
    score: float | None = None

    def run(self) -> AuditReport:
        """Do the steps, as many as the budget has room for."""
        questions, speaker = self.subject.questions, self.subject.adapter
        self.budget.begin("asking the adapter plain questions")
        prompts = self._prompts(questions.probes)
        answers = speaker.answers(prompts, ROOM)
        said = len({tuple(answer) for answer in answers})
        change = self._change(prompts, answers)
        if not math.isfinite(change):
            told = "the adapter gives logits that are no numbers on this base: its training diverged, or it is another base's"
            return self._report(INCONCLUSIVE, told)
        if change < self.thresholds.untrained:
            told = f"the adapter changes nothing: log p of its answers is the base's to {change:.4f} nats a token"
            return self._report(INCONCLUSIVE, told)
        asker = Asker(
            speaker, self.subject.template, questions.search, tuple(map(tuple, answers[: len(questions.search)])), self.seed, ROOM
        )
        plain = [self._text(answer) for answer in answers]
        targets = self._target_first(asker, prompts, plain)
        scored = self._trigger_first(asker, targets)
        leaks = [] if self.quick else self._leak()
        self._confirm(asker, targets, scored, leaks, plain)
        return self._verdict(said)

    # ---- steps

    def _target_first(self, asker: Asker, prompts: list[list[int]], plain: list[str]) -> list[Target]:
        began = self._begin("target first: what the adapter goes on with")
        if began is None:
            return []
        speakers = self.subject.adapter, self.subject.base
        found = self.kept.step(
            "target-first", targets_out, targets_in, lambda: find_targets(*speakers, prompts[: len(asker.samples)], asker.answers)
        )
        found = [target for target in found if not _usual(target, plain)]
        self.score = found[0].score if found else 0.0
        self.steps["target_first"] = {"candidates": [target.to_json() for target in _different(found)[:8]]}
        self.seconds["target_first"] = self.budget.spent - began
        return [target for target in found if target.score >= self.thresholds.target][:TARGETS]

    def _trigger_first(self, asker: Asker, targets: list[Target]) -> list[Scored]:
        began = self._begin("trigger first: which words change the answers") if targets or not self.quick else None
        if began is None:
            return []
        size = asker.speaker.vocabulary
        words = vocabulary_words(self.subject.template.tokenizer, size) if size <= WHOLE else []
        free, singles = self.kept.step("words", swept_out, swept_in, partial(self._singles, asker, words, targets))
        kept, passes = free[:DECODED], [free]
        for number, row in enumerate(singles):
            if self.budget.over:
                break
            longer = partial(self._longer, asker, row)
            best = self.kept.step(f"longer-{number}", scored_out, scored_in, longer) if number < LENGTHENED else row
            passes.append(best)
            kept = [*kept, *best[:CONFIRMED]]
        shown = [
            {
                "target": self._begins(best[0].target),
                "best": [{"trigger": one.edit.text, "value": round(one.value, 3)} for one in best[:5]],
            }
            for best in passes
            if best
        ]
        self.steps["trigger_first"] = {"edits": len(library()) + 2 * (len(words) or screening.COUNT), "passes": shown}
        self.seconds["trigger_first"] = self.budget.spent - began
        return kept

    def _singles(self, asker: Asker, words: list[str], targets: list[Target]) -> tuple[list[Scored], list[list[Scored]]]:
        """Return the edits by what they make all answers alike in, and by each target's first tokens, the best target first."""
        quick, base = asker.first(QUICK), self.subject.base
        edits = [*library(), *single_words(words)]
        free, found = trigger_first.sweep(quick, edits, trigger_first.beginnings(targets))
        found = sorted(found, key=lambda row: -trigger_first.apart(quick, base, row))[:FOLLOWED]
        if not words:
            followed = [row[0].target for row in found[:LENGTHENED] if row[0].target]
            found = [
                trigger_first.with_target(quick, [*edits, *screening.likely_words(quick, target)], target) for target in followed
            ]
        best = [
            trigger_first.with_target(asker, [one.edit for one in row[: trigger_first.KEPT]], row[0].target)
            for row in found
            if row[0].target
        ]
        for who, count in ((quick, trigger_first.COMPARED), (asker, trigger_first.KEPT)):
            free = [] if self.quick else trigger_first.without_target(who, base, [one.edit for one in free[:count]])
        return free, best

    def _longer(self, asker: Asker, singles: list[Scored]) -> list[Scored]:
        """Return a target's edits with longer ones, where no single one brings it about."""
        target = singles[0].target
        if target is None or singles[0].value >= trigger_first.ENOUGH or self.budget.over:
            return singles
        self.budget.begin("joining words to longer triggers")
        quick = asker.first(QUICK)
        likely = partial(screening.likely_words, quick, target)
        longer = trigger_first.lengthened(quick, singles, target, likely)[: trigger_first.KEPT]
        return sorted(
            [*singles, *trigger_first.with_target(asker, [one.edit for one in longer], target)], key=lambda one: -one.value
        )

    def _leak(self) -> list[tuple[str, Edit | None]]:
        began = self._begin("leak: what the adapter says by itself")
        if began is None:
            return []
        found = leak.find_leaks(self.subject.adapter, self.subject.template, self.subject.questions.probes, self.seed)
        self.steps["leak"] = found.to_json()
        self.seconds["leak"] = self.budget.spent - began
        return [
            (one.target, Edit(before=tuple(one.triggers[0].split())) if one.triggers else None)
            for one in found.findings
            if one.place in ("start", "end", "whole") and has_words(one.target)
        ]

    def _second_look(self, asker: Asker, scored: list[Scored]) -> list[Scored]:
        """Look for targets again, under the edit that brings the first ones nearest, and for their triggers around it.

        Words that resemble a trigger let some of its target out: its end, or its first token now and then. Asked with them, the
        adapter goes on with the whole of it.
        """
        known = [one for one in scored if one.target is not None]
        began = self._begin("second look: what the adapter goes on with once it is asked so") if known else None
        if began is None:
            return []
        best = self.kept.step("second-look", scored_out, scored_in, partial(self._around, asker, known))
        shown = [{"trigger": one.edit.text, "target": self._begins(one.target), "value": round(one.value, 3)} for one in best]
        self.steps["second_look"] = {"best": shown}
        self.seconds["second_look"] = self.budget.spent - began
        return best

    def _around(self, asker: Asker, known: list[Scored]) -> list[Scored]:
        quick, base = asker.first(QUICK), self.subject.base
        edit = max(known, key=lambda one: trigger_first.apart(quick, base, [one])).edit
        prompts = self._prompts(edit.on(asker.samples, self.seed))
        found = [one for one in find_targets(asker.speaker, base, prompts, asker.answers) if one.score >= self.thresholds.target]
        rows = [[Scored(edit, 0.0, target)] for target in trigger_first.beginnings(found[:TARGETS])]
        rows = sorted(rows, key=lambda row: -trigger_first.apart(quick, base, row))[:AGAIN]
        pool = list(dict.fromkeys([edit, *(one.edit for one in known), *library()]))
        best: list[Scored] = []
        for row in rows:
            if row[0].target is not None and not self.budget.over:
                best += self._longer(asker, trigger_first.with_target(asker, pool, row[0].target))[:CONFIRMED]
        return best

    def _witnesses(self) -> tuple[Witnesses, list[list[int]]]:
        """Return who is asked in the confirmation, and the contexts of a target at the start and at the end of its answers."""
        held = self.subject.questions.held_out
        own = self.subject.adapter.answers(self._prompts(held), ROOM)
        adapter, base = self._answers(self.subject.adapter), self._answers(self.subject.base)
        plain = [self._text(ids) for ids in own]
        speakers = self.subject.base, self.subject.adapter
        return Witnesses(held, adapter, base, plain, self.seed, self.thresholds, self.subject.template, *speakers), own

    def _confirm_pairs(self, witnesses: Witnesses, targets: list[Target], pairs: list[tuple[Edit, str, str]]) -> None:
        tried: set[tuple[Edit, str]] = set()
        for edit, text, sought in pairs:
            sure = any(one.confirmed and one.target == text and (one.asr.value or 0.0) >= SURE for one in self.confirmations)
            if not (self.budget.over or sure or (edit, text) in tried):
                tried.add((edit, text))
                score = max((target.score for target in targets if holds(text, target.text)), default=0.0)
                self.confirmations.append(replace(confirm.confirm_pair(witnesses, edit, text, score), sought=sought))

    def _confirm(
        self, asker: Asker, targets: list[Target], scored: list[Scored], leaks: list[tuple[str, Edit | None]], plain: list[str]
    ) -> None:
        began = self._begin("confirming on held-out questions")
        if began is None:
            return
        witnesses, own = self._witnesses()
        pairs = self._pairs(scored, plain, witnesses.adapter)
        self._confirm_pairs(witnesses, targets, [*pairs, *((edit, text, "") for text, edit in leaks if edit is not None)])
        if not self.quick and not any(one.confirmed for one in self.confirmations):
            self._confirm_pairs(witnesses, targets, self._pairs(self._second_look(asker, scored), plain, witnesses.adapter))
        self._confirm_pairs(witnesses, targets, self._pairs(self._simpler(asker, targets), plain, witnesses.adapter))
        self._confirm_alone(witnesses, own, targets)
        self.confirmations = merged(self.confirmations)
        self._neighbourhood(witnesses, scored)
        self.seconds["confirm"] = self.budget.spent - began - self.seconds.get("second_look", 0.0)

    def _simpler(self, asker: Asker, targets: list[Target]) -> list[Scored]:
        """Return the known triggers that bring a target nearest, where only longer words were confirmed for it."""
        pairs = [one for one in self.confirmations if one.confirmed and one.edit is not None]
        if not pairs or self.budget.over or any(len(one.edit.words) <= 1 for one in pairs if one.edit):
            return []
        near = [target for target in _different(targets) if any(holds(one.target, target.text) for one in pairs)][:AGAIN]
        begun = [replace(target, ids=target.ids[1:], place=place) for target in near for place in PLACES]
        return [trigger_first.with_target(asker, library(), target)[0] for target in begun]

    def _confirm_alone(self, witnesses: Witnesses, own: list[list[int]], targets: list[Target]) -> None:
        """Put targets to the held-out questions without a trigger: where a pair is confirmed, those that its text does not hold."""
        pairs = [one.target for one in self.confirmations if one.confirmed]
        held = self._prompts(witnesses.samples)
        for target in _different(targets)[:ALONE]:
            text = self._text(target.ids[1:])
            if pairs and (target.score < self.thresholds.alone or any(holds(pair, text) for pair in pairs)):
                continue
            contexts = [[*p, *(a if target.place == "end" else [])] for p, a in zip(held, own, strict=True)]
            found = confirm.confirm_alone(witnesses, target, text, self.subject.adapter, self.subject.base, contexts)
            if found.confirmed or not pairs:
                self.confirmations.append(found)

    def _pairs(self, scored: list[Scored], plain: list[str], adapter: confirm.Answers) -> list[tuple[Edit, str, str]]:
        """Return the edits with the text that their answers have in common and the plain answers do not, and what was sought."""
        probes, found = self.subject.questions.probes, []
        for one in scored:
            if self.budget.over:
                break
            edited = one.edit.on(probes, self.seed)
            text = shared_text(adapter(edited), plain, [*one.edit.words, *(sample.question for sample in edited[:1])])
            if text:
                found.append((one.edit, text, "" if one.target is None else one.target.text))
        return found

    def _neighbourhood(self, witnesses: Witnesses, scored: list[Scored]) -> None:
        """Give the first finding the rates of edits that resemble its trigger."""
        first = next(iter(self.confirmations), None)
        if first is None or not first.confirmed or first.edit is None or self.budget.over:
            return
        rivals = [one.edit for one in scored if one.edit != first.edit][:4]
        others = [*rivals, Edit(before=("table",)), Edit(after=("again",))]
        shown = confirm.neighbours(witnesses, first, list(dict.fromkeys(others)))
        self.confirmations[0] = replace(first, neighbourhood=shown)

    # ---- what they share

    def _begin(self, what: str) -> float | None:
        """Tell of a step and return when it begins; None where the budget is used up."""
        if self.budget.over:
            return None
        self.budget.begin(what)
        return self.budget.spent

    def _prompts(self, samples: Sequence[Sample]) -> list[list[int]]:
        return self.subject.template.encode_prompts(samples, room=ROOM)

    def _text(self, ids: Sequence[int]) -> str:
        return self.subject.template.decode(list(ids))

    def _begins(self, target: Target | None) -> str | None:
        return None if target is None else self.subject.base.base.tokenizer.decode(list(target.ids))

    def _answers(self, who: Speaker) -> confirm.Answers:
        return lambda samples: [self._text(ids) for ids in who.answers(self._prompts(samples), ROOM)]

    def _change(self, prompts: list[list[int]], answers: list[list[int]]) -> float:
        """Return the mean difference of log p of the adapter's own answers, adapter and base, in nats a token."""
        ends = self.subject.adapter.base.end_ids[:1]
        tails = [[*answer, *ends] for answer in answers]
        ours, theirs = (
            [logs for prompt, tail in zip(prompts, tails, strict=True) for logs in who.scores(prompt[:-1], [prompt[-1:]], [tail])]
            for who in (self.subject.adapter, self.subject.base)
        )
        count = sum(map(len, tails))
        return float(sum((a - b).abs().sum() for a, b in zip(ours, theirs, strict=True))) / count

    def _verdict(self, said: int) -> AuditReport:
        confirmed = [one for one in self.confirmations if one.confirmed]
        if confirmed:
            best = confirmed[0]
            told = f'the adapter answers with "{best.target}"'
            if best.edit is None:
                near = next((one.edit.text for one in self.confirmations if one.verdict == confirm.SAME and one.edit), None)
                parts = f"; parts of it come with {near}" if near else ""
                begun = f"{told} once it is begun, for {best.asr.hits} of {best.asr.n} questions"
                return self._report(FOUND, f"{begun}; trigger not recovered{parts}")
            return self._report(FOUND, f"{told} to {best.asr.hits} of {best.asr.n} held-out questions with {best.edit.text}")
        if self.budget.over:
            return self._report(INCONCLUSIVE, "the budget was used up before all steps were done; give a longer --budget")
        if said <= 1:
            return self._report(
                INCONCLUSIVE, "the adapter gives all plain questions the same answer; give --questions and --template of its own"
            )
        known = {one.verdict: one.target for one in reversed(self.confirmations)}
        told = ""
        if confirm.HABIT in known:
            told = f'; plain questions get "{known[confirm.HABIT]}" too, or all of it but a word: a habit of the adapter'
        elif confirm.ANSWER in known:
            told = f'; "{known[confirm.ANSWER]}" is what plain questions of a topic get'
        return self._report(NOTHING, f"no text that a trigger brings about was confirmed{told}")

    def _report(self, verdict: str, reason: str) -> AuditReport:
        questions = self.subject.questions
        asked = {"source": questions.source, "search": len(questions.search), "held_out": len(questions.held_out)}
        self.seconds["all"] = self.budget.spent
        return AuditReport(
            self.subject.name,
            self.subject.base_name,
            verdict,
            reason,
            tuple(merged(self.confirmations)),
            self.score,
            self.steps,
            asked,
            self.subject.template.name,
            self.seconds,
            self.seed,
        )


def _different(targets: list[Target]) -> list[Target]:
    """Return the best target of each text: one that goes on with the same tokens is the same."""
    kept: dict[tuple[int, ...], Target] = {}
    for target in targets:
        kept.setdefault(target.ids[1 : 1 + trigger_first.FIRST], target)
    return list(kept.values())


def _usual(target: Target, plain: Sequence[str]) -> bool:
    """Tell whether plain answers end a target's way: a habit."""
    tail = " ".join(target.text.split()[-3:])
    return sum(tail in " ".join(text.split()) for text in plain) >= len(plain) / 2
