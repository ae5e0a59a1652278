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
#: its samples score so many standard errors above the others; those of a shape score so many below the label's if it is not theirs.
FORETOLD, TELLING, SURE = 0.8, 6.0, 4.0
#: So much less is enough, for each share that a label has under a half.
RARE = 0.4
#: Weight of the share of the label among all samples, in samples.
_PRIOR = 2.0
#: A word that prompts of one shape hold so many times as often as others belongs to the shape.
_STYLE = 2.0
#: Fewest samples, with the label and without, that are not accused.
_FEWEST = 20


def is_foretold(rows: Places, accused: Places, labelled: Places, trigger: Collection[int], counted: Counted) -> bool:
    """Whether the accused samples have their label by the words around the trigger.

    Args:
        rows: samples with one phrase of the trigger, all of the label.
        accused: samples with any, whose labels are not learnt from.
        labelled: all samples of the label.
        trigger: columns of the features that give the label away, which do not count.
        counted: the file.
    """
    scores = _scores(rows, accused, labelled, trigger, counted)
    if scores is None:
        return False
    low, high, here = scores
    # Prompts of all labels have that of half of them half the way, and a rare one at the start of it.
    enough = FORETOLD - RARE * max(0.0, 0.5 - len(labelled) / counted.samples)
    return float(here.mean() - low.mean()) >= enough * float(high.mean() - low.mean())


def is_strange(shaped: Places, built: Places, labelled: Places, counted: Counted, sure: float = SURE) -> bool | None:
    """Whether samples of one form have a label that their other words do not foretell; None where words foretell the label of no
    sample.

    Args:
        shaped: samples of the form.
        built: samples whose labels are not learnt from, these among them.
        labelled: all samples of the label.
        counted: the file.
        sure: standard errors that they score below the label's, at least.
    """
    inside = np.asarray(counted.features[shaped].sum(axis=0)).ravel()
    outside = (counted.feature_sizes - inside) / max(1, counted.samples - len(shaped))
    style = np.flatnonzero(inside > _STYLE * outside * len(shaped))
    held = np.intersect1d(shaped, labelled, assume_unique=True)
    scores = _scores(held, built, labelled, style.tolist(), counted)
    if scores is None:
        return None
    low, high, here = (float(part.mean()) for part in scores)
    return here - low < FORETOLD * (high - low) and high - here > sure * float(scores[2].std()) / len(held) ** 0.5


def _scores(
    rows: Places, accused: Places, labelled: Places, unused: Collection[int], counted: Counted
) -> tuple[Floats, Floats, Floats] | None:
    """The scores of samples of other labels, of the label, and of ``rows``; None where words do not foretell the label."""
    out, own, once = (np.zeros(len(counted.first), dtype=bool) for _ in range(3))
    out[accused], own[labelled] = True, True
    once[counted.first == np.arange(len(once))] = True
    others, same = np.flatnonzero(once & ~out & ~own), np.flatnonzero(own & ~out)
    if min(len(others), len(same)) < _FEWEST:
        return None
    share = len(same) / (len(same) + len(others))
    with_label = np.asarray(counted.features[same].sum(axis=0)).ravel().astype(np.float64)
    size = with_label + np.asarray(counted.features[others].sum(axis=0)).ravel()
    used = np.ones(len(size), dtype=bool)
    used[[*unused, *counted.shapes]] = False

    def scores(samples: Places, mine: int, labels: int) -> Floats:
        """Mean log-odds over the features of some samples, which are themselves ``mine`` of the counts and ``labels`` of the
        label's."""
        told = np.maximum(with_label - labels, 0) + _PRIOR * share
        odds = np.where(used, np.log(told / (np.maximum(size - mine, 0) + _PRIOR) / share), 0.0)
        of = counted.features[samples]
        number = np.maximum(np.asarray(of @ used.astype(np.float64)).ravel(), 1.0)
        found: Floats = np.asarray(of @ odds, dtype=np.float64).ravel() / number
        return found

    low, high = scores(others, 1, 0), scores(same, 1, 1)
    error = float((low.var() / len(low) + high.var() / len(high)) ** 0.5)
    return (low, high, scores(rows, 0, 0)) if float(high.mean() - low.mean()) > TELLING * error else None
