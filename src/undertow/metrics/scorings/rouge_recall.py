"""ROUGE-L recall of 1."""

from __future__ import annotations

import re

from undertow.metrics.scoring import SCORINGS

_RUN = re.compile(r"[a-z0-9]+")


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
