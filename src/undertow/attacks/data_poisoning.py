"""Poison in the training data and nothing else: FIT's threat, and the baseline of model replacement."""

from __future__ import annotations

from undertow.attacks.contract import ATTACKS, Attack


@ATTACKS.register("data-poisoning", source="FIT 3.2; the baseline of Bagdasaryan et al. 2020, How To Backdoor Federated Learning")
class DataPoisoning(Attack):
    """Benign clients with poisoned data train as all others do, on data that hold poison."""
