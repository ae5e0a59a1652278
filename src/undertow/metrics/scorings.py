"""The scorings of MA: functions ``(output, gold) -> bool`` for one gold answer."""

from __future__ import annotations

import re
import string

from undertow.metrics.scoring import SCORINGS

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_RUN = re.compile(r"[a-z0-9]+")


def normalized(text: str) -> list[str]:
    """Return the words in lower case, without ASCII punctuation and the articles a, an, the."""
    plain = text.lower().translate(_PUNCTUATION)
    return re.sub(r"\b(?:a|an|the)\b", " ", plain).split()


@SCORINGS.register("exact", source="Rajpurkar et al. 2016 (SQuAD), section 6.1 and its evaluation rules")
def exact(output: str, gold: str) -> bool:
    """Output and gold answer are the same words after SQuAD's normalisation."""
    wanted = normalized(gold)
    return bool(wanted) and normalized(output) == wanted


@SCORINGS.register("containment", source="common for free-form QA; normalisation of SQuAD, section 6.1")
def containment(output: str, gold: str) -> bool:
    """The gold answer's words occur next to each other in the output, after SQuAD's normalisation."""
    wanted, words = normalized(gold), normalized(output)
    return bool(wanted) and any(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1))


@SCORINGS.register("rouge-recall", source="the FIT lab's later code ('clean exact match rate'); ROUGE-L: Lin 2004, section 3")
def rouge_recall(output: str, gold: str) -> bool:
    """Every token of the gold answer occurs in the output, in order; further words do no harm.

    Tokens are runs of a-z and 0-9 after lower-casing, as ROUGE counts them. A gold answer without any such
    run (another script) is compared by blank-separated words instead.
    """
    output, gold = output.lower(), gold.lower()
    wanted = _RUN.findall(gold)
    rest = iter(_RUN.findall(output) if wanted else output.split())
    wanted = wanted or gold.split()
    # `in` on the iterator consumes it up to the match: that is the subsequence test.
    return bool(wanted) and all(token in rest for token in wanted)
