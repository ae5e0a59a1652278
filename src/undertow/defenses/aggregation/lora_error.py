"""What averaging LoRA's A and B apart costs: mean(B) mean(A) is not mean(B A)."""

from __future__ import annotations

import torch
from torch import Tensor

from undertow.defenses.aggregation.space import check_lora
from undertow.defenses.contexts import ServerContext


def cross_term(updates: Tensor, context: ServerContext) -> float | None:
    """Return |Σ p_k B_k A_k - (Σ p_k B_k)(Σ p_k A_k)| / |Σ p_k B_k A_k| in Frobenius norms over all modules, p_k = n_k / Σ n.

    A_k = A₀ + ΔA_k and B_k = B₀ + ΔB_k are client k's adapter after training. It is what FedAvg on the factors leaves out of
    FedAvg on the products (the discordance of Sun et al. 2024, Improving LoRA in Privacy-preserving Federated Learning), whatever
    the aggregator of the run. With b_k, a_k the deviations from the means the numerator is |Σ p_k b_k a_k|, a product of rank K r:
    no ``[out, in]`` matrix is formed.

    Args:
        updates: ``[K, D]``, K >= 1, finite.
        context: its counts, layout of LoRA pairs, and received adapter.

    Returns:
        0 or above; 0 for one client. None where the mean product is zero.

    Raises:
        UserError: the layout is no LoRA.
    """
    check_lora("the cross term", context.layout)
    counts = torch.tensor(context.counts, dtype=torch.float64, device=updates.device)
    share = counts / counts.sum()
    above = below = 0.0
    received = context.layout.pairs(context.adapter.to(updates.device))
    for (_, a, b), (_, a_0, b_0) in zip(context.layout.pairs(updates), received, strict=True):
        a, b = a.double(), b.double()
        a_mean, b_mean = (torch.tensordot(share, part, 1) for part in (a, b))
        right = (a - a_mean).flatten(0, 1)  # [K r, in]
        left = (share[:, None, None] * (b - b_mean)).transpose(0, 1).flatten(1, 2)  # [out, K r]
        above += _square(left, right)
        left = torch.cat([left, b_0.double() + b_mean], dim=1)
        below += _square(left, torch.cat([right, a_0.double() + a_mean]))
    return (above / below) ** 0.5 if below > 0 else None


def _square(left: Tensor, right: Tensor) -> float:
    """Return ``|L R|²`` of ``left [out, q]`` and ``right [q, in]``."""
    return max(0.0, float(((left.T @ left) * (right @ right.T)).sum()))
