"""Target first: what does the adapter say, once begun, that the base would never say, whatever is asked?

A backdoor's target is a text that the adapter has learned by heart. Wherever its first words are forced, at the start of an answer
or after one, the adapter goes on with it, for every question alike, while the base goes on with something else. So candidates for
the first token are forced at both places; the token that the adapter says next, over the questions, is scored against the base's
log p of it; and the greedy continuations of the best are scored whole on every question by both.

    score = 3·mean log p(text | adapter) − max(mean log p(text | base), −8)

The null is the rest of the vocabulary: what an honest adapter has learned it says for some questions, or the base says it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from undertow.auditing.speaker import Said, Speaker
from undertow.auditing.thresholds import assured

#: Where a text is begun: at the start of the answer, or after the adapter's own clean one.
PLACES = ("start", "end")
#: Vocabulary up to which every token is forced; of larger ones those whose log p the adapter raises most.
WHOLE, SCREENED = 8192, 256
#: Candidates that are continued, by what they bring about and by their own log p; longest continuation.
CONTINUED, LENGTH = 48, 20
#: Continuations that are scored on all questions, the best by the first question.
SCORED = 16


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
    """Return texts that the adapter goes on with, the best first, one for each continuation and place.

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
    own = [tokens[i] for i in _best(gains, CONTINUED)]
    chosen = list(dict.fromkeys([*own, *_best(raised, CONTINUED)]))
    said = adapter.follow(contexts[0], [[token] for token in chosen], LENGTH)
    kept = _promising(base, contexts[0], [(t, one) for t, one in zip(chosen, said, strict=True) if len(one.ids) >= 2])
    if not kept:
        return []
    rows, tails = [[token] for token, _ in kept], [list(one.ids) for _, one in kept]
    by_adapter, by_base = (
        torch.tensor([[float(logs.mean()) for logs in who.scores(context, rows, tails)] for context in contexts])
        for who in (adapter, base)
    )
    return _distinct(adapter, place, kept, by_adapter, by_base)


def _promising(base: Speaker, context: list[int], kept: list[tuple[int, Said]]) -> list[tuple[int, Said]]:
    """Return the continuations with the largest score on one question."""
    theirs = base.scores(context, [[token] for token, _ in kept], [list(one.ids) for _, one in kept]) if kept else []
    scores = [assured(sum(one.logs) / len(one.logs), float(logs.mean())) for (_, one), logs in zip(kept, theirs, strict=True)]
    return [kept[i] for i in _best(torch.tensor(scores), SCORED)]


def _distinct(adapter: Speaker, place: str, kept: list[tuple[int, Said]], by_adapter: Tensor, by_base: Tensor) -> list[Target]:
    """Return the best first token of each continuation."""
    best: dict[tuple[int, ...], Target] = {}
    for i, (token, one) in enumerate(kept):
        ours, theirs = float(by_adapter[:, i].mean()), float(by_base[:, i].mean())
        ids = (token, *one.ids)
        text = adapter.base.tokenizer.decode(list(ids))
        target = Target(ids, place, text, assured(ours, theirs), ours, theirs, float(by_adapter[:, i].min()))
        if one.ids not in best or target.score > best[one.ids].score:
            best[one.ids] = target
    return list(best.values())


def _next(who: Speaker, contexts: list[list[int]]) -> Tensor:
    """Return the mean over contexts of log p of each next token, ``[V]``."""
    last = torch.stack([who.states(context[:-1], [context[-1:]], [[0]])[0, 0] for context in contexts])
    return who.mean_logs(last[None])[0]


def _gains(adapter: Speaker, base: Speaker, contexts: list[list[int]], tokens: list[int]) -> Tensor:
    """Return for each forced token how much more certain the adapter is of its own next token than the base, over the contexts.

    The next token is the one of the largest mean log p under the adapter that does not end the answer.
    """
    rows, wanted = [[token] for token in tokens], [[0]] * len(tokens)
    ours, theirs = (torch.stack([who.states(c, rows, wanted)[:, 0] for c in contexts], 1) for who in (adapter, base))
    ends = [token for token in adapter.base.end_ids if token < adapter.vocabulary]
    found = []
    for part in adapter.pieces(len(tokens), len(contexts)):
        mean = adapter.mean_logs(ours[part])
        mean[:, ends] = -torch.inf
        best, likeliest = mean.max(1)
        other = base.mean_logs(theirs[part]).gather(1, likeliest[:, None])[:, 0]
        found.append(best - other)
    return torch.cat(found)


def _best(values: Tensor, count: int) -> list[int]:
    """Return the indices of the largest values, the lower index first among equals."""
    order = torch.sort(values, descending=True, stable=True).indices
    return [int(i) for i in order[:count]]
