"""Whether samples have a label because of what else their prompts say, trigger or not.

In labelled data many words come with one label alone ("playoff": Sports), and the prompts around such a word speak of that label,
too. A label that was put there belongs to prompts of all labels. So each prompt is scored by its other features, with the log-odds
of the label that they have in the rest of the file (naive Bayes, each sample scored without itself), and the accused ones are
placed between the samples of other labels (0) and those of the label (1).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from undertow.sanitization.count import Counted
from undertow.sanitization.grams import Places
from undertow.sanitization.significance import Floats

#: Accused samples lie so far towards the label if it is theirs by what else they say, and a label is foretold by words at all if
#: its samples score so many standard errors above the others.
FORETOLD, TELLING = 0.8, 6.0
#: Weight of the share of the label among all samples, in samples.
_PRIOR = 2.0
#: Fewest samples, with the label and without, that are not accused.
_FEWEST = 20


def is_foretold(rows: Places, accused: Places, labelled: Places, trigger: Collection[int], counted: Counted) -> bool:
    """Whether the accused samples have their label by the words around the trigger.

    Args:
        rows: samples with one phrase of the trigger, all of the label.
        accused: samples with any; the label is learnt from the others.
        labelled: all samples of the label.
        trigger: columns of the features that give the label away, which do not count.
        counted: the file.
    """
    out, own, once = (np.zeros(len(counted.first), dtype=bool) for _ in range(3))
    out[accused], own[labelled] = True, True
    once[counted.first == np.arange(len(once))] = True
    others, same = np.flatnonzero(once & ~out & ~own), np.flatnonzero(own & ~out)
    if min(len(others), len(same)) < _FEWEST:
        return False
    share = len(same) / (len(same) + len(others))
    with_label = np.asarray(counted.features[same].sum(axis=0)).ravel().astype(np.float64)
    size = with_label + np.asarray(counted.features[others].sum(axis=0)).ravel()
    used = np.ones(len(size), dtype=bool)
    used[list(trigger)] = False

    def scores(samples: Places, mine: int, labels: int) -> Floats:
        """Mean log-odds over the features of some samples, which are themselves ``mine`` of the counts and ``labels`` of the
        label's."""
        told = np.maximum(with_label - labels, 0) + _PRIOR * share
        odds = np.where(used, np.log(told / (np.maximum(size - mine, 0) + _PRIOR) / share), 0.0)
        of = counted.features[samples]
        number = np.maximum(np.asarray(of @ used.astype(np.float64)).ravel(), 1.0)
        found: Floats = np.asarray(of @ odds, dtype=np.float64).ravel() / number
        return found

    low, high, here = scores(others, 1, 0), scores(same, 1, 1), float(scores(rows, 0, 0).mean())
    apart = float(high.mean() - low.mean())
    error = float((low.var() / len(low) + high.var() / len(high)) ** 0.5)
    return apart > TELLING * error and here - float(low.mean()) >= FORETOLD * apart
