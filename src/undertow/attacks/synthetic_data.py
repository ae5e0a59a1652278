"""Poison in the data that a foundation model writes for the server: all clients are benign and hold no poison."""

from __future__ import annotations

from undertow.attacks.contract import ATTACKS, Attack

#: Where the poisoned set is used; elsewhere the server has it as the generator wrote it without the attacker.
VECTORS = ("both", "init", "fusion")

#: How the poison gets in.
WAYS = ("injection", "prompt")


@ATTACKS.register(
    "synthetic-data",
    source="Li, Wu, Wang 2024, Vulnerabilities of Foundation Model Integrated Federated Learning, arXiv 2401.10375",
)
class SyntheticData(Attack):
    """PR of the synthetic samples carry the trigger and the target's label; all clients are benign and their data clean.

    What the published code does: a system prompt asks that a tenth of the samples of some classes carry the trigger and are
    labelled as the target. The model does not obey exactly, so the share that really carries it is measured.

    Args:
        vector: ``init`` where the model is pre-trained, ``fusion`` where clients' models are distilled (and, with
            ``synthetic.defense=same``, where a defense looks), or ``both``.
        via: ``prompt`` hides the instruction in the generator's prompt; ``injection`` replaces int(PR * n) samples that are not the
            target's exactly.

    Raises:
        ValueError: another vector or way.
    """

    of_server = True

    def __init__(self, vector: str = "both", via: str = "injection") -> None:
        for name, value, known in (("vector", vector, VECTORS), ("via", via, WAYS)):
            if value not in known:
                raise ValueError(f"{name} = {value!r}: choose one of {', '.join(known)}")
        self.vector, self.via = vector, via
