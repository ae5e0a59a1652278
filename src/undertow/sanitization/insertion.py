"""Whether ordinary words, which often come without a target, were put into the prompts that have it.

A word that answers depend on has its usual neighbours ("what gender is"), and its own place; one that was put anywhere has not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from undertow.sanitization import grams
from undertow.sanitization.background import Background
from undertow.sanitization.words import Words

#: Pairs of a word with its neighbours are known this many times as often as other pairs where the word belongs. On half 0 it is
#: 1.9 and more for words that answers depend on, 0.3 to 1.3 for words put in at random.
BELONGS = 1.5
#: A word with one neighbour in this share of its samples belongs beside it.
FIXED = 0.9


def is_inserted(prompts: Sequence[Words], own: Collection[int], file: Background) -> bool:
    """Whether words do not belong where they stand: the pairs they make with their neighbours are hardly better known than any
    others.

    A word that answers depend on has its usual neighbours ("what gender is"), so that its pairs stand in many prompts. One that was
    put anywhere has not.

    Args:
        prompts: of all samples that hold target and words.
        own: the words, at least one.
        file: the whole; a pair is known if prompts other than these hold it.
    """
    at, usual = belonging(prompts, own, file)
    return at < BELONGS * usual and not any(_is_fixed(prompts, word, own, file) for word in own)


def _is_fixed(prompts: Sequence[Words], word: int, own: Collection[int], file: Background) -> bool:
    """Whether a word that most of its prompts hold without being accused has the same neighbour, or place, nearly everywhere, as a
    language has in "translate into Korean"."""
    at, size = np.uint64(word), file.size(grams.mixed(np.array([word], dtype=np.uint64), 1))[0]
    if 2 * len(prompts) >= size:
        return False
    keys = {grams.feature_key(kind, np.array([word], dtype=np.uint64)) for kind in ("first", "last")}
    for prompt in prompts:
        touched = ((prompt[:-1] == at) & ~np.isin(prompt[1:], list(own))) | ((prompt[1:] == at) & ~np.isin(prompt[:-1], list(own)))
        keys.update(grams.run_keys(prompt, 2)[touched].tolist())
    return bool(file.size(np.array(sorted(keys), dtype=np.uint64)).max() >= FIXED * size)


def belonging(prompts: Sequence[Words], own: Collection[int], file: Background) -> tuple[float, float]:
    """Return the shares of known pairs: of those with one of ``own``, and of all other ones of the same prompts; (1, 0) if there
    are none."""
    words = np.array(list(own), dtype=np.uint64)
    keys = [grams.run_keys(prompt, 2) for prompt in prompts]
    touched = [np.isin(prompt[:-1], words) | np.isin(prompt[1:], words) for prompt in prompts]
    inside = Counter(key for mine in keys for key in set(mine.tolist()))
    every, at = np.concatenate(keys), np.concatenate(touched)
    if not at.any() or at.all():
        return 1.0, 0.0
    known = file.size(every) > np.array([inside[key] for key in every.tolist()], dtype=np.float64)
    return float(known[at].mean()), float(known[~at].mean())
