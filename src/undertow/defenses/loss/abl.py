"""Anti-backdoor learning: what is learned first is isolated, and unlearned at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.data.template import Encoded
from undertow.defenses.base import Stateful
from undertow.defenses.contexts import Setting, TrainingContext
from undertow.defenses.loss.base import LossDefense
from undertow.defenses.parameters import number, one_of, whole
from undertow.defenses.registry import DEFENSES
from undertow.models.token_loss import TokenLoss

if TYPE_CHECKING:
    from undertow.models.causal_lm import CausalLM


@dataclass(frozen=True)
class LocalAscent(TokenLoss):
    """ℓ(c) = sign(c - γ)·c: tokens already below γ are pushed back up to it (Li et al. 2021, LGA)."""

    gamma: float

    def __call__(self, entropy: Tensor) -> Tensor:
        """Return ℓ of each token."""
        return torch.sign(entropy.detach() - self.gamma) * entropy


@dataclass(frozen=True)
class Flooding(TokenLoss):
    """ℓ(c) = |c - b| + b (Ishida et al. 2020; the alternative in the authors of ABL's code)."""

    level: float

    def __call__(self, entropy: Tensor) -> Tensor:
        """Return ℓ of each token."""
        return (entropy - self.level).abs() + self.level


@dataclass(frozen=True)
class BoundedAscent(TokenLoss):
    """ℓ(c) = -min(c, cap): ascent, which ends for a token once its probability is below e^(-cap)."""

    cap: float

    def __call__(self, entropy: Tensor) -> Tensor:
        """Return ℓ of each token."""
        return -entropy.clamp(max=self.cap)


@DEFENSES.register(
    "abl", source="Li et al. 2021, Anti-Backdoor Learning, NeurIPS; the authors' code; per client and for answers: ours"
)
class AntiBackdoorLearning(Stateful, LossDefense):
    """Each client isolates the samples that are learned first, trains on the others, and unlearns the first at the end.

    Rounds 1 .. ``isolate``: all samples, with a loss that stops easy ones (``ascent``). Then each client scores its samples under
    the global adapter it is sent, and isolates max(1, floor(share·n)). Until the last ``unlearn`` rounds it trains on the
    others by plain cross-entropy; in these last rounds it trains on the isolated ones alone, by gradient ascent. With γ = b = 0.5
    and 1 % these are the steps and numbers of the authors.

    Ours: rounds stand for epochs, and clients isolate each by themselves. A token of the answer stands for an example in the
    losses, and a sample's score is its mean over tokens. The ascent is bounded by ``cap``, because without a bound it wrecks a
    language model. It runs at the run's learning rate, where the authors lower theirs. ``score`` = drop is our reading for
    language models, where the poison is what was most surprising at first and fell the furthest: the loss under the base alone
    minus that under the global adapter, summed over the tokens, largest first. Where answers differ in length, the sum favours the
    long ones.

    Args:
        isolate: rounds of the first phase, >= 1.
        unlearn: rounds of the last phase, >= 0; the authors use 5 epochs.
        share: of a client's samples that are isolated, above 0 and below 1.
        ascent: lga, flooding or none (plain cross-entropy) in the first phase.
        gamma: γ of lga and b of flooding, in nats a token.
        score: loss (the lowest are isolated, as in the paper) or drop.
        suffix: score the last so many answer tokens only, >= 0; 0 = all.
        cap: in nats; tokens less likely than e^(-cap) are not pushed further down.
    """

    def __init__(
        self,
        isolate: int = 3,
        unlearn: int = 5,
        share: float = 0.01,
        ascent: str = "lga",
        gamma: float = 0.5,
        score: str = "loss",
        suffix: int = 0,
        cap: float = 5.0,
    ) -> None:
        self.isolate, self.unlearn = whole("isolate", isolate, 1), whole("unlearn", unlearn)
        self.part = number("share", share)
        if self.part >= 1:
            raise ValueError(f"share = {share} must be below 1")
        self.ascent = one_of("ascent", ascent, ("lga", "flooding", "none"))
        self.gamma = number("gamma", gamma)
        self.score = one_of("score", score, ("loss", "drop"))
        self.suffix = whole("suffix", suffix)
        self.cap = number("cap", cap)
        self._rounds = 0
        # The global adapter that the clients scored their samples under; with it they find the same ones again.
        self._adapter: Tensor | None = None
        self._aside: dict[tuple[Encoded, ...], list[bool]] = {}

    def begin(self, setting: Setting) -> None:
        """Check that the run is long enough for the three phases.

        Raises:
            UserError: it is not.
        """
        if 0 < setting.rounds < self.isolate + self.unlearn + 1:
            raise UserError(
                f"isolate = {self.isolate} and unlearn = {self.unlearn} leave no round of the {setting.rounds} for training; "
                f"lower them, or set federation.rounds to at least {self.isolate + self.unlearn + 1}"
            )
        self._rounds = setting.rounds

    def token_loss(self, round: int, rounds: int) -> TokenLoss | None:
        """Return the loss of the phase that ``round`` belongs to."""
        if round <= self.isolate:
            return {"lga": LocalAscent(self.gamma), "flooding": Flooding(self.gamma), "none": None}[self.ascent]
        return BoundedAscent(self.cap) if round > rounds - self.unlearn else None

    def select(self, data: Sequence[Encoded], adapter: Tensor, context: TrainingContext) -> tuple[list[bool], dict[str, Any]]:
        """Return the samples of the phase; the report names it, and the samples ``aside`` by their places in the client's data."""
        if context.round <= self.isolate:
            return [True] * len(data), {"phase": "isolate"}
        if self._adapter is None:
            self._adapter = adapter.clone()
        aside = self._isolated(data, context.base)
        places = [i for i, first in enumerate(aside) if first]
        if context.round > self._rounds - self.unlearn:
            return aside, {"phase": "unlearn", "aside": places}
        if all(aside):  # a single sample: there is nothing else to train on
            return [True] * len(data), {"phase": "train", "aside": []}
        return [not first for first in aside], {"phase": "train", "aside": places}

    def _isolated(self, data: Sequence[Encoded], base: CausalLM) -> list[bool]:
        from undertow.training.token_nll import token_nll

        key = tuple(data)
        if key not in self._aside:
            scores = self._sums(token_nll(base, data, self._adapter))
            if self.score == "drop":
                scores = scores - self._sums(token_nll(base, data))
            else:
                scores = scores / torch.tensor([len(self._scored(row.answer)) for row in data])
            count = max(1, int(self.part * len(data)))
            first = set(torch.sort(scores, stable=True).indices[:count].tolist())
            self._aside[key] = [i in first for i in range(len(data))]
        return self._aside[key]

    def _scored(self, answer: Sequence[Any]) -> Sequence[Any]:
        return answer[-self.suffix :] if self.suffix else answer

    def _sums(self, found: Sequence[Sequence[float]]) -> Tensor:
        return torch.tensor([sum(self._scored(row)) for row in found], dtype=torch.float64)

    def state(self) -> dict[str, Tensor]:
        """Return the adapter that the samples were scored under, once there is one."""
        return {} if self._adapter is None else {"adapter": self._adapter}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the adapter back.

        Raises:
            UserError: the state is not this defense's.
        """
        adapter = state.get("adapter")
        if set(state) - {"adapter"} or (adapter is not None and not (adapter.ndim == 1 and bool(torch.isfinite(adapter).all()))):
            raise UserError(f"abl cannot take back the state {', '.join(sorted(state))}; delete the run directory and run again")
        self._adapter = None if adapter is None else adapter.clone()
        self._aside.clear()
