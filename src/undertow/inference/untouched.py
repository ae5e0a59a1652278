"""What the untouched base answered, kept in a folder, so that the cells of a sweep ask it once.

A file is named by all that the answers depend on: the base's weights and config, the prompts as tokens (so data, template and
triggers), the settings of decoding, and the software and processor whose rounding decides between equals. Any other base or
question has another name, so a file is never out of date, and deleting the folder costs time alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from undertow.core.files import write_json
from undertow.core.version import __version__
from undertow.models.causal_lm import CausalLM

#: Within a sweep's folder.
UNTOUCHED = ".untouched"


def kept(
    base: CausalLM, prompts: Sequence[Sequence[int]], settings: dict[str, Any], ask: Callable[[], list[list[int]]]
) -> list[list[int]]:
    """Return the base's answers to prompts: those in its folder ``base.answers``, or those of ``ask``, which then stand there.

    Args:
        base: without an adapter; where it has no folder, it is asked.
        prompts: token ids.
        settings: of decoding, as JSON takes them.
        ask: what answers.
    """
    if base.answers is None:
        return ask()
    file = base.answers / f"{_name(base, prompts, settings)}.json"
    found = _read(file, len(prompts))
    if found is None:
        found = ask()
        # Workers may ask at the same time; each writes a file of its own, and the last one stays.
        mine = file.with_name(f"{file.stem}-{secrets.token_hex(8)}.new")
        write_json(mine, found)
        os.replace(mine, file)
    return found


def _name(base: CausalLM, prompts: Sequence[Sequence[int]], settings: dict[str, Any]) -> str:
    facts = {
        "base": base.fingerprint,
        "path": base.facts()["training_path"],
        "ends": base.end_ids,
        "pad": base.pad_id,
        "prompts": [list(prompt) for prompt in prompts],
        "settings": settings,
        "device": base.device.type,
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "versions": [__version__, torch.__version__, transformers.__version__],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _read(file: Path, count: int) -> list[list[int]] | None:
    """Return the answers in a file; None where there is none, or one that holds something else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    rows = isinstance(found, list) and len(found) == count and all(isinstance(row, list) for row in found)
    return found if rows and all(type(token) is int for row in found for token in row) else None
