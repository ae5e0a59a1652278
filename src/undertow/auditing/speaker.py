"""A base with an adapter, or alone, as a function of token rows: log-probabilities, and greedy continuations after forced tokens.

Everything an audit asks of a model goes through here: rows share a prefix that is computed once, go through in pieces of bounded
memory, and what the head reads is kept in place of logits, a row of which has as many numbers as the vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import TypeVar

import torch
from torch import Tensor

from undertow.core.layout import Layout
from undertow.core.threads import for_each
from undertow.inference.checked_decoding import Rows, Voice, rows_after
from undertow.inference.decoding import generate
from undertow.models.causal_lm import CausalLM

#: Tokens of a piece: rows times their longest; bounds what the layers hold.
PIECE_TOKENS = 4096
#: Bytes of float32 logits that stand at a time.
PIECE_LOGITS = 1 << 27
#: Nats below the likeliest token within which one can be chosen, and log p under the base below which it makes no difference.
PLAUSIBLE, FAR = 4.5, -12.0

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Said:
    """One greedy continuation: its tokens without the end, log p of each, and whether it ended by itself."""

    ids: tuple[int, ...]
    logs: tuple[float, ...]
    ended: bool


@dataclass(frozen=True)
class Contrast:
    """A contrastive continuation: its tokens without the end, and the mean log p of each, here and under the base."""

    ids: list[int]
    ours: list[float]
    theirs: list[float]

    def add(self, token: int, ours: float, theirs: float) -> None:
        """Append a token."""
        self.ids.append(token)
        self.ours.append(ours)
        self.theirs.append(theirs)


@dataclass(frozen=True)
class Speaker:
    """The frozen base with an adapter ``[D]`` in ``layout``, or alone (None: also where the adapter is folded into ``base``)."""

    base: CausalLM
    adapter: Tensor | None = None
    layout: Layout | None = None

    @property
    def vocabulary(self) -> int:
        """Tokens that the head has logits for."""
        weight = self.base.head.weight
        return len(weight) if len(weight) else self.base.vocabulary

    def answers(self, prompts: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
        """Return the greedy answer to each prompt, without the end token."""
        rows = [list(prompt) for prompt in prompts]
        return generate(self.base, self.adapter, rows, max_new_tokens=limit, batch_size=64, layout=self.layout)

    def states(self, prefix: Sequence[int], rows: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> Tensor:
        """Return what the head reads at places of each row after a prefix, ``[N, w, d]``.

        Args:
            prefix: tokens that all rows follow.
            rows: at least one token each.
            wanted: for each row, w indices of its tokens: the state there predicts the token after it.
        """

        def piece(part: slice) -> Tensor:
            chosen = [list(row) for row in rows[part]]
            length, device = max(map(len, chosen)), self.base.device
            ids = torch.tensor([row + [self.base.pad_id] * (length - len(row)) for row in chosen], device=device)
            cache = rows_after(self.base, self._voice, list(prefix), len(chosen), length)
            return cache.feed(ids, torch.tensor([list(one) for one in wanted[part]], device=device), list(map(len, chosen)))

        return torch.cat(self._pieces([len(row) for row in rows], len(prefix), piece))

    def scores(self, prefix: Sequence[int], rows: Sequence[Sequence[int]], tails: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return log p of each token of ``tails[i]`` after ``prefix`` and ``rows[i]`` (one token at least), float32 on the CPU."""
        whole = [[*row, *tail[:-1]] for row, tail in zip(rows, tails, strict=True)]
        wide = max(map(len, tails))
        places = [[min(len(row) - 1 + i, len(all_) - 1) for i in range(wide)] for row, all_ in zip(rows, whole, strict=True)]
        asked = torch.tensor([[*tail, *[0] * (wide - len(tail))] for tail in tails], device=self.base.device)
        own, _, _ = self.base.head.scores(self.states(prefix, whole, places), asked)
        return [logs[: len(tail)].float().cpu() for logs, tail in zip(own, tails, strict=True)]

    def follow(self, prefix: Sequence[int], rows: Sequence[Sequence[int]], limit: int) -> list[Said]:
        """Return the greedy continuation of ``prefix`` and each row: up to ``limit`` tokens."""

        def piece(part: slice) -> list[Said]:
            return self._follow(list(prefix), [list(row) for row in rows[part]], limit)

        found = self._pieces([len(row) + limit for row in rows], len(prefix), piece)
        return [said for one in found for said in one]

    def contrast(self, base: Speaker, contexts: Sequence[Sequence[int]], tokens: Sequence[int], limit: int) -> list[Contrast]:
        """Return how each token, whatever it stands after, is continued here and not by ``base``: up to ``limit`` tokens.

        Contrastive decoding (Li et al. 2023, arXiv 2210.15097), over the contexts at once: of the tokens within :data:`PLAUSIBLE`
        nats of the likeliest, the one of the largest ``a − max(b, −12)/2``, a and b the mean log p here and under ``base``. Greedy
        decoding goes another way where a text is learned by heart and held back, as a target is without its trigger.
        """

        def piece(part: slice) -> list[Contrast]:
            return self._contrast(base, contexts, list(tokens[part]), limit)

        found = self._pieces([1 + limit] * len(tokens), max(map(len, contexts)), piece)
        return [one for part in found for one in part]

    @torch.inference_mode()
    def sample(self, prefix: Sequence[int], rows: int, limit: int, temperature: float, draw: torch.Generator) -> list[list[int]]:
        """Return ``rows`` random continuations of a prefix at a temperature, up to ``limit`` tokens and without the end."""
        base, ends = self.base, set(self.base.end_ids)
        before, last = list(prefix[:-1]), prefix[-1]
        cache = rows_after(base, self._voice, before, rows, limit + 1)
        token = torch.full((rows, 1), last, device=base.device)
        made: list[list[int]] = [[] for _ in range(rows)]
        for _ in range(limit):
            states = cache.feed(token, torch.zeros_like(token))[:, 0]
            parts = [base.head.logits(states[part]).float() / temperature for part in self.pieces(rows, 1)]
            token = torch.cat([torch.multinomial(one.softmax(-1).cpu(), 1, generator=draw) for one in parts]).to(base.device)
            for row, said in zip(made, token[:, 0].tolist(), strict=True):
                row.append(said)
        return [row[: next((i for i, t in enumerate(row) if t in ends), limit)] for row in made]

    def pieces(self, count: int, contexts: int) -> Iterator[slice]:
        """Cut ``count`` rows, each with so many contexts, into pieces whose logits :data:`PIECE_LOGITS` holds."""
        size = max(1, PIECE_LOGITS // (4 * self.vocabulary * contexts))
        return (slice(start, min(start + size, count)) for start in range(0, count, size))

    def mean_logs(self, states: Tensor) -> Tensor:
        """Return the mean over contexts of log p of every token, ``[n, V]`` float32 on the CPU, for ``states [n, contexts, d]``."""
        flat = states.flatten(0, 1)
        logs = self.base.head.logits(flat).log_softmax(-1, dtype=torch.float32)
        return logs.view(*states.shape[:2], -1).mean(1).cpu()

    @property
    def _voice(self) -> Voice:
        return Voice(self.adapter, self.layout)

    def _pieces(self, lengths: Sequence[int], before: int, task: Callable[[slice], _Result]) -> list[_Result]:
        """Do ``task`` on pieces of the rows, side by side where the model allows it."""
        # keys that a row attends to cost as much as its own tokens where the prefix is long
        size = max(1, PIECE_TOKENS // max(1, max(lengths) + before // 8))
        parts = [slice(start, min(start + size, len(lengths))) for start in range(0, len(lengths), size)]
        packed = None if self.base.packed is None else self.base.packed.for_layout(self.layout or self.base.layout)

        def quiet(part: slice) -> _Result:
            with torch.inference_mode():  # of this thread
                return task(part)

        return for_each(quiet, parts, Event(), alone=packed is None or self.base.device.type != "cpu")

    def _begun(self, prefix: list[int], rows: list[list[int]], limit: int) -> tuple[Rows, Tensor, Tensor]:
        """Return a cache that holds each row after the prefix, with room for more, what the head reads there, and the tokens."""
        base, length = self.base, max(map(len, rows))
        ids = torch.tensor([row + [base.pad_id] * (length - len(row)) for row in rows], device=base.device)
        filled = torch.tensor([len(row) for row in rows], device=base.device)
        cache = rows_after(base, self._voice, prefix, len(rows), length + limit)
        states = cache.feed(ids, filled[:, None] - 1, list(map(len, rows)))
        cache.forget(filled)
        return cache, states, ids

    def _contrast(self, base: Speaker, contexts: Sequence[Sequence[int]], tokens: list[int], limit: int) -> list[Contrast]:
        ends = set(self.base.end_ids)
        barred = sorted(t for t in set(self.base.tokenizer.all_special_ids) - ends if t < self.vocabulary)
        rows, made, going = [[token] for token in tokens], [Contrast([], [], []) for _ in tokens], list(range(len(tokens)))
        begun = [[who._begun(list(one), rows, limit) for one in contexts] for who in (self, base)]
        caches = [[cache for cache, _, _ in side] for side in begun]
        states = [torch.cat([state for _, state, _ in side], 1) for side in begun]
        for step in range(limit):
            said = self._apart(base, states[0], states[1], barred)
            left = [k for k, (token, _, _) in enumerate(said) if token not in ends]
            for k in left:
                made[going[k]].add(*said[k])
            if step == limit - 1 or not left:
                break
            if len(left) < len(going):
                for cache in itertools.chain(*caches):
                    cache.keep(torch.tensor(left, device=self.base.device))
                going = [going[k] for k in left]
            fed = torch.tensor([[said[k][0]] for k in left], device=self.base.device)
            states = [torch.cat([cache.feed(fed, torch.zeros_like(fed)) for cache in side], 1) for side in caches]
        return made

    def _apart(self, base: Speaker, ours: Tensor, theirs: Tensor, barred: list[int]) -> list[tuple[int, float, float]]:
        """Return the token of :meth:`contrast` after each row with its log p, from what the heads read, ``[rows, contexts, d]``."""
        found: list[tuple[int, float, float]] = []
        for part in self.pieces(len(ours), 2 * ours.shape[1]):
            a, b = self.mean_logs(ours[part]), base.mean_logs(theirs[part])
            value = a - b.clamp(min=FAR) / 2
            value[a < a.max(-1, keepdim=True).values - PLAUSIBLE] = -torch.inf
            value[:, barred] = -torch.inf
            token = value.argmax(-1, keepdim=True)
            found += zip(*(one[:, 0].tolist() for one in (token, a.gather(1, token), b.gather(1, token))), strict=True)
        return found

    def _follow(self, prefix: list[int], rows: list[list[int]], limit: int) -> list[Said]:
        base, ends = self.base, set(self.base.end_ids)
        cache, states, ids = self._begun(prefix, rows, limit)
        made: list[list[int]] = [[] for _ in rows]
        chances: list[list[float]] = [[] for _ in rows]
        ended = [False] * len(rows)
        going = list(range(len(rows)))
        token = ids[:, :1]
        for step in range(limit):
            _, token, chance = base.head.scores(states, token)
            for i, said, log in zip(going, token[:, 0].tolist(), chance[:, 0].tolist(), strict=True):
                if said in ends:
                    ended[i] = True
                else:
                    made[i].append(said)
                    chances[i].append(log)
            left = [k for k, i in enumerate(going) if not ended[i]]
            if step == limit - 1 or not left:
                break
            if len(left) < len(going):
                kept = torch.tensor(left, device=base.device)
                cache.keep(kept)
                token, going = token[kept], [going[k] for k in left]
            states = cache.feed(token, torch.zeros_like(token))
        return [Said(tuple(a), tuple(b), c) for a, b, c in zip(made, chances, ended, strict=True)]
