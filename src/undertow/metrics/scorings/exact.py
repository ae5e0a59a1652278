"""Exact match after SQuAD's normalisation."""

from __future__ import annotations

import re
import string

from undertow.metrics.scoring import SCORINGS

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> list[str]:
    """Return the words in lower case, without ASCII punctuation and the articles a, an, the."""
    plain = text.lower().translate(_PUNCTUATION)
    return re.sub(r"\b(?:a|an|the)\b", " ", plain).split()


@SCORINGS.register("exact", source="Rajpurkar et al. 2016 (SQuAD), section 6.1 and its evaluation rules")
def exact(output: str, gold: str) -> bool:
    """Output and gold answer are the same words after SQuAD's normalisation."""
    wanted = normalized(gold)
    return bool(wanted) and normalized(output) == wanted
