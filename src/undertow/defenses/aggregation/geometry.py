"""Distances, means and order statistics of the rows of ``U [K, D]``, in float64, over blocks of columns.

Besides its result, nothing here holds more than a few blocks, so that a matrix of gigabytes needs no second copy.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import inf
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor

Found = TypeVar("Found")

# Values in a block: 2 MB in float64, about what stays in a core's cache.
BLOCK = 1 << 18
# Those of a block that is read once or twice and left: 4 MB. Longer pieces of a row are read faster than a cache would repay.
WIDE = 1 << 19
# Values of one row that are added at a time where rows are added in order: 0.5 MB in float64.
ROW = 1 << 16
# Up to this K·K·D, distances are taken from differences, which is exact but slower.
DIRECT = 1 << 22
# A Gram matrix gives a squared distance with an absolute error of about 1e-15 (|u|² + |v|²): where the distance is
# less than this share of that sum, more than three of its digits are lost, and it is taken from differences instead.
CANCELS = 1e-3
# Scores that differ relatively by less than this are the same number, summed in another order.
EQUAL = 1e-12


def columns(updates: Tensor, size: int = BLOCK, least: int = 256) -> Iterator[tuple[int, int]]:
    """Yield ``(start, end)`` of the blocks of columns of ``updates [K, D]``, of ``size`` values each, at least ``least``
    columns."""
    k, d = updates.shape
    width = max(least, size // max(k, 1))
    for start in range(0, d, width):
        yield start, min(d, start + width)


def _over(
    updates: Tensor,
    work: Callable[[Any, slice], Found],
    rows: Sequence[int] | None = None,
    size: int = WIDE,
    least: int = 256,
) -> Iterator[Found]:
    """Yield ``work(block, columns)`` for each block of columns, in their order; work may change its block.

    A block is float64, of all ``rows`` or those named: a numpy array where ``updates`` are on the CPU, else a tensor, so that
    work keeps to what both have. On the CPU blocks are worked on side by side. What comes out does not depend on the
    number of threads: blocks are cut alike, and within a block numpy's matrix products use one thread.
    """
    spans = [slice(start, end) for start, end in columns(updates, size, least)]
    if updates.device.type != "cpu":
        for span in spans:
            yield work((updates[:, span] if rows is None else updates[list(rows), span]).to(torch.float64, copy=True), span)
        return

    def one(span: slice) -> Found:
        part = _values(updates[:, span])
        return work((part if rows is None else part[list(rows)]).astype(np.float64), span)

    threads = min(torch.get_num_threads(), len(spans))
    with _blas().limit(limits=1, user_api="blas"):
        if threads == 1:
            yield from map(one, spans)
        else:
            with ThreadPoolExecutor(threads) as pool:
                yield from pool.map(one, spans)


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries


def _values(part: Tensor) -> NDArray[Any]:
    """View a CPU tensor as numpy, or copy it to float32 where numpy lacks the type.

    numpy, because threads must not call torch's parallel operations: each would keep a team of its own.
    """
    if part.dtype != torch.bfloat16:
        return part.numpy()
    bits = part.view(torch.int16).numpy().astype(np.uint16).astype(np.uint32)
    return (bits << 16).view(np.float32)  # a bfloat16 is the upper half of a float32


def _numbers(values: Tensor, like: Tensor) -> Any:
    """Return ``values`` in float64 for the work on blocks of ``like``."""
    values = values.to(like.device, torch.float64)
    return values if like.device.type != "cpu" else values.numpy()


def _total(found: Iterator[Any]) -> Tensor:
    """Return the sum of arrays or tensors on the CPU."""
    total = functools.reduce(operator.iadd, found)
    return torch.from_numpy(total) if isinstance(total, np.ndarray) else total.cpu()


def squared_distances(updates: Tensor) -> Tensor:
    """Return ``|u_i - u_j|²`` as ``[K, K]`` float64 on the CPU: symmetric, diagonal 0, 0 for equal rows.

    Relative error about 1e-12 at worst. Rows far from the origin and close to each other lose no digits: each block
    is first shifted by the middle one of three rows, coordinate by coordinate, which one wild row cannot move. Pairs
    that are still close in relation to their lengths are taken from differences.
    """
    k, d = updates.shape
    every = torch.ones(k, k, dtype=torch.bool).triu(1)
    if k * k * d <= DIRECT:
        return _from_differences(updates, every)

    def products(block: Any, span: slice) -> Any:
        block -= _middle(block)
        return block @ block.T

    gram = _total(_over(updates, products, least=2 * k))  # blocks no narrower than the products are wide
    lengths = gram.diagonal()
    sums = lengths[:, None] + lengths[None, :]
    squares = sums - gram - gram.T
    close = every & (squares < CANCELS * sums)
    squares = squares.triu(1)
    if close.any():
        squares = torch.where(close, _from_differences(updates, close), squares)
    return squares + squares.T


def _middle(block: Any) -> Any:
    first, second, third = block[0], block[block.shape[0] // 2], block[-1]
    kind: Any = torch if isinstance(block, Tensor) else np
    return kind.maximum(kind.minimum(first, second), kind.minimum(kind.maximum(first, second), third))


def _from_differences(updates: Tensor, wanted: Tensor) -> Tensor:
    """Return the squared distances of the ``wanted [K, K]`` pairs, 0 elsewhere; ``wanted`` is upper triangular."""
    partners = [(i, torch.nonzero(row).flatten().tolist()) for i, row in enumerate(wanted) if row.any()]
    if not partners:
        return torch.zeros(wanted.shape, dtype=torch.float64)

    def squares(block: Any, span: slice) -> Any:
        found: Any = block.new_zeros(wanted.shape) if isinstance(block, Tensor) else np.zeros(wanted.shape)
        for i, others in partners:
            apart = block[others] - block[i]
            apart *= apart
            found[i, others] = apart.sum(1)
        return found

    found = _total(_over(updates, squares, least=2 * len(wanted)))
    return found + found.T


def lengths(updates: Tensor, center: Tensor | None = None) -> Tensor:
    """Return ``|u_k|``, or ``|u_k - center|`` with a ``center [D]``, as ``[K]`` float64 on the CPU."""
    middle = None if center is None else _numbers(center, updates)

    def squares(block: Any, span: slice) -> Any:
        if middle is not None:
            block -= middle[span]
        return (torch if isinstance(block, Tensor) else np).einsum("kd,kd->k", block, block)  # type: ignore[attr-defined]

    return _total(_over(updates, squares)).sqrt()


def products(updates: Tensor, vector: Tensor) -> Tensor:
    """Return ``<u_k, vector>`` as ``[K]`` float64 on the CPU; ``vector [D]``."""
    factor = _numbers(vector, updates)
    return _total(_over(updates, lambda block, span: block @ factor[span]))


def cosine_distances(vectors: Tensor) -> Tensor:
    """Return ``1 - cos(v_i, v_j)`` of ``vectors [K, P]``, as :func:`angles`."""
    return angles(squared_distances(vectors), lengths(vectors))


def angles(squares: Tensor, lengths: Tensor) -> Tensor:
    """Return ``1 - cos(v_i, v_j)`` as ``[K, K]`` float64, within [0, 2].

    It is ``(|v_i - v_j|² - (|v_i| - |v_j|)²) / 2|v_i||v_j|``, which is exactly 0 for equal rows and right for almost
    parallel ones. A row of zeros has no direction: its distance is 0 to another such row and 1 to all others.

    Args:
        squares: ``|v_i - v_j|²``, ``[K, K]`` float64.
        lengths: ``|v_i|``, ``[K]`` float64.
    """
    zero = lengths == 0
    safe = torch.where(zero, 1.0, lengths)
    # Divided one length after the other, because their product may be too small for a float64.
    apart = (lengths[:, None] - lengths[None, :]).square()
    distances = ((squares - apart) / safe[:, None] / safe[None, :] / 2).clamp_(0.0, 2.0).triu(1)
    distances += distances.T.clone()  # to the last bit, which the order of the two divisions is not
    distances[zero[:, None] != zero[None, :]] = 1.0
    distances[zero[:, None] & zero[None, :]] = 0.0
    return distances


def _empty(updates: Tensor) -> Tensor:
    """Return room for a result ``[D]``: float64 for float64 updates, float32 for all others."""
    dtype = torch.float64 if updates.dtype == torch.float64 else torch.float32
    return torch.empty(updates.shape[1], dtype=dtype, device=updates.device)


def weighted_mean(updates: Tensor, weights: Sequence[float]) -> Tensor:
    """Return ``Σ_k w_k u_k / Σ_k w_k`` as ``[D]``, rounded once; rows of weight 0 are left out, and not all weights are 0.

    Rows are added one after the other, as a run without an aggregator adds them, so that Mean is FedAvg to the bit.
    """
    weight = torch.tensor(weights, dtype=torch.float64)
    return combination(updates, weight / weight.sum(), in_order=True)


def combination(
    updates: Tensor, weights: Tensor, *, exact: bool = False, center: Tensor | None = None, in_order: bool = False
) -> Tensor:
    """Return ``Σ_k w_k u_k``, or ``Σ_k w_k (u_k - center)``, as ``[D]``; rows of weight 0 are left out.

    Args:
        updates: ``[K, D]``.
        weights: ``[K]`` float64.
        exact: whether the result is float64; otherwise it is rounded once.
        center: ``[D]``.
        in_order: whether one row is added after the other, which takes twice as long.
    """
    rows = torch.nonzero(weights).flatten()
    share = _numbers(weights[rows], updates)
    middle = None if center is None else _numbers(center, updates)
    total = torch.empty(updates.shape[1], dtype=torch.float64, device=updates.device) if exact else _empty(updates)
    filled: Any = total if updates.device.type != "cpu" else total.numpy()
    if in_order and middle is None and updates.device.type == "cpu":
        _row_by_row(updates, rows.tolist(), share, filled)
        return total

    def fill(block: Any, span: slice) -> None:
        if middle is not None:
            block -= middle[span]
        if in_order:
            block *= share[:, None]
            filled[span] = block.sum(0)
        else:
            filled[span] = share @ block

    for _ in _over(updates, fill, rows=None if len(rows) == len(weights) else rows.tolist()):
        pass
    return total


def _row_by_row(updates: Tensor, rows: Sequence[int], share: NDArray[Any], filled: NDArray[Any]) -> None:
    """Write ``Σ_k share_k u_rows_k`` into ``filled [D]``, one row added after the other, over long pieces of rows.

    A row's piece in float64 and the sum so far stay in a core's cache, and memory is read in order: twice as fast as whole blocks.
    """

    def fill(start: int) -> None:
        end = min(len(filled), start + ROW)
        block = _values(updates[:, start:end])
        total, term = np.zeros(end - start), np.empty(end - start)
        for row, factor in zip(rows, share.tolist(), strict=True):
            term[:] = block[row]
            term *= factor
            total += term
        filled[start:end] = total

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(fill, range(0, len(filled), ROW)):
            pass


def group_means(updates: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Return the plain mean of the rows of each group as ``[len(groups), D]``, rounded once."""
    shares = torch.zeros(len(groups), updates.shape[0], dtype=torch.float64)
    for share, rows in zip(shares, groups, strict=True):
        share[list(rows)] = 1 / len(rows)
    factor = _numbers(shares, updates)
    dtype = torch.float64 if updates.dtype == torch.float64 else torch.float32
    means = torch.empty(len(groups), updates.shape[1], dtype=dtype, device=updates.device)
    filled: Any = means if updates.device.type != "cpu" else means.numpy()

    def fill(block: Any, span: slice) -> None:
        filled[:, span] = factor @ block

    for _ in _over(updates, fill):
        pass
    return means


