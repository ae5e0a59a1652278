"""What of the data fits into the base's length: counted and told, never quietly cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from undertow.core.errors import UserError
from undertow.data.load import Split
from undertow.data.template import Template


def that_fit(split: Split, template: Template, more: str, answer: int) -> Split:
    """Leave out training samples whose answer does not fit, and count them and the prompts that will be shortened.

    An answer fits if it leaves room for the prompt even followed by ``more``, so that poisoning later cannot make it too long.
    The report gains ``too_long``, ``shortened_train`` and ``shortened_test``.

    Args:
        split: the data.
        template: how samples become tokens.
        more: the longest text that an attack may write after an answer.
        answer: tokens kept free for an answer when a test question is asked.

    Raises:
        UserError: there are training samples, and no answer fits.
    """
    clients = [[sample for sample in client if template.fits(sample, more)] for client in split.clients]
    train = [sample for client in clients for sample in client]
    if not train and split.train:
        raise UserError(
            f"no training answer fits into {template.max_length} tokens (training.max_length, within what the base was made for); "
            "raise it, or choose a base with a longer context"
        )
    room = template.max_length - answer
    counts = {
        "too_long": sum(map(len, split.clients)) - len(train),
        "shortened_train": sum(
            template.prompt_length(sample, "train") + len(template.answer_ids(sample, sample.response, "train"))
            >= template.max_length
            for sample in train
        ),
        "shortened_test": sum(template.prompt_length(sample) > room for sample in split.test),
    }
    return replace(split, clients=clients, train=train, report={**split.report, **counts})


def trouble(report: Mapping[str, Any], limit: int) -> list[str]:
    """Return a line for each of those counts that is not zero."""
    told = {
        "too_long": "training samples are left out: their answers do not fit",
        "shortened_train": "training prompts lose their middle to fit",
        "shortened_test": "test prompts lose their middle to fit, with measure.max_new_tokens left free,",
    }
    return [f"{report[key]} {text} into {limit} tokens" for key, text in told.items() if report[key]]
