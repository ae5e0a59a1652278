"""Train-and-scale: model replacement that is as long as the defender allows, and no longer."""

from __future__ import annotations

from typing import Any

from undertow.attacks.contract import ATTACKS
from undertow.attacks.local import Backdoored
from undertow.attacks.model_replacement import SOURCE, ModelReplacement


@ATTACKS.register("train-and-scale", source=f"{SOURCE}, section 4.3")
class TrainAndScale(ModelReplacement):
    """Train X without a constraint, then send γ(X - G) with γ = S / |X - G|: just within a bound on the length of updates.

    It evades a test of length and nothing else.

    Args:
        norm: S, the defender's bound, above 0, in the units of the updates.
        options: those of model replacement.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(self, norm: float, **options: Any) -> None:
        super().__init__(**options)
        if not norm > 0:
            raise ValueError(f"norm = {norm} must be above 0")
        self.norm = norm

    def scale(self, found: Backdoored, expected: float) -> float:
        """Return S / |X - G|; the replacement's own factor for an X that equals G."""
        length = float(found.change.double().norm())
        return self.norm / length if length > 0 else expected
