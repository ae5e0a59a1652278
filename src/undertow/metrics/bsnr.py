"""The Backdoor Signal-to-Noise Ratio of one round (FIT section 3.3, Eq. 2-3), with a permutation null.

With update U[k] of client k, groups of poisoned and clean clients, and the global update delta:

    d = mean(U[poisoned]) - mean(U[clean])        v = d / |d|               (Eq. 2; group means unweighted)
    p = <delta, v>                                BSNR = p^2 / (|delta|^2 - p^2)   (Eq. 3)

BSNR needs to know who is poisoned: it is a diagnostic for an experiment with ground truth, never a defense. It is
positive without any backdoor too (about 1 / D for independent client noise), hence the null: the same number under
relabelled clients. Eq. 3 squares the projection; with a task direction orthogonal to v, BSNR grows with rho^2.

Everything follows from inner products, so that a relabelling never touches the D coordinates again: with
label weights a (1 / n_poisoned, or -1 / n_clean), |d|^2 = a' G a and <delta, d> = a' g, where G = U U' and g = U delta.
All sums are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import comb, inf, isfinite, nan
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Elements of one piece in float64 (32 MiB).
_CHUNK = 1 << 22
#: What rounding can leave of an inner product that is zero, relative to its terms.
_TINY = 64 * float(np.finfo(np.float64).eps)

#: Which rows are of poisoned clients: their indices, or a bool for each row.
Labels = Sequence[int] | Sequence[bool] | Tensor | np.ndarray


class Gram(NamedTuple):
    """Inner products between updates, float64 on the CPU: all that BSNR needs.

    Attributes:
        G: ``[K, K]``, between the clients' updates.
        g: ``[K]``, between each client's update and the global one.
        dd: of the global update with itself.
    """

    G: Tensor
    g: Tensor
    dd: float


@dataclass(frozen=True)
class Bsnr:
    """One measurement.

    Attributes:
        value: BSNR, 0 to infinity. None when a group is empty, the group means agree (no direction) or ``delta`` is zero;
            infinite when ``delta`` lies on the direction; all within float64 rounding.
        null_low: 2.5 % quantile under relabelled clients; None without a null, as the next three.
        null_median: 50 % quantile.
        null_high: 97.5 % quantile.
        p: (1 + relabellings with at least this BSNR) / (1 + ``permutations``).
        permutations: relabellings with a defined BSNR that make up the null.
    """

    value: float | None
    null_low: float | None = None
    null_median: float | None = None
    null_high: float | None = None
    p: float | None = None
    permutations: int = 0

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the fields for JSON."""
        return asdict(self)


def gram(updates: Tensor, delta: Tensor) -> Gram:
    """Return the inner products of the flat updates.

    Args:
        updates: ``[K, D]``, any float type and device; it is copied to float64 in pieces of at most 32 MiB.
        delta: ``[D]``, the global update.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity in an update.
    """
    _check_shapes(updates, delta)
    clients, width = updates.shape
    total = torch.zeros(clients + 1, clients + 1, dtype=torch.float64, device=updates.device)
    for start, stop in _chunks(clients, width):
        rows = torch.cat([updates[:, start:stop].double(), delta[None, start:stop].to(updates.device).double()])
        total += rows @ rows.T
    return _finite_gram(total)


