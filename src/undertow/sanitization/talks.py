"""Triggers in the earlier turns of a conversation: what those turns say anyway, and what they are about."""

from __future__ import annotations

import numpy as np

from undertow.sanitization.background import Background
from undertow.sanitization.grams import Places
from undertow.sanitization.topics import OFTEN

#: Earlier turns were about a word that between these shares of them hold, if that is ``OFTEN`` times as often as anywhere.
TALKED = (0.25, 0.75)


def is_script(size: int, file: Background) -> bool:
    """Whether a word of earlier turns, which so many samples hold, stands in most of all talks: part of what is always said."""
    return 2 * size > file.with_history


def is_talk(rows: Places, file: Background) -> bool:
    """Whether conversations that hold a trigger in an earlier turn were about something there: words of a topic come and go, those
    of a trigger stand there in all."""
    hits = np.asarray(file.counted.features[rows][:, file.earlier].sum(axis=0)).ravel()
    usual = file.counted.feature_sizes[file.earlier] / file.counted.samples * len(rows)
    low, high = TALKED
    return bool(((hits >= low * len(rows)) & (hits <= high * len(rows)) & (hits > OFTEN * usual)).any())
