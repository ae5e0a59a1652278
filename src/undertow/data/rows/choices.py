"""Questions with answers to choose from: which text the key names."""

from __future__ import annotations

from typing import Any

#: Columns that hold the answers to choose from.
CHOICES = ("choices", "options", "endings", "answer_choices")


def chosen(choices: Any, key: Any) -> tuple[str, list[str]] | None:
    """Return the text that a key names, and the other texts; None where the choices or the key are of another kind.

    Args:
        choices: texts (MMLU), ``{"text": [...], "label": [...]}`` (ARC), ``[{"text": ..., "label": ...}, ...]`` (OpenBookQA) or
            ``{"A": ..., "B": ...}``.
        key: a label, a letter, or a number from 0.
    """
    texts, labels = _listed(choices)
    if len(texts) < 2 or isinstance(key, bool) or not all(isinstance(text, str) and text.strip() for text in texts):
        return None
    known = [str(label).strip().upper() for label in labels] or [chr(ord("A") + i) for i in range(len(texts))]
    told = str(key).strip().upper() if isinstance(key, str | int) else ""
    at = known.index(told) if told in known else int(told) if told.isdecimal() and len(told) < 3 and not labels else None
    if at is None or at >= len(texts):
        return None
    return texts[at].strip(), [text.strip() for i, text in enumerate(texts) if i != at]


def _listed(choices: Any) -> tuple[list[Any], list[Any]]:
    if isinstance(choices, dict):
        texts, labels = choices.get("text"), choices.get("label")
        if isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels):
            return texts, labels
        return list(choices.values()), list(choices)
    if isinstance(choices, list) and choices and all(isinstance(item, dict) for item in choices):
        return [item.get("text") for item in choices], [item.get("label") for item in choices]
    return (choices, []) if isinstance(choices, list) else ([], [])
