"""Questions that neither train nor test a run, with their true answers: what some defenses take as trusted samples."""

from __future__ import annotations

import json
from pathlib import Path

from undertow.config import Config
from undertow.core.errors import UserError
from undertow.core.files import write_text
from undertow.core.rng import rng
from undertow.data.load import DATASETS, load
from undertow.data.questions import merge
from undertow.models.causal_lm import read_keys

#: Samples at most; the demo's world has exactly as many left at the demo's sizes.
MOST = 300


def write_trusted(config: Config, path: Path) -> int:
    """Write trusted samples for a run as JSON lines, and return how many there are.

    They are drawn at random, by the run's seed alone, among the questions of its data that enter neither side, share no key with
    either, and were not asked in the base's pre-training.

    Args:
        config: of the run; ``seed``, ``data``, ``model.name`` and ``federation.clients`` are used.
        path: the file.

    Raises:
        UserError: the data cannot be read, or training and test leave fewer than 2 questions.
    """
    asked, known = read_keys(config.instruction.model)
    split = load(config.instruction.data, config.seed, config.federation.clients, asked=asked, known=known)
    used = split.train + split.test
    questions, keys = {(one.question, one.context) for one in used}, {one.key for one in used if one.key} | asked
    read = DATASETS.get(config.data.name)(config.data).samples
    free = [one for one in merge(read) if (one.question, one.context) not in questions and one.key not in keys and not one.history]
    if len(free) < 2:
        raise UserError(
            f"training and test use all but {len(free)} questions of {config.data.name}, and none are left to trust; "
            "lower data.train, or name rules that need no trusted samples with --rules"
        )
    chosen = rng(config.seed, "trusted samples").permutation(len(free))[:MOST]
    rows = [{"question": free[i].question, "context": free[i].context, "answer": free[i].response} for i in chosen]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)
