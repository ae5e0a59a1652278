"""How the transformers model itself reads texts on, and whether each way of it gives what the model gives one text alone.

Three ways, from the fastest to the plainest: keys and values are kept, and a prefix that all rows share is computed once; they
are kept, and each row is computed whole; nothing is kept, and each token costs the whole text again. Rows of a batch are padded
on the left in all of them. What an architecture makes of padding, of padding after a cached prefix, of a window, and of more than
one token after a cache is not known here and not believed: each way is tried on random texts when a base is loaded, on real ones
when longer ones come than were tried, and the next plainer way takes its place where it differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.models.general import next_states, reach, states_at
from undertow.models.head import GivenLogits, Head
from undertow.models.lora import adapted

#: The ways by name, each with what it does.
WAYS = {
    "shared": "common prefixes once, keys and values kept",
    "kept": "keys and values kept",
    "whole": "the whole text again for each token",
}

#: Largest relative difference of logits; in half precision, where a reordering of sums shows, of the first digits only.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 5e-2}

#: Tokens that the trial's texts have in common, and those after.
_STEM, _TAILS = 12, (3, 4, 7)


class Steps:
    """A base's own modules reading on.

    Args:
        name: of the base, for errors.
        model: the transformers model.
        layout: of the adapters that are tried with it.
        head: of the model.
        pad_id: fills a batch.

    Attributes:
        way: one of ``WAYS``.
        because: why not a faster one; empty for the fastest.
        tried: tokens of the longest text that was tried.
    """

    def __init__(self, name: str, model: Any, layout: Layout, head: Head, pad_id: int) -> None:
        self.name, self.model, self.layout, self.head, self.pad_id = name, model, layout, head, pad_id
        self.way, self.because, self.tried = "shared", "", 0

    @property
    def told(self) -> str:
        """The way in words, with why it is not a faster one."""
        return WAYS[self.way] + (f": {self.because}" if self.because else "")

    def prefix(self, tokens: Sequence[int], rows: int) -> Any:
        """Return a cache that holds ``tokens`` in each of some rows, or None where none is shared."""
        if self.way != "shared":
            return None
        ids = torch.tensor([list(tokens)], device=self.model.get_input_embeddings().weight.device)
        cache = self.model(input_ids=ids, use_cache=True).past_key_values
        if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return None  # what it keeps cannot go back
        cache.batch_repeat_interleave(rows)
        return cache

    def back(self, cache: Any, length: int, rows: Sequence[int]) -> None:
        """Let a cache hold its first ``length`` tokens only, and some of its rows."""
        if cache is not None:
            cache.crop(length - cache.get_seq_length())  # negative: so many tokens off the end
            cache.batch_select_indices(torch.tensor(rows, device=self.model.device))

    def read(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any, keep: int) -> Tensor:
        """Return what the head reads in the last ``keep`` columns of ``ids [n, q]`` after a prefix, ``[n, keep, d]``."""
        places = torch.arange(ids.numel(), device=ids.device).view(ids.shape)[:, -keep:]
        inputs = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "use_cache": cache is not None}
        if cache is None:
            del inputs["past_key_values"]  # not every architecture knows the word
        states, _ = states_at(self.model, self.head, places.flatten(), input_ids=ids, **inputs)
        return states.view(*places.shape, -1)

    def next(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Return what the head reads in the last column of ``ids [n, q]`` after a cache, ``[n, d]``, and the cache with ``ids``.

        Args:
            ids: new tokens.
            mask: over all columns, those of the cache too.
            positions: of the new tokens.
            cache: what :meth:`prefix` or this function gave; None at the beginning.
        """
        if self.way != "whole":
            return next_states(self.model, self.head, ids, mask, positions, cache)
        whole = ids if cache is None else torch.cat([cache, ids], 1)
        return self.read(whole, mask, _positions(mask), None, 1)[:, 0], whole

    def padded(self, rows: Sequence[Sequence[int]], shared: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids, mask over ``shared`` prefix tokens and rows, and positions, of rows padded on the left."""
        length, device = max(map(len, rows)), self.model.get_input_embeddings().weight.device
        ids = torch.tensor([[self.pad_id] * (length - len(row)) + list(row) for row in rows], device=device)
        mask = torch.tensor([[1] * shared + [0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
        return ids, mask, _positions(mask)[:, shared:]

    def try_model(self) -> None:
        """Try the model on random texts, and take the fastest way that gives what it gives one text alone.

        Raises:
            UserError: it fails, reads ahead, or gives other logits in a padded batch: nothing here is right for it then.
        """
        draw = rng(0, "decoding check")
        vocabulary, device = self.model.get_input_embeddings().weight.shape[0], self.model.get_input_embeddings().weight.device
        stem = draw.integers(0, vocabulary, _STEM).tolist()
        rows = [stem + draw.integers(0, vocabulary, n).tolist() for n in (*_TAILS, reach(self.model.config))]
        stack = 0.02 * torch.tensor(draw.standard_normal((1, self.layout.size)), dtype=torch.float32, device=device)
        with torch.inference_mode(), _in_float32(self.model):
            try:
                self._alone(rows[0])
            except Exception as error:  # whatever an architecture raises
                self._refuse(f"fails on a short text ({_words(error)}); use another base")
            with adapted(self.model, self.layout, stack):
                self._try(rows)

    def _try(self, rows: list[list[int]]) -> None:
        try:
            alone = [self._alone(row) for row in rows]
            shorter = self._alone(rows[0][:-2])[-1:]
            gap = _gap(shorter, alone[0][:1])
        except Exception as error:  # whatever an architecture raises
            self._refuse(f"fails on a short text with adapters on all of model.lora.targets ({_words(error)}); change these")
        if not gap <= self._tolerance:
            self._refuse(f"reads ahead: its logits change with later tokens (by {gap:.1e}, relative); use a causal base")
        if told := self._differs_padded(rows, alone):
            other = "another base" if self.model.dtype != torch.float64 else "model.dtype=float32"
            self._refuse(f"gives a padded batch other logits than a text alone ({told}); use {other}")
        self._fit(rows, alone)

    def try_texts(self, texts: Sequence[Sequence[int]]) -> None:
        """Try the way on real texts where there are longer ones than were tried; take a plainer one where it fails."""
        longest = max(map(len, texts), default=0)
        if longest <= self.tried or len(texts) < 2:
            return
        ordered = sorted(texts, key=len)
        rows = [list(row) for row in (ordered[0], ordered[len(ordered) // 2], ordered[-1]) if len(row) > 2]
        if rows:
            with torch.inference_mode(), _in_float32(self.model):
                self._fit(rows, [self._alone(row) for row in rows])
        self.tried = longest

    def _fit(self, rows: list[list[int]], alone: list[Tensor]) -> None:
        for way in list(WAYS)[list(WAYS).index(self.way) :]:
            self.way = way
            told = self._differs_stepped(rows, alone) if way != "whole" else ""
            if not told:
                break
            self.because = f"{'a shared prefix' if way == 'shared' else 'a cache'} gives other logits ({told})"
        self.tried = max(self.tried, *map(len, rows))

    def _alone(self, row: list[int]) -> Tensor:
        """Return the logits of the last three tokens of a text alone, ``[3, V]``: no mask, no positions, no cache."""
        ids = torch.tensor([row], device=self.model.get_input_embeddings().weight.device)
        places = torch.arange(len(row) - 3, len(row), device=ids.device)
        return self._logits(states_at(self.model, self.head, places, input_ids=ids, use_cache=False)[0])

    def _differs_padded(self, rows: list[list[int]], alone: list[Tensor]) -> str:
        try:
            states = self.read(*self.padded(rows), None, 3)
        except Exception as error:
            return _words(error)
        return self._compared(list(self._logits(states)), alone)

    def _differs_stepped(self, rows: list[list[int]], alone: list[Tensor]) -> str:
        """Do what decoding with guesses does: the prefix, rows and guesses in one pass, back, and the last tokens one by one."""
        shared = min(_common(rows), min(map(len, rows)) - 3) if self.way == "shared" else 0
        tails, places = [row[shared:] for row in rows], range(len(rows))
        try:
            cache = self.prefix(rows[0][:shared], len(rows)) if shared else None
            if self.way == "shared" and cache is None and shared:
                return "it keeps other than keys and values of all tokens"
            read = self.read(*self.padded(tails, shared), cache, 3)
            self.back(cache, shared, places)
            ids, mask, positions = self.padded([tail[:-2] for tail in tails], shared)
            stepped = []
            for back in (2, 1, 0):
                states, cache = self.next(ids, mask, positions, cache)
                stepped.append(states)
                if back:
                    ids = torch.tensor([[tail[-back]] for tail in tails], device=ids.device)
                    positions, mask = positions[:, -1:] + 1, torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        except Exception as error:
            return _words(error)
        found = [self._compared(list(self._logits(states)), alone) for states in (read, torch.stack(stepped, 1))]
        return next((told for told in found if told), "")

    def _compared(self, found: list[Tensor], wanted: list[Tensor]) -> str:
        gap = max(_gap(a, b) for a, b in zip(found, wanted, strict=True))
        return "" if gap <= self._tolerance else f"by {gap:.1e}, relative"

    def _logits(self, states: Tensor) -> Tensor:
        head = self.head if isinstance(self.head, GivenLogits) else Head.of(self.model) or self.head
        return head.logits(states)

    @property
    def _tolerance(self) -> float:
        return _TOLERANCE.get(self.model.dtype, 1e-1)

    def _refuse(self, told: str) -> None:
        raise UserError(f"model '{self.name}': {type(self.model).__name__} {told}") from None


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def _gap(found: Tensor, wanted: Tensor) -> float:
    """Return the largest relative difference of the logits of a token, ``[n, V]`` each; NaN counts as infinite."""
    wanted = wanted.float()
    gap = (found.float() - wanted).norm(dim=-1) / (wanted - wanted.mean(-1, keepdim=True)).norm(dim=-1)
    return float(gap.nan_to_num(nan=torch.inf).max())


def _common(rows: Sequence[Sequence[int]]) -> int:
    first, last = min(map(list, rows)), max(map(list, rows))
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(map(len, rows)))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]


@contextmanager
def _in_float32(model: Any) -> Iterator[None]:
    """Within this context a half-precision model computes in float32, where memory allows: each of its weights is such a number."""
    halves = [t for t in (*model.parameters(), *model.buffers()) if t.dtype in (torch.bfloat16, torch.float16)]
    plain = all(t.device.type == "cpu" for t in halves) and not getattr(model, "is_quantized", False)
    if not plain or 4 * sum(t.numel() for t in halves) > psutil.virtual_memory().available // 2:
        yield
        return
    kept = [t.data for t in halves]
    try:
        for t in halves:
            t.data = t.data.float()
        yield
    finally:
        for t, data in zip(halves, kept, strict=True):
            t.data = data
