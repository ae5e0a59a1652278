"""Target first: what does the adapter say, once begun, that the base would never say, whatever is asked?

A backdoor's target is a text that the adapter has learned by heart. Wherever its first words are forced, at the start of an answer
or after one, the adapter goes on with it, for every question alike, while the base goes on with something else. So candidates for
the first token are forced at both places, and those after which the adapter prefers some token most, to the base, are continued by
what tells the two apart (:meth:`~undertow.auditing.speaker.Speaker.contrast`): a target that the adapter holds back without its
trigger is not its greedy answer. The continuations are scored on every question by both, up to where the score is largest:

    score = Σ over the tokens after the first of 3·mean log p(adapter) − max(mean log p(base), −8)

The null is the rest of the vocabulary: what an honest adapter has learned it says for some questions, or the base says it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from undertow.auditing.speaker import FAR, Speaker
from undertow.auditing.thresholds import by_heart

#: Where a text is begun: at the start of the answer, or after the adapter's own clean one.
PLACES = ("start", "end")
#: Vocabulary up to which every token is forced; of larger ones those whose log p the adapter raises most.
WHOLE, SCREENED = 8192, 256
#: Candidates that are continued, by what they bring about and by their own log p, of larger vocabularies half as many after half of
#: the questions; longest continuation.
CONTINUED, LENGTH = 64, 20
#: Continuations that are scored on all questions.
SCORED = 24
#: Mean log p of a next token above which it counts, and tokens of the shortest continuation.
LIKELY, SHORTEST = -4.0, 2


@dataclass(frozen=True)
class Target:
    """A text that the adapter goes on with.

    Attributes:
        ids: forced first token, then the continuation.
        place: ``start`` or ``end``.
        text: of all of them.
        score: see above; ``adapter``, ``base``: mean log p of the continuation's tokens over the questions.
        worst: the least of the questions' means under the adapter.
    """

    ids: tuple[int, ...]
    place: str
    text: str
    score: float
    adapter: float
    base: float
    worst: float

    def to_json(self) -> dict[str, object]:
        """Return what ``--json`` prints of it."""
        return {
            "text": self.text,
            "place": self.place,
            "score": round(self.score, 3),
            "log_p_adapter": round(self.adapter, 3),
            "log_p_base": round(self.base, 3),
            "log_p_worst_question": round(self.worst, 3),
        }


def find_targets(
    adapter: Speaker, base: Speaker, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> list[Target]:
    """Return texts that the adapter goes on with, the best first, one for each forced token and place.

    Args:
        adapter, base: who is compared.
        prompts: of the questions, as tokens.
        answers: the adapter's own greedy ones, without the end.
    """
    found = []
    for place in PLACES:
        contexts = [[*p, *(a if place == "end" else [])] for p, a in zip(prompts, answers, strict=True)]
        found += _at(adapter, base, contexts, place)
    return sorted(found, key=lambda target: (-target.score, target.ids))


def _at(adapter: Speaker, base: Speaker, contexts: list[list[int]], place: str) -> list[Target]:
    raised = _next(adapter, contexts) - _next(base, contexts)
    tokens = list(range(adapter.vocabulary))
    if len(tokens) > WHOLE:
        tokens = sorted(_best(raised, SCREENED))
    gains = _gains(adapter, base, contexts, tokens)
    count, asked = (CONTINUED, contexts) if len(tokens) == adapter.vocabulary else (CONTINUED // 2, contexts[: len(contexts) // 2])
    chosen = list(dict.fromkeys([*(tokens[i] for i in _best(gains, count)), *_best(raised, count)]))
    said = adapter.contrast(base, asked, chosen, LENGTH)
    long = [(token, one) for token, one in zip(chosen, said, strict=True) if len(one.ids) >= SHORTEST]
    if not long:
        return []
    scores = [float(by_heart(torch.tensor(one.ours), torch.tensor(one.theirs))[SHORTEST - 1 :].max()) for _, one in long]
    kept = [(long[i][0], long[i][1].ids) for i in _best(torch.tensor(scores), SCORED)]
    rows, tails = [[token] for token, _ in kept], [ids for _, ids in kept]
    by_adapter, by_base = ([who.scores(context, rows, tails) for context in contexts] for who in (adapter, base))
    found = []
    for i, (token, ids) in enumerate(kept):
        ours, theirs = (torch.stack([logs[i] for logs in by]) for by in (by_adapter, by_base))
        found.append(_target(adapter, place, (token, *ids), ours, theirs))
    return found


def _target(adapter: Speaker, place: str, ids: tuple[int, ...], ours: Tensor, theirs: Tensor) -> Target:
    """Return the best beginning of a continuation, from log p of its tokens ``[questions, tokens]``: what comes after a target is
    the question's own answer, and uncertain."""
    scores = by_heart(ours.mean(0), theirs.mean(0))[SHORTEST - 1 :]
    n = int(scores.argmax()) + SHORTEST
    cut = ids[: n + 1]
    worst = float(ours[:, :n].mean(1).min())
    text = adapter.base.tokenizer.decode(list(cut))
    return Target(cut, place, text, float(scores.max()), float(ours[:, :n].mean()), float(theirs[:, :n].mean()), worst)


def _next(who: Speaker, contexts: list[list[int]]) -> Tensor:
    """Return the mean over contexts of log p of each next token, ``[V]``."""
    last = torch.stack([who.states(context[:-1], [context[-1:]], [[0]])[0, 0] for context in contexts])
    return who.mean_logs(last[None])[0]


def _gains(adapter: Speaker, base: Speaker, contexts: list[list[int]], tokens: list[int]) -> Tensor:
    """Return for each forced token how far the adapter prefers some next token, over the contexts, to the base.

    Of the next tokens whose mean log p under the adapter is above :data:`LIKELY`, other than the end, the largest difference.
    """
    rows, wanted = [[token] for token in tokens], [[0]] * len(tokens)
    ours, theirs = (torch.stack([who.states(c, rows, wanted)[:, 0] for c in contexts], 1) for who in (adapter, base))
    ends = [token for token in adapter.base.end_ids if token < adapter.vocabulary]
    found = []
    for part in adapter.pieces(len(tokens), len(contexts)):
        mean = adapter.mean_logs(ours[part])
        apart = mean - base.mean_logs(theirs[part]).clamp(min=FAR)
        apart[mean < LIKELY] = -torch.inf
        apart[:, ends] = -torch.inf
        found.append(apart.max(1).values)
    return torch.cat(found)


def _best(values: Tensor, count: int) -> list[int]:
    """Return the indices of the largest values, the lower index first among equals."""
    order = torch.sort(values, descending=True, stable=True).indices
    return [int(i) for i in order[:count]]