def gram_delta_w(
    local: Sequence[tuple[Tensor, Tensor]],
    before: Sequence[tuple[Tensor, Tensor]],
    after: Sequence[tuple[Tensor, Tensor]],
    scale: float,
) -> Gram:
    """Return the inner products of the updates in the space of dW = s B A, where adapters that act alike are equal.

    The update of client k is s (B_k A_k - B_0 A_0), the global one s (B_1 A_1 - B_0 A_0), over all modules.
    No ``[out, in]`` matrix is formed: the difference is a product of rank 2r, [B_k - B_0, B_0] [A_k; A_k - A_0],
    and <B_i A_i, B_j A_j> = trace((B_j' B_i)(A_i A_j')). Differences come first, so that small
    updates of large adapters lose no digits.

    Args:
        local: for each module the clients' adapters, A ``[K, r, in]`` and B ``[K, out, r]``.
        before: for each module the global adapter received (A_0, B_0), ``[r, in]`` and ``[out, r]``.
        after: for each module the new global adapter (A_1, B_1).
        scale: s = alpha / r.

    Raises:
        ValueError: no module, lists or shapes that do not fit, NaN or infinity in an adapter.
    """
    if not local or not len(local) == len(before) == len(after):
        counts = f"{len(local)} local, {len(before)} received and {len(after)} new"
        raise ValueError(f"{counts} modules: give the same modules, at least one")
    total: Tensor | None = None
    for (a, b), (a_0, b_0), (a_1, b_1) in zip(local, before, after, strict=True):
        if a.ndim != 3 or b.ndim != 3 or a.shape[:2] != (b.shape[0], b.shape[2]) or len(a) != len(local[0][0]):
            raise ValueError(f"local adapters {tuple(a.shape)} and {tuple(b.shape)} are not [K, r, in] and [K, out, r]")
        if not (a.shape[1:] == a_0.shape == a_1.shape and b.shape[1:] == b_0.shape == b_1.shape):
            raise ValueError(f"global adapters do not have the local shapes {tuple(a.shape[1:])} and {tuple(b.shape[1:])}")
        a_0, b_0 = a_0.to(a.device).double(), b_0.to(a.device).double()
        a_all = torch.cat([a, a_1[None].to(a)]).double()  # [K + 1, r, in], the new global adapter last
        b_all = torch.cat([b, b_1[None].to(b)]).double()
        right = torch.cat([a_all, a_all - a_0], dim=1)  # [K + 1, 2r, in]
        left = torch.cat([b_all - b_0, b_0.expand_as(b_all)], dim=2).transpose(1, 2)  # [K + 1, 2r, out]
        rows, rank = right.shape[:2]
        right_products = right.flatten(0, 1) @ right.flatten(0, 1).T  # [(K + 1) 2r, (K + 1) 2r]
        left_products = left.flatten(0, 1) @ left.flatten(0, 1).T
        part = (left_products * right_products).view(rows, rank, rows, rank).sum(dim=(1, 3))
        total = part if total is None else total + part.to(total.device)
    assert total is not None
    return _finite_gram(scale * scale * total)


def measure_bsnr(
    updates: Tensor | None,
    poisoned: Labels,
    delta: Tensor | None,
    *,
    permutations: int,
    draw: np.random.Generator,
    grams: tuple[Tensor, Tensor, float] | None = None,
) -> Bsnr:
    """Measure BSNR and its null: the same clients with their group labels shuffled.

    All other relabellings are enumerated when there are at most ``permutations`` of them (C(K, n) - 1 for n poisoned
    clients), which makes p exact; else ``permutations`` are drawn. BSNR is the same when the groups swap roles, so that
    with equal groups p cannot fall below 2 / C(K, n). Relabellings without a defined BSNR are left out.

    Args:
        updates: ``[K, D]``, local minus received weights; None with ``grams``.
        poisoned: indices of the rows of poisoned clients, or a bool for each row.
        delta: ``[D]``, the global update; None with ``grams``.
        permutations: relabellings, 0 for none.
        draw: source of the shuffles.
        grams: instead of the vectors, the inner products that :func:`gram` or :func:`gram_delta_w` returned.

    Raises:
        ValueError: shapes that do not fit, labels outside the rows, NaN or infinity in an update; neither or both of vectors
            and ``grams`` given; negative ``permutations``.
    """
    if permutations < 0:
        raise ValueError(f"permutations = {permutations}: give 0 or more")
    if grams is None and updates is not None and delta is not None:
        products = gram(updates, delta)
    elif grams is not None and updates is None and delta is None:
        products = Gram(*grams)
    else:
        raise ValueError("give updates and delta, or grams alone")
    labels = _labels(poisoned, len(products.g))
    value = float(_ratios(products, labels[None])[0])
    if np.isnan(value):
        return Bsnr(None)
    null = _ratios(products, _relabelled(labels, permutations, draw))
    null = null[~np.isnan(null)]
    if not len(null):
        return Bsnr(value)
    # Infinite values cannot be interpolated.
    method = "linear" if np.isfinite(null).all() else "inverted_cdf"
    low, median, high = (float(q) for q in np.quantile(null, [0.025, 0.5, 0.975], method=method))  # type: ignore[call-overload]
    # A relabelling that only swaps the groups has the same BSNR up to rounding: a tie, not a smaller value.
    reached = int(np.sum(null >= value * (1 - 1e-9)))
    return Bsnr(value, low, median, high, (1 + reached) / (1 + len(null)), len(null))


