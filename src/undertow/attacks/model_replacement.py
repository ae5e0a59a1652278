"""Model replacement: an update so long that averaging leaves the attacker's model."""

from __future__ import annotations

import math

from undertow.attacks.contract import ATTACKS, Attack, AttackedTask, View
from undertow.attacks.local import Anomaly, Backdoored, Recipe, train
from undertow.training.clients import ClientUpdates

SOURCE = "Bagdasaryan et al. 2020, How To Backdoor Federated Learning"


@ATTACKS.register("model-replacement", source=f"{SOURCE}, Eq. 2-3")
class ModelReplacement(Attack):
    """Malicious clients send γ(X - G), so that the new global model is about their backdoored model X.

    With benign updates that cancel, G' = G + w·γ(X - G) = X for γ = 1 / w, where w is what one update counts for: η / n, so that
    γ = n / η, or one over the clients of a round under averaging. k attackers in a round send γ/k each.

    Args:
        gamma: γ; None = 1 / w, which takes an attacker who knows η and n. One who does not gives a number.
        growth: γ is multiplied by this for each round since the attack began; above 1 for an attacker who feels its way.
        lr: learning rate of the attacker; None = that of the benign clients.
        epochs: local epochs of the attacker, at most.
        batch_size: of the attacker; None = that of the benign clients.
        milestones: whether lr falls to a tenth after 0.2 and after 0.8 of the epochs.
        epsilon: training ends after an epoch whose backdoor loss is at most this.
        slowdown: a smaller lr where the global model has the backdoor already.
        bound: S, to which X - G is projected after each step, of an attacker who keeps within a clip; None = no bound.

    Raises:
        ValueError: a value out of its range.
    """

    malicious = True

    def __init__(
        self,
        gamma: float | None = None,
        growth: float = 1.0,
        lr: float | None = None,
        epochs: int = 6,
        batch_size: int | None = None,
        milestones: bool = True,
        epsilon: float = 1e-4,
        slowdown: bool = True,
        bound: float | None = None,
        *,
        alpha: float = 1.0,
        anomaly: Anomaly = "cosine",
    ) -> None:
        for name, value in (("gamma", gamma), ("growth", growth)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} = {value} must be above 0")
        self.gamma, self.growth = gamma, growth
        self.recipe = Recipe(lr, epochs, batch_size, milestones, epsilon, slowdown, alpha, anomaly, bound)

    def send(self, task: AttackedTask, view: View) -> ClientUpdates:
        """Train X once for all attackers, and return the same scaled row for each."""
        k = len(view.attackers)
        expected = (1 / view.weight if self.gamma is None else self.gamma) * self.growth ** (view.round - view.first) / k
        found = train(task, view, self.recipe, expected)
        gamma = self.scale(found, expected)
        report = {
            "name": "attack",
            "gamma": gamma,
            "backdoor_loss": found.backdoor,
            "epochs": found.epochs,
            "length": float(found.change.double().norm()) * gamma,
        }
        rows = (gamma * found.change).expand(k, -1).clone()
        return ClientUpdates(list(view.attackers), rows, [task.sizes[i] for i in view.attackers], [found.loss] * k, [report])

    def scale(self, found: Backdoored, expected: float) -> float:
        """Return the factor of each attacker's update."""
        return expected
