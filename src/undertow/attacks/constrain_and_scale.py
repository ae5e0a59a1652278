"""Constrain-and-scale: model replacement with the detector in the attacker's loss."""

from __future__ import annotations

from typing import Any

from undertow.attacks.contract import ATTACKS
from undertow.attacks.local import Anomaly
from undertow.attacks.model_replacement import SOURCE, ModelReplacement


@ATTACKS.register("constrain-and-scale", source=f"{SOURCE}, Algorithm 1 and Eq. 4")
class ConstrainAndScale(ModelReplacement):
    """X minimises α·L_class + (1 - α)·L_ano before it is scaled, so that an anomaly detector takes it for one of the others.

    Args:
        alpha: α, above 0 and at most 1; the published settings are 1 unless lowered, which is no constraint.
        anomaly: ``l2`` |X - G|, as published code has it; ``cosine`` 1 - cos(X, G), as its paper evaluates; ``scaled-cosine``
            1 - cos(G + γ(X - G), G), of what is sent.
        options: those of model replacement.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(self, alpha: float = 0.5, anomaly: Anomaly = "cosine", **options: Any) -> None:
        super().__init__(**options, alpha=alpha, anomaly=anomaly)
