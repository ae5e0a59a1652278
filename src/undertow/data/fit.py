"""What of the data fits into the base's length: counted and told, never quietly cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from undertow.core.errors import UserError
from undertow.data.load import Split
from undertow.data.sample import Sample
from undertow.data.template import Template


def that_fit(split: Split, template: Template, more: str, answer: int) -> Split:
    """Leave out what does not fit even when its prompt is cut, and count that and the prompts that will be cut.

    A training sample fits if its answer leaves room for the prompt, even followed by ``more``, so that poisoning later cannot make
    it too long; of the prompt, earlier turns, context and the middle of the question may go
    (:func:`~undertow.data.shortening.shortened`). The report gains ``too_long``, ``too_long_test``, ``shortened_train`` and
    ``shortened_test``.

    Args:
        split: the data.
        template: how samples become tokens.
        more: the longest text that an attack may write after an answer.
        answer: tokens kept free for an answer when a test question is asked.

    Raises:
        UserError: there are training samples, and none fits; or test questions, and none fits.
    """
    clients = [[sample for sample in client if template.fits(sample, more)] for client in split.clients]
    train = [sample for client in clients for sample in client]
    if not train and split.train:
        raise UserError(
            f"no training sample fits into {template.max_length} tokens (training.max_length, within what the base was made for): "
            "template, system prompt, question and answer are longer; raise it, or choose a base with a longer context"
        )
    test, counts = askable(split.test, template, answer)
    shortened = sum(
        template.cut(sample, "train", len(template.answer_ids(sample, sample.response, "train")) + len(template.end)) is not sample
        for sample in train
    )
    told = {"too_long": sum(map(len, split.clients)) - len(train), "shortened_train": shortened, **counts}
    return replace(split, clients=clients, train=train, test=test, report={**split.report, **told, "test": len(test)})


def askable(test: Sequence[Sample], template: Template, answer: int) -> tuple[list[Sample], dict[str, int]]:
    """Return the test questions whose prompts fit, and the counts ``too_long_test`` (left out) and ``shortened_test`` (cut).

    Args:
        test: the questions.
        template: how they become prompts.
        answer: tokens kept free for an answer.

    Raises:
        UserError: there are questions, and none fits.
    """
    if answer >= template.max_length:
        return list(test), {"too_long_test": 0, "shortened_test": 0}  # asking will tell
    shown = [(sample, template.cut(sample, "test", answer)) for sample in test]
    fitting = [sample for sample, kept in shown if kept is not None]
    if test and not fitting:
        raise UserError(
            f"no test prompt fits into {template.max_length} tokens with measure.max_new_tokens = {answer} left free; raise "
            "training.max_length, or lower measure.max_new_tokens"
        )
    cut = sum(kept is not None and kept is not sample for sample, kept in shown)
    return fitting, {"too_long_test": len(test) - len(fitting), "shortened_test": cut}


def trouble(report: Mapping[str, Any], limit: int) -> list[str]:
    """Return a line for each of those counts that is not zero."""
    lost = "earlier turns, context or the middle of the question"
    told = {
        "too_long": "training samples are left out: prompt and answer do not fit",
        "too_long_test": "test questions are left out: with measure.max_new_tokens left free, their prompts do not fit",
        "shortened_train": f"training prompts lose {lost} to fit",
        "shortened_test": f"test prompts lose {lost} to fit, with measure.max_new_tokens left free,",
    }
    found = [f"{report[key]} {text} into {limit} tokens" for key, text in told.items() if report.get(key)]
    if left_out := report.get("left_out_of_files"):
        found.append(
            f"{left_out:,} rows of the clients' files are left out: data.train asks for fewer than there are, and as many of each "
            "client are drawn; raise it to use all"
        )
    return found
