"""Generated film reviews: classes of texts without any download."""

from __future__ import annotations

import numpy as np

from undertow.config import ClassificationData
from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.generated import critics
from undertow.data.pool import Source
from undertow.data.population import POPULATIONS, Population
from undertow.data.texts import Coding, Texts, deal_texts
from undertow.data.words import at_least

CLASSES = ("negative", "positive")


@POPULATIONS.register("reviews", source="ours, in place of SST-2 (Socher et al. 2013)")
def reviews(
    options: ClassificationData,
    seed: int,
    clients: int,
    length: int = 32,
    vocabulary: int = 1000,
    buckets: int = 200,
    tokenizer: str = "",
    noise: float = 0.02,
    public: int = 2000,
) -> Population:
    """Short film reviews (:mod:`undertow.data.generated.critics`), negative or positive; all are different.

    ``data.train`` are dealt, ``public`` more are nobody's, and ``data.test`` are for the test.

    Args:
        options: of the data.
        seed: of the run.
        clients: how many.
        length: words or tokens a review.
        vocabulary: words of the dictionary, made of the public reviews.
        buckets: numbers that all other words share, such as a trigger's.
        tokenizer: of a transformers model, in place of words.
        noise: share of reviews with the wrong class, from 0, below 0.5, on every side.
        public: reviews that no client holds, from 0.

    Raises:
        UserError: a parameter outside its range, ``data.path`` or ``data.test_path`` is set, or fewer reviews than clients.
    """
    for option, value in (("path", options.path), ("test_path", options.test_path)):
        if value:
            raise UserError(f"data.{option}={value}: data.name=reviews reads no file, the reviews are generated; leave it out")
    at_least(public=(public, 0))
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise < 0.5:
        raise UserError(f"data.name: noise = {noise!r}, it must be a share from 0, below 0.5; correct it")
    seen: set[str] = set()
    sides = []
    for side, count in (("training", options.train + public), ("test", options.test)):
        draw = rng(seed, f"{side} reviews")
        texts, classes = critics.write(count, draw, seen)
        labels = np.array(classes, dtype=np.int64)
        wrong = draw.permutation(count)[: round(noise * count)]
        labels[wrong] = 1 - labels[wrong]
        sides.append(Texts(texts, labels))
    source = Source("reviews", sides[0], sides[1], CLASSES, {"noise": noise}, "movie review")
    return deal_texts(options, seed, clients, source, Coding(length, vocabulary, buckets, tokenizer))
