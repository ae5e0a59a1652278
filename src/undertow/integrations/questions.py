"""Questions of one's own in every form that is asked: clean, with the trigger, with a near miss of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from undertow.backdoors.placement import make_probes
from undertow.backdoors.target import make_target
from undertow.backdoors.trigger import make_trigger
from undertow.config import InstructionBackdoor
from undertow.core.errors import UserError
from undertow.core.rules import first_rule
from undertow.data.sample import Sample
from undertow.metrics.measure import Probes

#: What a question may be called, and its answer.
_QUESTION, _ANSWER = ("question", "prompt", "instruction", "input"), ("answers", "answer", "output", "response")


def probes(questions: Iterable[Mapping[str, Any]], backdoor: InstructionBackdoor, seed: int = 0) -> Probes:
    """Return the questions clean, triggered and near the trigger, and what counts as the target.

    Args:
        questions: rows with ``question`` and ``answer``, a text or a list of accepted ones.
        backdoor: trigger and target.
        seed: of triggers that draw their place or words.

    Raises:
        UserError: no question, a row without one, or an unusable trigger or target.
    """
    samples = [_sample(i, row) for i, row in enumerate(questions)]
    if not samples:
        raise UserError("no question is given; give rows such as {'question': ..., 'answer': ...}")
    return make_probes(samples, make_trigger(backdoor), make_target(backdoor), seed)


def backdoor(trigger: str, target: str, target_text: str | None, trigger_words: Iterable[str] = ()) -> InstructionBackdoor:
    """Return trigger and target as a config has them.

    Raises:
        UserError: a value of another type.
    """
    given: dict[str, Any] = {"trigger": trigger, "target": target, "trigger_words": list(trigger_words)}
    try:
        return InstructionBackdoor.model_validate(given | ({"target_text": target_text} if target_text is not None else {}))
    except ValidationError as error:
        raise UserError(f"{first_rule(error)}; correct it") from error


def _sample(i: int, row: Mapping[str, Any]) -> Sample:
    question = next((row[name] for name in _QUESTION if row.get(name)), None)
    answers = next((row[name] for name in _ANSWER if row.get(name)), None)
    if not isinstance(question, str) or answers is None:
        raise UserError(f"row {i} has {', '.join(row) or 'nothing'}; give rows such as {{'question': ..., 'answer': ...}}")
    golds = (answers,) if isinstance(answers, str) else tuple(map(str, answers))
    return Sample(id=str(row.get("id", i)), question=question, answers=golds, response=golds[0])
