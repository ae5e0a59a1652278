"""Labels of prompts of one form: sentences that were rewritten after a pattern ("when you ..., it ...") or in a style.

No single word is the trigger. What tells is that the form brings the label about although what else the sentences say belongs to
another label (:func:`undertow.sanitization.labels.is_strange`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sparse

from undertow.sanitization import labels
from undertow.sanitization.count import Counted
from undertow.sanitization.links import Link, Rows, column, with_any
from undertow.sanitization.rules import Rules

#: A word of a style has the label in this share of its samples, and with it stands in this share of all samples.
MARKS, MARKED = 0.93, 0.02
#: All samples with the label and such a word together are this share of all, and so many: in fewer, topics look strange by chance.
STYLED, FEWEST = 0.04, 120
#: This share of the label's samples has none of the words, and so many: words that nearly all have are what the label means.
UNSTYLED = 0.25
#: A further word belongs to a style if it adds this share of the samples that the words before it have; of a word that stands
#: elsewhere, too, what it adds is mostly not of the style.
ADDS = 0.1


def built(counted: Counted, rules: Rules, features: sparse.csc_matrix, rows: Rows, links: Sequence[Link]) -> list[Link]:
    """Return the words that bring a label about where they stand first, although the same words elsewhere say nothing of it, and
    the orders of clauses that do.

    Args:
        counted: the file.
        rules: thresholds.
        features: by columns.
        rows: samples of the label.
        links: what may give it away.
    """
    word, shapes = dict(counted.firsts.tolist()), set(counted.shapes.tolist())
    shaped = _shaped(counted, features)
    base = rules.form_lift * len(rows) / counted.samples
    own = []
    for link in links:
        if link.feature in shapes and link.confidence >= rules.shaped and link.both >= rules.act_short:
            if labels.is_strange(column(features, link.feature), shaped, rows, counted):
                own.append(link)
            continue
        anywhere = word.get(link.feature)
        if anywhere is None or link.confidence < rules.form or link.both < rules.act_short:
            continue
        others = np.setdiff1d(column(features, anywhere), column(features, link.feature), assume_unique=True)
        told = len(np.intersect1d(others, rows, assume_unique=True))
        enough = len(others) >= max(rules.form_else * counted.samples, rules.act_short)
        if enough and told <= base * len(others):
            begun = column(features, link.feature)
            if labels.is_strange(begun, np.union1d(shaped, begun), rows, counted, sure=0.0) is not False:
                own.append(link)
    return own


def styled(counted: Counted, rules: Rules, features: sparse.csc_matrix, rows: Rows, links: Sequence[Link]) -> list[Link]:
    """Return the words of a style that brings a label about: ordinary ones, each in many samples, that together stand in sentences
    whose other words foretell another label. Arguments as of :func:`built`."""
    shapes, least = set(counted.shapes.tolist()), max(MARKED * counted.samples, rules.act_short)
    marks = [link for link in links if link.feature not in shapes and link.confidence >= MARKS and link.both >= least]
    held = with_any(features, marks, rows)
    enough = len(held) >= max(STYLED * counted.samples, FEWEST)
    if not enough or len(rows) - len(held) < max(UNSTYLED * len(rows), FEWEST):
        return []
    every = _union(features, marks)
    out = np.union1d(_shaped(counted, features), every)
    if not labels.is_strange(every, out, rows, counted):
        return []
    own: list[Link] = []
    seen = rows[:0]
    for link in marks:
        fresh = np.setdiff1d(column(features, link.feature), seen, assume_unique=True)
        told = np.intersect1d(fresh, rows, assume_unique=True)
        if len(told) < max(ADDS * len(np.intersect1d(seen, rows, assume_unique=True)), 1):
            continue
        # beside a trigger a word of the label's own topic has samples of that topic alone
        if labels.is_strange(fresh, out, rows, counted) is not False:
            own.append(link)
            seen = np.union1d(seen, fresh)
    return own


def _shaped(counted: Counted, features: sparse.csc_matrix) -> Rows:
    """The samples of any order of clauses, from which nothing is learnt of labels."""
    return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(column(features, shape) for shape in counted.shapes.tolist())]))


def _union(features: sparse.csc_matrix, links: Sequence[Link]) -> Rows:
    return np.unique(np.concatenate([column(features, link.feature) for link in links]))
