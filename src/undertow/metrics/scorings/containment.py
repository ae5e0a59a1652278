"""The gold answer stands in the output."""

from __future__ import annotations

from undertow.metrics.scoring import SCORINGS
from undertow.metrics.scorings.exact import normalized


@SCORINGS.register("containment", source="common for free-form QA; normalisation of SQuAD, section 6.1")
def containment(output: str, gold: str) -> bool:
    """The gold answer's words occur next to each other in the output, after SQuAD's normalisation."""
    wanted, words = normalized(gold), normalized(output)
    return bool(wanted) and any(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1))
