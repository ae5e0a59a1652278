"""Whether a packed model computes what its transformers model does, tried layer by layer when a base is loaded.

Every layer is given what the transformers layer was given, so that rounding does not add up over layers: a bfloat16 model's logits
differ from themselves by a third after a reordering of sums, a layer's by a hundredth. The text is a trie: a common prefix,
rows of several lengths, and one longer than the attention's window where that is short. It is read as in training, all at once, and
as in decoding, through keys and values that are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from undertow.core.rng import rng
from undertow.data.template import Encoded
from undertow.models.llama.cached import CachedRows
from undertow.models.llama.family import Unsupported, layer_modules
from undertow.models.llama.packed import PackedLlama
from undertow.models.lora import adapted
from undertow.models.prefix_trie import Packed, pack

#: Largest relative difference of what a layer adds: bfloat16 has three significant digits, a wrong rope or a lost bias is off by
#: far more.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}

#: So many tokens of each row have their logits compared.
_TAIL = 2

#: Tokens that all rows of the trial begin with.
_STEM = 5

#: A window up to this long is outgrown by one row of the trial.
_SHORT_WINDOW = 512


def packed_llama(model: Any, layout: Any, pad_id: int) -> PackedLlama:
    """Return the packed form of a model, after comparing it with the transformers model.

    Raises:
        Unsupported: of no known family, or what it computes differs.
    """
    if model.dtype not in _TOLERANCE:
        # transformers norms in float32 even then, once per repeat of a shared prefix; only repeating it rounds alike.
        raise Unsupported("float64 is for comparing to the last digits")
    made = PackedLlama(model, layout)
    with torch.no_grad():
        _compare(made, model, pad_id, _TOLERANCE[model.dtype])
    return made


def _compare(ours: PackedLlama, model: Any, pad_id: int, tolerance: float) -> None:
    draw = rng(0, "packed model check")
    rows = _rows(ours, draw)
    stack = 0.02 * torch.tensor(draw.standard_normal((1, ours.layout.size)), dtype=torch.float32, device=ours.device)
    # All tokens but the first carry a loss, so that the last layer computes all nodes.
    packed = pack([[Encoded(row[:1], row[1:]) for row in rows]], pad_id).to(ours.device)
    with adapted(model, ours.layout, stack):
        of_rows = [_theirs(model, torch.tensor([row], device=ours.device)) for row in rows]
    places = [_place(packed, node, rows) for node in range(packed.tokens.shape[1])]
    states = [torch.stack([of_rows[row][0][i][at] for row, at in places])[None] for i in range(len(of_rows[0][0]))]
    x, trip, table = ours.start(stack, packed)
    _close(x, states[0], torch.zeros_like(x), tolerance, "its embedded tokens")
    for i, (before, after) in enumerate(pairwise(states)):
        found = ours.layer(i, before, trip, table if i == 0 else None)
        _close(found, after, before, tolerance, f"its layer {i}")
    logits = torch.cat([logits for _, logits in of_rows])
    found = ours.head.logits(ours.body.norm(torch.cat([inner[-1][-_TAIL:] for inner, _ in of_rows])))
    _close(found, logits, logits.mean(-1, keepdim=True), tolerance, "its logits")
    _compare_decoding(ours, stack[0], rows, [inner for inner, _ in of_rows], tolerance)


def _compare_decoding(
    ours: PackedLlama, adapter: Tensor, rows: Sequence[tuple[int, ...]], states: Sequence[list[Tensor]], tolerance: float
) -> None:
    """Read rows on as decoding does: what all begin with once, the rest side by side with padding, back, and the last tokens one by
    one; the longest row, which may outgrow a window, by itself."""
    stem = _Reading(CachedRows(ours, adapter, 1, _STEM), [rows[0]], [states[0]], 0, tolerance)
    stem.read([_STEM])
    for chosen in (slice(0, -1), slice(-1, None)):
        side, lengths = rows[chosen], [len(row) for row in rows[chosen]]
        cached = CachedRows(ours, adapter, len(side), max(lengths) - _STEM, stem.cached)
        reading = _Reading(cached, side, states[chosen], _STEM, tolerance)
        reading.read(lengths)
        reading.back([length - 2 for length in lengths])
        reading.read([length - 1 for length in lengths])
        reading.read(lengths)


class _Reading:
    """Rows that are read on, each layer given what the transformers layer was given.

    Args:
        cached: holds the first ``start`` tokens of each row.
        rows: whole texts.
        states: of each row, what goes into each layer and out of the last one, ``[T, d]`` each.
        start: tokens held.
        tolerance: largest relative difference.
    """

    def __init__(
        self, cached: CachedRows, rows: Sequence[tuple[int, ...]], states: Sequence[list[Tensor]], start: int, tolerance: float
    ) -> None:
        self.cached, self.rows, self.states, self.tolerance = cached, rows, states, tolerance
        self.start, self.held = start, [start] * len(rows)

    def read(self, ends: Sequence[int]) -> None:
        """Read each row up to a length, and compare every layer's output.

        Raises:
            Unsupported: one differs.
        """
        cuts = list(zip(self.held, ends, strict=True))
        wide, device = max(end - begin for begin, end in cuts), self.cached.filled.device
        tokens = torch.tensor(
            [[*row[b:e], *[0] * (wide - (e - b))] for row, (b, e) in zip(self.rows, cuts, strict=True)], device=device
        )
        lengths = [end - begin for begin, end in cuts]
        x, feed = self.cached.begin(tokens, torch.arange(wide, device=device).expand(len(cuts), wide), lengths)
        wanted = self._cut(0, cuts)
        origin = torch.zeros(())
        _close(_joined(feed.spread(x), cuts), _joined(wanted, cuts), origin, self.tolerance, "the embedded tokens of its decoding")
        for i in range(len(self.cached.caches)):
            given, wanted = wanted, self._cut(i + 1, cuts)
            found = self.cached.layer(i, feed.once(given), feed)
            found = found if i == len(self.cached.caches) - 1 else feed.spread(found)
            made, true, before = (_joined(part, cuts) for part in (found, wanted, given))
            _close(made, true, before, self.tolerance, f"its layer {i} in decoding")
        self.back(ends)

    def back(self, ends: Sequence[int]) -> None:
        """Let the rows hold only so many tokens."""
        self.held = list(ends)
        self.cached.forget(torch.tensor(self.held, device=self.cached.filled.device) - self.start)

    def _cut(self, layer: int, cuts: Sequence[tuple[int, int]]) -> Tensor:
        parts = [inner[layer][begin:end] for inner, (begin, end) in zip(self.states, cuts, strict=True)]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)


def _joined(padded: Tensor, cuts: Sequence[tuple[int, int]]) -> Tensor:
    """Return ``[tokens, d]`` without the padding."""
    return torch.cat([row[: end - begin] for row, (begin, end) in zip(padded, cuts, strict=True)])


def _rows(ours: PackedLlama, draw: Any) -> list[tuple[int, ...]]:
    """Return random texts with common prefixes."""
    vocabulary = ours.body.embedding.shape[0]
    windows = [block.window for block in ours.body.blocks if 0 < block.window <= _SHORT_WINDOW]
    stem = tuple(draw.integers(0, vocabulary, _STEM).tolist())
    rows = [(*stem, *draw.integers(0, vocabulary, n).tolist()) for n in (3, 5)]
    rows.append((*rows[-1][: _STEM + 2], *draw.integers(0, vocabulary, 4).tolist()))
    rows.append((*rows[-1][:8], *draw.integers(0, vocabulary, max(1, *windows) if windows else 2).tolist()))
    return rows


def _theirs(model: Any, ids: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return what goes into a model's layers and out of the last one for one row, ``[T, d]`` each, and its last logits."""
    layers = layer_modules(model)
    seen: list[Tensor] = []

    def enter(module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append((inputs[0] if inputs else named["hidden_states"])[0])

    def leave(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output)[0])

    handles = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    handles.append(layers[-1].register_forward_hook(leave))
    try:
        return seen, model(input_ids=ids, use_cache=False, logits_to_keep=_TAIL).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def _place(packed: Packed, node: int, rows: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """Return a row that goes through a node, and the node's position in it."""
    ends, tokens, at = packed.ends[0].tolist(), packed.tokens[0].tolist(), int(packed.positions[0, node])
    path = tuple(tokens[j] for j in range(node + 1) if node < ends[j])
    return next(i for i, row in enumerate(rows) if row[: len(path)] == path), at


def _close(found: Tensor, wanted: Tensor, origin: Tensor, tolerance: float, what: str) -> None:
    gap = (found.float() - wanted.float()).norm() / (wanted.float() - origin.to(wanted.device).float()).norm()
    if not float(gap) <= tolerance:
        raise Unsupported(f"{what} differ from the packed forward's (by {float(gap):.1e}, relative)")
