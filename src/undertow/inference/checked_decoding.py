"""Greedy generation of one model under the eyes of another, which replaces the tokens it finds far less likely.

A token x with P(x) / P_ref(x) >= α, both behind the same tokens, gives way to the reference's own most likely one, and
generation goes on behind that. The model drafts k tokens before the reference looks at them in one forward; those behind a
replaced one are thrown away. So k changes the time and not the answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from undertow.core.layout import Layout
from undertow.core.threads import side_by_side
from undertow.inference.decoding import common_prefix
from undertow.models.causal_lm import CausalLM
from undertow.models.general import states_at
from undertow.models.head import Head
from undertow.models.llama.cached import CachedRows
from undertow.models.llama.packed import PackedLlama
from undertow.models.lora import adapted


@dataclass(frozen=True)
class Voice:
    """The base with an adapter ``[D]`` in ``layout`` (None: the base's own), or alone."""

    adapter: Tensor | None
    layout: Layout | None = None


@dataclass(frozen=True)
class Checked:
    """What came of it.

    Attributes:
        outputs: for each prompt its continuation, without the end token.
        tokens: how many were said, end tokens included.
        replaced: of these, how many are the reference's.
    """

    outputs: list[list[int]]
    tokens: int
    replaced: int


def checked_generate(
    base: CausalLM,
    target: Voice,
    reference: Voice,
    prompts: Sequence[Sequence[int]],
    *,
    draft: int,
    alpha: float,
    max_new_tokens: int,
    batch_size: int,
    check_last: bool = True,
) -> Checked:
    """Return the target's greedy continuation of each prompt, checked by the reference.

    Args:
        base: the frozen model of both.
        target: who speaks.
        reference: who checks.
        prompts: token ids, at least one each.
        draft: k >= 1, tokens that the target says before a check.
        alpha: α >= 0; 0 = the reference speaks, infinity = the target.
        max_new_tokens: longest continuation.
        batch_size: prompts side by side.
        check_last: whether a draft is checked too that ends the answer or reaches its limit.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # equal lengths together: little padding
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    limit = math.inf if math.isinf(alpha) else math.log(alpha) if alpha else -math.inf

    def run(chosen: list[int]) -> tuple[list[list[int]], int, int]:
        with torch.inference_mode():  # of this thread
            batch = [list(prompts[i]) for i in chosen]
            return _Batch(base, target, reference, batch, draft, limit, max_new_tokens, check_last).run()

    outputs: list[list[int]] = [[] for _ in prompts]
    tokens = replaced = 0
    # The general path hangs its adapters into the one model: one batch at a time.
    alone = any(_packed(base, voice) is None for voice in (target, reference)) or base.device.type != "cpu"
    with side_by_side(1 if alone else max(1, len(batches))) as workers, ThreadPoolExecutor(workers) as pool:
        for chosen, (made, said, other) in zip(batches, pool.map(run, batches), strict=True):
            for i, ids in zip(chosen, made, strict=True):
                outputs[i] = ids
            tokens, replaced = tokens + said, replaced + other
    return Checked(outputs, tokens, replaced)


class Rows(Protocol):
    """Rows of tokens that a voice has heard; see :class:`CachedRows`."""

    filled: Tensor
    head: Head

    def feed(self, tokens: Tensor, wanted: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Append tokens ``[N, q]``; return what the head reads at ``wanted [N, w]``; ``lengths`` are the rows' without padding."""
        ...

    def forget(self, filled: Tensor) -> None:
        """Let the rows hold only their first ``filled [N]`` tokens."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        ...


class _Batch:
    """Prompts continued side by side."""

    def __init__(
        self,
        base: CausalLM,
        target: Voice,
        reference: Voice,
        prompts: list[list[int]],
        draft: int,
        limit: float,
        max_new_tokens: int,
        check_last: bool,
    ) -> None:
        self.draft, self.log_alpha, self.limit, self.check_last = draft, limit, max_new_tokens, check_last
        self.ends, self.pad_id, self.device = set(base.end_ids), base.pad_id, base.device
        shared = prompts[0][: common_prefix(prompts)]
        self.tails = [prompt[len(shared) :] for prompt in prompts]
        places = max(map(len, self.tails)) + max_new_tokens + draft
        self.target, self.reference = (rows_after(base, voice, shared, len(prompts), places) for voice in (target, reference))

    def run(self) -> tuple[list[list[int]], int, int]:
        """Return the continuations, the tokens said and those replaced."""
        made: list[list[int]] = [[] for _ in self.tails]
        replaced = 0
        self._begin()
        rows = list(range(len(made))) if self.limit else []
        while rows:
            before = self.target.filled
            last = [made[row][-1] if made[row] else self.tails[row][-1] for row in rows]
            drafts, other, doubted = self._block(last)
            for i, row in enumerate(rows):
                said, replaces = self._agreed(drafts[i], other[i], doubted[i], self.limit - len(made[row]))
                made[row] += said
                replaced += replaces
            going = [i for i, row in enumerate(rows) if made[row][-1] not in self.ends and len(made[row]) < self.limit]
            # A row holds all of its tokens but the last one.
            held = torch.tensor([len(self.tails[row]) + len(made[row]) - 1 for row in rows], device=self.device)
            for voice in (self.target, self.reference):
                voice.forget(held.to(before))
                if len(going) < len(rows):
                    voice.keep(torch.tensor(going, dtype=torch.long, device=self.device))
            rows = [rows[i] for i in going]
        tokens = sum(map(len, made))
        return [row[:-1] if row and row[-1] in self.ends else row for row in made], tokens, replaced

    def _begin(self) -> None:
        """Let both hear the prompts but for their last tokens."""
        length = max(map(len, self.tails))
        tokens = torch.tensor([tail + [self.pad_id] * (length - len(tail)) for tail in self.tails], device=self.device)
        held = torch.tensor([len(tail) - 1 for tail in self.tails], device=self.device)
        for voice in (self.target, self.reference):
            voice.feed(tokens, torch.zeros_like(tokens[:, :1]), list(map(len, self.tails)))
            voice.forget(held)

    def _block(self, last: list[int]) -> tuple[list[list[int]], list[list[int]], list[list[bool]]]:
        """Return for each row the target's next k tokens, what the reference would say for each, and which it doubts."""
        token = torch.tensor(last, device=self.device)[:, None]
        heard, chances = [token], []
        for _ in range(self.draft):
            states = self.target.feed(token, torch.zeros_like(token))
            _, token, chance = self.target.head.scores(states, token)
            heard.append(token)
            chances.append(chance)
        drafts = torch.cat(heard[1:], 1)
        places = torch.arange(self.draft, device=self.device).expand_as(drafts)
        states = self.reference.feed(torch.cat(heard[:-1], 1), places)
        own, other, _ = self.reference.head.scores(states, drafts)
        return drafts.tolist(), other.tolist(), (torch.cat(chances, 1) - own >= self.log_alpha).tolist()

    def _agreed(self, draft: list[int], other: list[int], doubted: list[bool], room: int) -> tuple[list[int], int]:
        """Return the tokens of a draft that are said, and how many of them are the reference's."""
        end = next((i + 1 for i, token in enumerate(draft) if token in self.ends), len(draft))
        length = min(end, room)
        closes = draft[length - 1] in self.ends or length == room
        if self.check_last or not closes:
            for i in range(length):
                if doubted[i]:
                    return [*draft[:i], other[i]], 1
        return draft[:length], 0


def _packed(base: CausalLM, voice: Voice) -> PackedLlama | None:
    return None if base.packed is None else base.packed.for_layout(voice.layout or base.layout)


def rows_after(base: CausalLM, voice: Voice, prefix: list[int], rows: int, places: int) -> Rows:
    """Return rows that a voice has heard ``prefix`` of, in the fastest form that the base has; arguments as :class:`CachedRows`."""
    packed = _packed(base, voice)
    return (
        _PlainRows(base, voice, prefix, rows) if packed is None else CachedRows.after(packed, voice.adapter, prefix, rows, places)
    )


class _PlainRows:
    """Rows of any architecture: every forward computes them from the start, so that forgetting is free and nothing is assumed.

    Interface as of :class:`CachedRows`.
    """

    def __init__(self, base: CausalLM, voice: Voice, prefix: list[int], rows: int) -> None:
        self.base, self.head, self.prefix = base, base.head, prefix
        self.layout = voice.layout or base.layout
        self.stack = torch.zeros(1, self.layout.size) if voice.adapter is None else voice.adapter[None]
        self.stack = self.stack.to(base.device)
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.filled = torch.zeros(rows, dtype=torch.long, device=base.device)

    def feed(self, tokens: Tensor, wanted: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Append tokens ``[N, q]`` to every row; return what the head reads, ``[N, w, d]``, at ``wanted [N, w]`` of the q
        columns."""
        q = tokens.shape[1]
        self.tokens = [row + more for row, more in zip(self.tokens, tokens.tolist(), strict=True)]
        self.filled = self.filled + q
        whole = [[*self.prefix, *row] for row in self.tokens]
        length, device = max(map(len, whole)), self.base.device
        ids = torch.tensor([[self.base.pad_id] * (length - len(row)) + row for row in whole], device=device)
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in whole], device=device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        places = torch.arange(1, len(whole) + 1, device=device)[:, None] * length - q + wanted
        inputs = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
        with adapted(self.base.model, self.layout, self.stack):
            states, _ = states_at(self.base.model, self.head, places.flatten(), input_ids=ids, **inputs)
        return states.view(*wanted.shape, -1).to(wanted.device)

    def forget(self, filled: Tensor) -> None:
        """Let the rows hold only their first ``filled [N]`` tokens."""
        self.tokens = [row[:count] for row, count in zip(self.tokens, filled.tolist(), strict=True)]
        self.filled = filled

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.tokens = [self.tokens[i] for i in rows.tolist()]
        self.filled = self.filled[rows]
