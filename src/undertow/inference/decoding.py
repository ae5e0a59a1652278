"""Greedy generation in batches, the same outputs as transformers' ``generate(do_sample=False)``."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from undertow.core.layout import Layout
from undertow.core.threads import side_by_side
from undertow.models.causal_lm import CausalLM
from undertow.models.llama.cached import CachedRows
from undertow.models.llama.packed import PackedLlama
from undertow.models.lora import adapted

#: Shared tokens from which one more forward for the prefix pays.
_WORTH_SHARING = 8


#: Rows that read their prompts together, all padded to the longest of them.
_TOGETHER = 32

#: Kinds of length between one and its double: prompts of one kind are ordered by their tokens.
_STEPS = 2

#: Share of the rows that still go on at which the caches of the others are let go.
_WORTH_LEAVING = 0.75


#: Share of expectations that must have held last time for verifying them to be worth its forward.
_WORTH_VERIFYING = 0.3


@torch.inference_mode()
def generate(
    base: CausalLM,
    adapter: Tensor | None,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    layout: Layout | None = None,
    expected: list[list[int]] | None = None,
    modules: bool = False,
) -> list[list[int]]:
    """Return the greedy continuation of each prompt, without the end token.

    The tokens that all prompts of a batch begin with are computed once. With ``expected`` continuations (what the
    model of the round before said), one forward verifies them, and only rows that diverge are decoded, from where
    they do.

    Args:
        base: the frozen model.
        adapter: ``[D]``, or None for the base alone.
        prompts: token ids.
        max_new_tokens: longest continuation.
        batch_size: prompts side by side.
        layout: of the adapter, if it is not the base's own.
        expected: a guess for each prompt, without the end token; guesses change the time, not the answers.
        modules: run the transformers modules themselves, on which hooks may sit that packed weights know nothing of.
    """
    layout = base.layout if layout is None or adapter is None else layout
    packed = None if modules or base.packed is None else base.packed.for_layout(layout)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) if packed is None else _alike(prompts[i]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    held = 1.0
    if packed is None:
        base.steps.try_texts(prompts)

    def run(chosen: list[int]) -> list[list[int]]:
        nonlocal held
        batch = [prompts[i] for i in chosen]
        guesses = [expected[i] for i in chosen] if expected is not None and held >= _WORTH_VERIFYING else None
        if packed is None:
            found = _Batch(base, batch, max_new_tokens).run(guesses)
        else:
            with torch.inference_mode():  # of this thread
                found = _PackedBatch(base, packed, adapter, batch, max_new_tokens).run(guesses)
        if guesses is not None:
            held = sum(a == b for a, b in zip(guesses, found, strict=True)) / len(batch)
        return found

    outputs: list[list[int]] = [[] for _ in prompts]
    hung = nullcontext() if adapter is None or packed else adapted(base.model, layout, adapter[None].to(base.device))
    alone = packed is None or base.device.type != "cpu"
    with hung, side_by_side(1 if alone else len(batches)) as workers, ThreadPoolExecutor(workers) as pool:
        for chosen, found in zip(batches, map(run, batches) if workers == 1 else pool.map(run, batches), strict=True):
            for i, ids in zip(chosen, found, strict=True):
                outputs[i] = ids
    return outputs


class _PackedBatch:
    """Prompts of a Llama-family base decoded side by side on :class:`CachedRows`."""

    def __init__(
        self, base: CausalLM, packed: PackedLlama, adapter: Tensor | None, prompts: list[list[int]], max_new_tokens: int
    ) -> None:
        self.limit, self.pad_id, self.device = max_new_tokens, base.pad_id, base.device
        self.ends = set(base.end_ids)
        shared = common_prefix(prompts) if len(prompts) > 1 else 0
        self.tails = [p[shared:] for p in prompts]
        places = max(len(tail) for tail in self.tails) + max_new_tokens
        self.cache = CachedRows.after(packed, adapter, prompts[0][:shared], len(prompts), places)

    def run(self, guesses: list[list[int]] | None) -> list[list[int]]:
        """Return the continuations: the prompts and any guesses in one forward, then a token at a time."""
        made = self._begin([guess[: self.limit] for guess in guesses] if guesses is not None else [[] for _ in self.tails])
        rows = list(range(len(made)))
        while True:
            # What a row said last is not yet in its cache, unless it has ended.
            going = [
                i for i, row in enumerate(rows) if made[row] and made[row][-1] not in self.ends and len(made[row]) < self.limit
            ]
            if not going:
                break
            if len(going) <= _WORTH_LEAVING * len(rows):
                self.cache.keep(torch.tensor(going, device=self.device))
                rows = [rows[i] for i in going]
                going = list(range(len(rows)))
            tokens = torch.tensor([[made[row][-1] if made[row] else self.pad_id] for row in rows], device=self.device)
            filled = self.cache.filled
            said = self.cache.head.likeliest(self.cache.feed(tokens, torch.zeros_like(tokens)))[:, 0].tolist()
            stays = torch.zeros_like(filled)
            stays[going] = 1
            self.cache.forget(filled + stays)
            for i in going:
                made[rows[i]].append(said[i])
        return [row[:-1] if row and row[-1] in self.ends else row for row in made]

    def _begin(self, guesses: list[list[int]]) -> list[list[int]]:
        """Feed prompts and guesses; return each row's sure tokens, the last of which is new to its cache."""
        parts = [slice(start, start + _TOGETHER) for start in range(0, len(guesses), _TOGETHER)]
        read = [self._read(part, guesses[part]) for part in parts]
        tokens = self.cache.head.likeliest(torch.cat([states.flatten(0, 1) for states in read]))
        counts = [states.shape[0] * states.shape[1] for states in read]
        said = [row for states, own in zip(read, tokens.split(counts), strict=True) for row in own.view(states.shape[:2]).tolist()]
        made = []
        for guess, own in zip(guesses, said, strict=True):
            agreed = next((i for i, (a, b) in enumerate(zip(own, guess, strict=False)) if a != b), len(guess))
            made.append([*guess[:agreed], own[agreed]][: self.limit])
        held = [len(tail) + len(row) - 1 for tail, row in zip(self.tails, made, strict=True)]
        self.cache.forget(torch.tensor(held, device=self.device))
        return made

    def _read(self, rows: slice, guesses: list[list[int]]) -> Tensor:
        """Feed some rows' prompts and guesses; return what the head reads after the prompt and after each token of the guess."""
        tails = self.tails[rows]
        fed = [tail + guess for tail, guess in zip(tails, guesses, strict=True)]
        length, wide = max(map(len, fed)), max(map(len, guesses)) + 1
        tokens = torch.tensor([row + [self.pad_id] * (length - len(row)) for row in fed], device=self.device)
        first, lengths = (torch.tensor([len(row) for row in side], device=self.device)[:, None] for side in (tails, fed))
        wanted = (first - 1 + torch.arange(wide, device=self.device)).minimum(lengths - 1)
        return self.cache.part(rows).feed(tokens, wanted, [len(row) for row in fed])


