"""Norm clipping with weak differential privacy: short updates, averaged, with a little noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.geometry import add_noise, combination, lengths
from undertow.defenses.aggregation.privacy import check_accountant, gaussian_epsilon
from undertow.defenses.base import Stateful
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import number
from undertow.defenses.registry import DEFENSES


@DEFENSES.register("weak-dp", source="Sun et al. 2019, Can You Really Backdoor Federated Learning? (norm thresholding, weak DP)")
class WeakDP(Stateful, Aggregator):
    """Shorten every update to at most C, average, and add Gaussian noise to each coordinate.

    delta = sum_k p_k min(1, C / |U_k|) U_k + N(0, sigma^2 I), with p_k = n_k / sum n or 1 / K. Defined for K >= 1.

    With a fixed C and sigma > 0 the report holds epsilon so far: two runs that differ in one client's updates, replaced by zero,
    are (epsilon, delta)-indistinguishable by all global adapters up to this round, the sample counts taken as public. A round is
    a Gaussian mechanism of sensitivity C max_k p_k; rounds add up, and random participation is not counted in favour. Noise for
    protection against backdoors is far below what keeps data private: expect a large epsilon. With C from the updates
    themselves nothing is promised, and epsilon is left out.

    Args:
        bound: C > 0, in the units of the updates; ``None`` = the median length of the round's updates.
        sigma: standard deviation of the noise on the mean, >= 0; 0 = clipping alone.
        weighted: whether p_k is the client's share of the samples; otherwise all count the same.
        delta: of the account, above 0 and below 1.

    Raises:
        ValueError: a parameter out of its range.
        UserError: an account is due, but the accountant is not installed.
    """

    def __init__(self, bound: float | None = None, sigma: float = 0.0, weighted: bool = True, delta: float = 1e-5) -> None:
        self.bound = None if bound is None else number("bound", bound)
        self.sigma = number("sigma", sigma, least=0)
        self.weighted = weighted
        self.delta = number("delta", delta)
        if self.delta >= 1:
            raise ValueError(f"delta = {delta} must be below 1")
        if self.bound is not None and self.sigma > 0:
            check_accountant()
        # Σ (sensitivity / sigma)² over the rounds so far.
        self._spent = 0.0

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the change ``[D]``; the report holds the ``bound``, the ``clipped`` rows of ``updates [K, D]`` and the account."""
        counts = torch.tensor(context.counts if self.weighted else [1] * len(updates), dtype=torch.float64)
        share = counts / counts.sum()
        far = lengths(updates)
        bound = float(far.quantile(0.5)) if self.bound is None else self.bound
        clipped = far > bound
        weights = share * torch.where(clipped, bound / torch.where(clipped, far, 1.0), 1.0)
        report: dict[str, Any] = {"bound": bound, "clipped": torch.nonzero(clipped).flatten().tolist(), "sigma": self.sigma}
        mean = add_noise(combination(updates, weights), self.sigma, context.draw)
        if self.bound is not None and self.sigma > 0:
            self._spent += (bound * float(share.max()) / self.sigma) ** 2
            report |= {"epsilon": gaussian_epsilon(self._spent, self.delta), "delta": self.delta}
        return mean, report

    def state(self) -> dict[str, Tensor]:
        """Return what the account has spent."""
        return {"spent": torch.tensor(self._spent, dtype=torch.float64)} if self._spent else {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what the account has spent.

        Raises:
            UserError: the state is not this aggregator's.
        """
        spent = state.get("spent", torch.zeros((), dtype=torch.float64))
        if set(state) - {"spent"} or spent.shape != () or not 0 <= float(spent) < float("inf"):
            raise UserError(f"WeakDP cannot take back the state {', '.join(sorted(state))}; delete the run directory and run again")
        self._spent = float(spent)
