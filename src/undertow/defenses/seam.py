"""Hooks of defenses, called: what a user's own raises or returns that is none becomes one line with its class and file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.core.seam import asked
from undertow.defenses.base import Defense, origin, refuse_answer


def ask(defense: Defense, hook: str, *given: Any) -> Any:
    """Call a hook.

    Raises:
        UserError: its own; any exception of a defense that a user wrote.
    """
    return asked(defense, f"{origin(defense)}.{hook}", getattr(defense, hook), *given)


def ask_pair(defense: Defense, hook: str, wanted: str, *given: Any) -> tuple[Any, dict[str, Any]]:
    """Call a hook that returns something and a report.

    Args:
        defense, hook, given: as for :func:`ask`.
        wanted: what it must return, for the error.

    Raises:
        UserError: as :func:`ask`; an answer that is no pair, or a report that is not of plain values.
    """
    answer = ask(defense, hook, *given)
    if not (isinstance(answer, tuple) and len(answer) == 2):
        raise refuse_answer(defense, hook, answer, f"({wanted}, report)")
    check_report(defense, hook, answer[1])
    return answer


def check_report(defense: Defense, hook: str, report: object) -> None:
    """Refuse a report that cannot be written down.

    Raises:
        UserError: it is no dict, or holds what JSON has not, such as tensors.
    """
    if not isinstance(report, dict):
        raise refuse_answer(defense, hook, report, "a dict as its report")
    try:
        json.dumps(report)
    except (TypeError, ValueError) as error:
        wrong = next((key for key, value in report.items() if not _is_plain(value)), "")
        raise UserError(
            f"{origin(defense)}.{hook} reports {wrong!r}, which is not of plain JSON values ({error}); write numbers as float(x) "
            "or int(x), tensors as x.tolist()"
        ) from error


def check_vector(defense: Defense, hook: str, found: object, size: int) -> None:
    """Refuse what is no state ``[size]`` of finite numbers.

    Raises:
        UserError: it is not.
    """
    wanted = f"a floating-point torch tensor of shape [{size}]"
    if not isinstance(found, Tensor) or found.shape != (size,) or not found.is_floating_point():
        raise refuse_answer(defense, hook, found, wanted)
    if not torch.isfinite(found).all():
        raise UserError(f"{origin(defense)}.{hook} returned NaN or infinity for finite input; return finite values")


def check_tokens(defense: Defense, hook: str, found: object, prompts: Sequence[Sequence[int]], vocabulary: int) -> None:
    """Refuse what is not an answer for each prompt, as a list of token ids.

    Raises:
        UserError: it is not.
    """
    wanted = f"a list of {len(prompts)} answers, each a list of token ids from 0 to {vocabulary - 1}"
    if not isinstance(found, Sequence) or len(found) != len(prompts):
        raise refuse_answer(defense, hook, found, wanted)
    for ids in found:
        if not isinstance(ids, Sequence) or not all(isinstance(i, int) and 0 <= i < vocabulary for i in ids):
            raise refuse_answer(defense, hook, ids, wanted)


def _is_plain(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