class _Batch:
    """Prompts decoded side by side, padded on the left, their common prefix in the cache once computed."""

    def __init__(self, base: CausalLM, prompts: list[list[int]], max_new_tokens: int) -> None:
        self.base, self.limit = base, max_new_tokens
        self.ends = set(base.end_ids)
        shared = common_prefix(prompts) if len(prompts) > 1 else 0
        self.prompts, self.shared = prompts, shared if shared >= _WORTH_SHARING else 0
        self.first = base.steps.prefix(prompts[0][: self.shared], len(prompts)) if self.shared else None
        self.shared = 0 if self.first is None else self.shared
        self.tails = [p[self.shared :] for p in prompts]

    def run(self, guesses: list[list[int]] | None) -> list[list[int]]:
        """Return the continuations."""
        made: list[list[int]] = [[] for _ in self.tails]
        rows = list(range(len(self.tails)))
        cache = self.first
        if guesses is not None:
            made, rows = self._verify(guesses, cache)
            if not rows:
                return made
            self.base.steps.back(cache, self.shared, rows)
        for row, more in zip(rows, self._decode(rows, made, cache), strict=True):
            made[row] += more
        return made

    def _verify(self, guesses: list[list[int]], cache: Any) -> tuple[list[list[int]], list[int]]:
        """Return what each row surely says, and the rows that go on from there."""
        limited = [guess[: self.limit] for guess in guesses]
        steps, fed = self.base.steps, [tail + guess for tail, guess in zip(self.tails, limited, strict=True)]
        keep = max(len(guess) for guess in limited) + 1
        said = self.base.head.likeliest(steps.read(*steps.padded(fed, self.shared), cache, keep)).tolist()
        made, going = [], []
        for row, guess in enumerate(limited):
            own = said[row][keep - len(guess) - 1 :]  # what the model says after each prefix of the guess
            agreed = next((i for i, (a, b) in enumerate(zip(own, guess, strict=False)) if a != b), len(guess))
            made.append(guess[:agreed])
            if own[agreed] not in self.ends and agreed < self.limit:
                made[-1].append(own[agreed])
                if len(made[-1]) < self.limit:
                    going.append(row)
        return made, going

    def _decode(self, rows: list[int], made: list[list[int]], cache: Any) -> list[list[int]]:
        """Return what the given rows say after what they have said."""
        base = self.base
        ids, mask, positions = base.steps.padded([self.tails[row] + made[row] for row in rows], self.shared)
        left = torch.tensor([self.limit - len(made[row]) for row in rows], device=base.device)
        ends = torch.tensor(base.end_ids, device=base.device)
        going = torch.ones(len(rows), dtype=torch.bool, device=base.device)
        tokens: list[Tensor] = []
        for step in range(int(left.max())):
            states, cache = base.steps.next(ids, mask, positions, cache)
            token = base.head.likeliest(states)
            going = going & ~torch.isin(token, ends) & (step < left)
            tokens.append(torch.where(going, token, -1))
            if not going.any():
                break
            ids = torch.where(going, token, base.pad_id)[:, None]
            positions = positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        found = torch.stack(tokens, dim=1).tolist() if tokens else [[] for _ in rows]
        return [[t for t in row if t >= 0] for row in found]


def _alike(prompt: list[int]) -> tuple[int, list[int]]:
    """Return what sorts prompts so that those of a batch are of similar length, and those that begin alike stand together."""
    return int(math.log2(len(prompt) + 1) * _STEPS), prompt


def common_prefix(prompts: list[list[int]]) -> int:
    """Tokens that all prompts begin with, leaving each at least one of its own."""
    first, last = min(prompts), max(prompts)
    limit = min(len(p) for p in prompts) - 1
    for i, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b or i >= limit:
            return min(i, limit)
    return limit