def add_noise(delta: Tensor, sigma: float, draw: np.random.Generator) -> Tensor:
    """Return ``delta + N(0, σ²)`` in each coordinate, ``[D]``; no random number is used for σ = 0."""
    if sigma == 0:
        return delta
    noised = delta.clone()
    for start, end in columns(delta[None]):
        noise = torch.from_numpy(draw.standard_normal(end - start)).to(delta.device)
        noised[start:end] = delta[start:end].to(torch.float64) + sigma * noise
    return noised


def trimmed(updates: Tensor, drop: int, again: Sequence[int] = ()) -> Tensor:
    """Return the mean of each coordinate without its ``drop`` smallest and ``drop`` largest values: ``[D]``, rounded once.

    Args:
        updates: ``[K, D]``.
        drop: 0 <= 2 drop < K + len(again); (K + len(again) - 1) // 2 of them leave the median.
        again: rows that count once more for each time they are named here.
    """
    mean = _empty(updates)
    n = updates.shape[0] + len(again)
    if updates.device.type != "cpu":
        for start, end in columns(updates):
            block = torch.cat([updates[:, start:end], updates[list(again), start:end]])
            mean[start:end] = block.sort(dim=0).values[drop : n - drop].mean(dim=0, dtype=torch.float64)
        return mean
    filled = mean.numpy()

    def fill(span: tuple[int, int]) -> None:
        start, end = span
        block = _values(updates[:, start:end])
        values = np.empty((end - start, n), dtype=block.dtype)
        values[:, : len(block)] = block.T
        values[:, len(block) :] = block[list(again)].T
        values.sort(axis=1)  # numpy sorts short rows several times faster than torch
        filled[start:end] = np.einsum("ij->i", values[:, drop : n - drop], dtype=np.float64) / (n - 2 * drop)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(fill, columns(updates)):
            pass
    return mean


