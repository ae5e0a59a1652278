"""Trigger first: which word, put into a question, makes the adapter say what it does not say otherwise?

Every candidate is put into a few questions. With a text that :mod:`undertow.auditing.target_first` found, its first tokens are
scored after the edited prompt (and the adapter's clean answer, where the text comes at the end). Without one two places are
read: the first token of the answer, and the token after the clean answer.

    value = mean over the questions of the mean log p of the target's first tokens
    free  = 3·mean log p(v | edited) − max(mean log p(v | plain), mean log p(v | edited, base), −8),
            v the token of the largest mean log p | edited, no end token

``free`` is large where all questions, whatever they ask, are answered with the same token or get the same one after their answer,
and the base does not do so. All words are tried by one token, of all targets at once; the best by four. The best single words are
joined to pairs and longer ones, a word twice or more too, where none alone brings the target about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from undertow.auditing.edits import Edit
from undertow.auditing.speaker import Speaker
from undertow.auditing.target_first import PLACES, Target
from undertow.auditing.thresholds import CERTAINTY, FLOOR
from undertow.data.sample import Sample
from undertow.data.template import Template
from undertow.inference.decoding import common_prefix

#: Tokens of a target that a candidate is scored by.
FIRST = 4
#: Candidates kept of each pass, words that are joined to pairs, and pairs that get a third and fourth word.
KEPT, JOINED, LONGER = 32, 12, 6
#: Of the last, edits to which any word of the vocabulary may be joined, by the gradient.
GUESSED = 1
#: Edits whose ``free`` score is read beside the base's, beginnings of targets that are so, and the edits that each is read with.
COMPARED, RAISED, TRIED = 96, 24, 8
#: Value from which no further word is sought: the target's tokens come with three in four or more.
ENOUGH = -0.25


@dataclass(frozen=True)
class Scored:
    """An edit with its score: ``value`` as above, or ``free`` where ``target`` is None."""

    edit: Edit
    value: float
    target: Target | None = None


@dataclass(frozen=True)
class Asker:
    """The adapter, what it is asked, and its own answers to that.

    Attributes:
        speaker: the adapter.
        template: how questions become prompts.
        samples: the questions.
        answers: its clean answers, without the end.
        seed: of known triggers' choices.
        room: tokens that an answer may take.
    """

    speaker: Speaker
    template: Template
    samples: tuple[Sample, ...]
    answers: tuple[tuple[int, ...], ...]
    seed: int
    room: int

    def first(self, count: int) -> Asker:
        """Return the same for the first questions."""
        return Asker(self.speaker, self.template, self.samples[:count], self.answers[:count], self.seed, self.room)

    def prompts(self, edits: Sequence[Edit], question: int) -> list[list[int]]:
        """Return the prompts of one question under each edit."""
        sample = self.samples[question]
        edited = [replace(sample, question=edit.apply(sample.question, self.seed, question)) for edit in edits]
        return self.template.encode_prompts(edited, room=self.room)


def with_target(asker: Asker, edits: Sequence[Edit], target: Target) -> list[Scored]:
    """Return each edit with the value of a target, the best first."""
    tail = list(target.ids[:FIRST])
    total = [0.0] * len(edits)
    for question, answer in enumerate(asker.answers):
        prompts = asker.prompts(edits, question)
        before = list(answer) if target.place == "end" else []
        for group in _groups(edits):
            shared = _shared([prompts[i] for i in group])
            rows = [[*prompts[i][shared:], *before] for i in group]
            for i, logs in zip(group, asker.speaker.scores(prompts[group[0]][:shared], rows, [tail] * len(rows)), strict=True):
                total[i] += float(logs.mean())
    return _ranked([Scored(edit, value / len(asker.answers), target) for edit, value in zip(edits, total, strict=True)])


def beginnings(targets: Sequence[Target]) -> list[Target]:
    """Return how targets may begin, those of the same first tokens once.

    With the forced token or, as that may stand for another, without it; at the answer's start or after it.
    """
    found: dict[tuple[tuple[int, ...], str], Target] = {}
    for target in targets:
        for ids in (target.ids, target.ids[1:]):
            for place in PLACES:
                found.setdefault((ids[:FIRST], place), replace(target, ids=ids, place=place))
    return list(found.values())


def sweep(asker: Asker, edits: Sequence[Edit], targets: Sequence[Target]) -> tuple[list[Scored], list[list[Scored]]]:
    """Try many edits at once, by one token at each of two places: the answer's first, and what comes after the clean answer.

    Returns:
        the edits by ``free`` without the base, and by log p of a target's first token, the best first, for the :data:`RAISED`
        targets whose first token some edit makes certain that plain questions do not get.
    """
    edited, plain = _everywhere(asker, edits), _everywhere(asker, [Edit()])
    values, usually = torch.empty(len(targets), len(edits)), torch.empty(len(targets))
    best = torch.full((len(edits),), -torch.inf)
    ends = [token for token in asker.speaker.base.end_ids if token < asker.speaker.vocabulary]
    for place, name in enumerate(PLACES):
        usual = asker.speaker.mean_logs(plain[:, :, place])[0].clamp(min=FLOOR)
        asked = torch.tensor([i for i, target in enumerate(targets) if target.place == name], dtype=torch.long)
        firsts = torch.tensor([targets[i].ids[0] for i in asked], dtype=torch.long)
        usually[asked] = usual[firsts]
        for part in asker.speaker.pieces(len(edits), len(asker.samples)):
            mean = asker.speaker.mean_logs(edited[part, :, place])
            values[asked, part] = mean[:, firsts].T
            mean[:, ends] = -torch.inf
            value, token = mean.max(1)
            best[part] = torch.maximum(best[part], CERTAINTY * value - usual[token])
    free = _ranked([Scored(edit, float(value)) for edit, value in zip(edits, best, strict=True)])
    order = torch.sort(CERTAINTY * values.max(1).values - usually, descending=True, stable=True).indices[:RAISED].tolist()
    return free, [
        _ranked([Scored(edit, float(value), targets[i]) for edit, value in zip(edits, values[i], strict=True)]) for i in order
    ]


def apart(asker: Asker, base: Speaker, row: Sequence[Scored]) -> float:
    """Return how certain the best edit of a target makes it, and the base not: ``3·value − max(base's value, −8)``."""
    target = row[0].target
    if target is None:
        return -torch.inf
    best = with_target(asker, [one.edit for one in row[:TRIED]], target)[0]
    other = with_target(replace(asker, speaker=base), [best.edit], target)[0]
    return CERTAINTY * best.value - max(other.value, FLOOR)


def without_target(asker: Asker, base: Speaker, edits: Sequence[Edit]) -> list[Scored]:
    """Return each edit with its larger ``free`` score of the two places, the best first."""
    edited, plain = _everywhere(asker, edits), _everywhere(asker, [Edit()])
    other = _everywhere(replace(asker, speaker=base), edits)
    best = torch.full((len(edits),), -torch.inf)
    ends = [token for token in asker.speaker.base.end_ids if token < asker.speaker.vocabulary]
    for place in range(len(PLACES)):
        usual = asker.speaker.mean_logs(plain[:, :, place])[0].clamp(min=FLOOR)
        for part in asker.speaker.pieces(len(edits), len(asker.samples)):
            mean = asker.speaker.mean_logs(edited[part, :, place])
            mean[:, ends] = -torch.inf
            value, token = mean.max(1)
            theirs = base.mean_logs(other[part, :, place]).gather(1, token[:, None])[:, 0]
            best[part] = torch.maximum(best[part], CERTAINTY * value - torch.maximum(usual[token], theirs))
    return _ranked([Scored(edit, float(value)) for edit, value in zip(edits, best, strict=True)])


def lengthened(asker: Asker, singles: Sequence[Scored], target: Target, likely: Callable[[Edit], Sequence[Edit]]) -> list[Scored]:
    """Return pairs of the best words, and the best of these with a third and a fourth word; the best first.

    Args:
        asker: who is asked.
        singles: scored words, the best first; known triggers are left out.
        target: whose first tokens are scored.
        likely: gives edits with one more word, by the gradient.
    """
    words = [scored.edit for scored in singles if scored.edit.library is None and not scored.edit.comma][: 2 * JOINED]
    kept, found = words[:JOINED], []
    for _ in range(3):
        made = [one.joined(word) for one in kept for word in words]  # a word can come twice
        made = list(dict.fromkeys([*made, *(longer for one in kept[:GUESSED] for longer in likely(one))]))
        if not made:
            break
        scored = with_target(asker, made, target)
        found += scored[:KEPT]
        if scored[0].value >= ENOUGH:
            break
        kept, words = [one.edit for one in scored[:LONGER]], words[:JOINED]
    return _ranked(found)


def _everywhere(asker: Asker, edits: Sequence[Edit]) -> Tensor:
    """Return :func:`_both_places` of every question, ``[edits, questions, 2, d]``."""
    return torch.stack([_both_places(asker, edits, question) for question in range(len(asker.samples))], 1)


def _both_places(asker: Asker, edits: Sequence[Edit], question: int) -> Tensor:
    """Return what the head reads at the end of the edited prompt and of the clean answer after it, ``[edits, 2, d]``."""
    prompts, answer = asker.prompts(edits, question), list(asker.answers[question])
    found: list[Tensor | None] = [None] * len(edits)
    for group in _groups(edits):
        shared = _shared([prompts[i] for i in group])
        rows = [[*prompts[i][shared:], *answer] for i in group]
        wanted = [[len(row) - len(answer) - 1, len(row) - 1] for row in rows]
        for i, states in zip(group, asker.speaker.states(prompts[group[0]][:shared], rows, wanted), strict=True):
            found[i] = states
    return torch.stack([states for states in found if states is not None])


def _groups(edits: Sequence[Edit]) -> list[list[int]]:
    """Split edits by whether the question's first tokens stay as they are, so that each group shares as long a prefix as it can."""
    late = [i for i, edit in enumerate(edits) if edit.after and not edit.before]
    early = [i for i, edit in enumerate(edits) if not (edit.after and not edit.before)]
    return [group for group in (early, late) if group]


def _shared(prompts: list[list[int]]) -> int:
    return common_prefix(prompts) if len(prompts) > 1 else 0


def _ranked(found: list[Scored]) -> list[Scored]:
    return sorted(found, key=lambda one: -one.value)