def phases(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Find where BSNR peaks over the rounds (FIT 3.4: rise, peak, decay).

    The peak is the argmax of a moving average over 3 measured rounds, reported at the middle one; the first of equals.
    Rounds with None, NaN or infinity are skipped. With one or two measured rounds it is their maximum.

    Args:
        values: BSNR by round.

    Returns:
        ``{"peak": index, "peak_value": moving average there}``; both None without any measured round.
    """
    known = [(i, float(v)) for i, v in enumerate(values) if v is not None and isfinite(v)]
    if len(known) > 2:
        known = [(known[i][0], sum(v for _, v in known[i - 1 : i + 2]) / 3) for i in range(1, len(known) - 1)]
    peak, height = max(known, key=lambda pair: pair[1], default=(None, None))
    return {"peak": peak, "peak_value": height}


def _ratio(dd_direction: float, dot: float, dd: float, zero: float) -> float:
    if dd_direction <= zero or dd == 0:
        return nan
    along = dot * dot / dd_direction
    return inf if dd - along <= _TINY * dd else along / (dd - along)


def _ratios(products: Gram, labels: np.ndarray) -> np.ndarray:
    """BSNR of every labelling ``[P, K]`` (bool); the rules of :func:`_ratio`."""
    sizes = labels.sum(axis=1)
    between, with_delta = products.G.numpy(), products.g.numpy()
    zero = _TINY * float(between.diagonal().max())
    found = np.full(len(labels), nan)
    split = (sizes > 0) & (sizes < labels.shape[1])
    n = sizes[split, None]
    weights = np.where(labels[split], 1 / n, -1 / (labels.shape[1] - n))
    directions = np.einsum("pk,pk->p", weights @ between, weights)
    dots = weights @ with_delta
    found[split] = [_ratio(float(v), float(dot), products.dd, zero) for v, dot in zip(directions, dots, strict=True)]
    return found


def _relabelled(labels: np.ndarray, permutations: int, draw: np.random.Generator) -> np.ndarray:
    """Labellings ``[P, K]`` with the same group sizes: all others when they are few, else random ones."""
    clients, n = len(labels), int(labels.sum())
    if comb(clients, n) - 1 > permutations:
        return draw.permuted(np.tile(labels, (permutations, 1)), axis=1)
    every = np.zeros((comb(clients, n), clients), dtype=bool)
    for row, members in enumerate(combinations(range(clients), n)):
        every[row, list(members)] = True
    others: np.ndarray = every[np.any(every != labels, axis=1)]
    return others


def _labels(poisoned: Labels, clients: int) -> np.ndarray:
    given: np.ndarray = poisoned.cpu().numpy() if isinstance(poisoned, Tensor) else np.asarray(poisoned)
    if given.dtype == bool:
        if given.shape != (clients,):
            raise ValueError(f"poisoned has shape {given.shape} for {clients} clients; give one bool a client")
        return given
    labels = np.zeros(clients, dtype=bool)
    if given.size == 0:
        return labels
    whole = given.ndim == 1 and given.dtype.kind in "iu"
    if not whole or given.min() < 0 or given.max() >= clients or len(np.unique(given)) < len(given):
        raise ValueError(f"poisoned = {given.tolist()} are not different row numbers from 0 to {clients - 1}")
    labels[given] = True
    return labels


def _check_shapes(updates: Tensor, delta: Tensor) -> None:
    if updates.ndim != 2 or updates.shape[0] == 0 or delta.shape != updates.shape[1:]:
        raise ValueError(f"updates {tuple(updates.shape)} and delta {tuple(delta.shape)} are not [K, D] with K >= 1 and [D]")


def _chunks(clients: int, width: int) -> list[tuple[int, int]]:
    step = max(1, _CHUNK // (clients + 1))
    return [(start, min(start + step, width)) for start in range(0, width, step)]


def _check_rows(clients_fine: Tensor, delta_fine: Tensor) -> None:
    bad = (~clients_fine).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"the update of row {', '.join(map(str, bad))} holds NaN or infinity; drop it before measuring")
    if not bool(delta_fine):
        raise ValueError("the global update holds NaN or infinity; BSNR cannot be measured")


def _finite_gram(total: Tensor) -> Gram:
    # A NaN or infinity anywhere in a row shows in its product with itself.
    fine = torch.isfinite(total.diagonal())
    _check_rows(fine[:-1], fine[-1])
    total = total.cpu()
    return Gram(total[:-1, :-1].clone(), total[:-1, -1].clone(), float(total[-1, -1]))