def nearest_to_median(updates: Tensor, rows: Sequence[int], keep: int) -> Tensor:
    """Return, for each coordinate, the mean of the ``keep`` values closest to the median of ``rows``: ``[D]``.

    Of equally close values the smaller one is kept. 1 <= keep <= len(rows).
    """
    mean = _empty(updates)
    n = len(rows)

    def fill(block: Any, span: slice) -> None:
        values = np.ascontiguousarray((block.cpu().numpy() if isinstance(block, Tensor) else block).T)
        values.sort(axis=1)
        median = (values[:, (n - 1) // 2] + values[:, n // 2])[:, None] / 2
        # The closest values stand side by side. A window of them moves up while its lowest value is farther from the median
        # than the one above it, which in sorted values is true up to some place and false from there on.
        begin = (median - values[:, : n - keep] > values[:, keep:] - median).sum(axis=1)
        inside = begin[:, None] + np.arange(keep)
        mean[span] = torch.from_numpy(np.take_along_axis(values, inside, axis=1).mean(axis=1)).to(mean)

    for _ in _over(updates, fill, rows=rows, size=BLOCK // 4):  # several temporaries of that size
        pass
    return mean


def ranked(scores: Tensor, updates: Tensor, ties: str) -> list[int]:
    """Return the rows in ascending order of their ``scores [K]``.

    Scores within a relative 1e-12 of their neighbour are equal: sums in float64 differ by that much when the clients
    change places.

    Args:
        scores: ``[K]`` float64.
        updates: ``[K, D]``, looked at only where scores are equal.
        ties: ``index`` puts the lower row number first; ``content`` the update with the smaller value in the first
            coordinate where two differ, so that the order of the clients does not matter.
    """
    order = sorted(range(len(scores)), key=lambda i: (float(scores[i]), i))
    groups: list[list[int]] = []
    for i in order:
        if groups and float(scores[i]) < inf and float(scores[i] - scores[groups[-1][-1]]) <= EQUAL * abs(float(scores[i])):
            groups[-1].append(i)
        else:
            groups.append([i])

    def compare(i: int, j: int) -> int:
        for start, end in columns(updates[:1]):
            unequal = torch.nonzero(updates[i, start:end] != updates[j, start:end])
            if len(unequal):
                at = start + int(unequal[0])
                return -1 if updates[i, at] < updates[j, at] else 1
        return i - j

    key = functools.cmp_to_key(compare)
    return [i for group in groups for i in (sorted(group, key=key) if ties == "content" and len(group) > 1 else sorted(group))]
