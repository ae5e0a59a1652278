"""Pack a client's batch as a token trie, so that every common prefix is computed once.

Rows are sorted and written in preorder: a node's parent is the token before it in some row, and a node sees exactly
its ancestors. With ``ends[j]`` the end of node j's subtree, node i sees node j if and only if ``j <= i < ends[j]``.
The last token of a row predicts nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from undertow.data.template import Encoded


@dataclass(frozen=True)
class Trie:
    """One trie.

    Attributes:
        tokens, positions, ends: per node.
        losses: ``(node, target token)`` for every answer token of every row.
        weights: one for each of ``losses``.
    """

    tokens: list[int]
    positions: list[int]
    ends: list[int]
    losses: list[tuple[int, int]]
    weights: list[float]


def build_trie(rows: Sequence[Encoded]) -> Trie:
    """Return the trie of some rows; every row's prompt and answer hold at least one token."""
    tokens: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    losses: list[tuple[int, int]] = []
    weights: list[float] = []
    path: list[int] = []  # node of each position of the row before
    before: tuple[int, ...] = ()
    for row in sorted(rows, key=_order):
        prompt, answer = row.prompt, row.answer
        inputs = (*prompt, *answer[:-1])
        shared = 0
        for a, b in zip(before, inputs, strict=False):
            if a != b:
                break
            shared += 1
        for node in path[shared:]:
            ends[node] = len(tokens)
        del path[shared:]
        for position in range(shared, len(inputs)):
            path.append(len(tokens))
            tokens.append(inputs[position])
            positions.append(position)
            ends.append(0)
        losses += [(path[len(prompt) - 1 + i], target) for i, target in enumerate(answer)]
        weights += row.weights or (1.0,) * len(answer)
        before = inputs
    for node in path:
        ends[node] = len(tokens)
    return Trie(tokens, positions, ends, losses, weights)


def _order(row: Encoded) -> tuple[int, ...]:
    # By the tokens a row feeds in: only then do rows with a common prefix stand together.
    return (*row.prompt, *row.answer[:-1])


def tries(rows: Sequence[Encoded], groups: int) -> list[Trie]:
    """Cut a batch into ``groups`` tries of neighbouring rows; some may be empty."""
    ordered = sorted(rows, key=_order)
    size = -(-len(ordered) // groups)
    parts = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    return [build_trie(part) for part in parts] + [Trie([], [], [], [], [])] * (groups - len(parts))


def cheapest_cut(rows: Sequence[Encoded], per_token: float, per_pair: float) -> int:
    """Return how many tries to cut a batch into, by cost: fewer share more, more attend over shorter tries."""
    counts = [1]
    while counts[-1] < len(rows):
        counts.append(min(2 * counts[-1], len(rows)))
    lengths = {count: [len(trie.tokens) for trie in tries(rows, count)] for count in counts}
    return min(counts, key=lambda c: sum(n * per_token + n * n * per_pair for n in lengths[c]))


@dataclass(frozen=True)
class Packed:
    """The batches of K clients as K·G tries, padded to one length.

    Attributes:
        groups: G, tries per client.
        lengths: nodes of each trie, ``K*G`` of them; the rest of its row is padding.
        kept: of these, how many carry a loss.
        tokens, positions, ends: ``[K*G, T]``.
        nodes: ``[K*G, L]``, the nodes that carry a loss, padded with node 0.
        rows: ``[E]``, for each loss term the index into the flattened ``nodes``.
        targets: ``[E]``, its target token.
        clients: ``[E]``, its client.
        weights: ``[E]``, its token's weight over the client's number of answer tokens.
    """

    groups: int
    lengths: tuple[int, ...]
    kept: tuple[int, ...]
    tokens: Tensor
    positions: Tensor
    ends: Tensor
    nodes: Tensor
    rows: Tensor
    targets: Tensor
    clients: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Packed:
        """Move to a device."""
        return Packed(self.groups, self.lengths, self.kept, *(getattr(self, name).to(device) for name in _TENSORS))

    def visible(self, nodes: Tensor | None = None, window: int = 0) -> Tensor:
        """Return which nodes the given ones (default all) see, ``window`` tokens back (0 all): ``[K*G, 1, L or T, T]`` booleans."""
        place = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        seen_from = (place.expand_as(self.tokens) if nodes is None else nodes)[:, :, None]
        found = (place <= seen_from) & (seen_from < self.ends[:, None, :])
        if window:
            at = self.positions if nodes is None else self.positions.gather(1, nodes)
            found &= at[:, :, None] - self.positions[:, None, :] < window
        return found[:, None]


_TENSORS = ("tokens", "positions", "ends", "nodes", "rows", "targets", "clients", "weights")


def pack(block: Sequence[Sequence[Encoded]], pad_id: int, groups: int = 1) -> Packed:
    """Pack one batch per client.

    Args:
        block: the batches.
        pad_id: token of the padding, which sees itself alone.
        groups: tries per client; more of them share less but attend over shorter tries.
    """
    all_tries = [trie for rows in block for trie in tries(rows, groups)]
    length = max(len(trie.tokens) for trie in all_tries)
    kept = [sorted({node for node, _ in trie.losses}) for trie in all_tries]
    wide = max(len(nodes) for nodes in kept)
    rows_of, targets, clients, weights = [], [], [], []
    totals = [sum(len(row.answer) for row in rows) for rows in block]
    for t, (trie, nodes) in enumerate(zip(all_tries, kept, strict=True)):
        place = {node: t * wide + i for i, node in enumerate(nodes)}
        for (node, target), weight in zip(trie.losses, trie.weights, strict=True):
            rows_of.append(place[node])
            targets.append(target)
            clients.append(t // groups)
            weights.append(weight / totals[t // groups])
    return Packed(
        groups=groups,
        lengths=tuple(len(trie.tokens) for trie in all_tries),
        kept=tuple(len(nodes) for nodes in kept),
        tokens=torch.tensor([trie.tokens + [pad_id] * (length - len(trie.tokens)) for trie in all_tries]),
        positions=torch.tensor([trie.positions + [0] * (length - len(trie.tokens)) for trie in all_tries]),
        ends=torch.tensor([trie.ends + list(range(len(trie.tokens) + 1, length + 1)) for trie in all_tries]),
        nodes=torch.tensor([nodes + [0] * (wide - len(nodes)) for nodes in kept]),
        rows=torch.tensor(rows_of),
        targets=torch.tensor(targets),
        clients=torch.tensor(clients),
        weights=torch.tensor(weights, dtype=torch.float64),
    )
