"""The loss of right answers to the test questions: what still tells learning where no answer is ever word for word."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.data.sample import Sample
from undertow.data.template import Encoded, Template
from undertow.models.causal_lm import CausalLM
from undertow.training.token_nll import token_nll


def held_out_loss(
    base: CausalLM, template: Template, asked: Sequence[Sample], adapter: Tensor | None, layout: Layout | None = None
) -> float | None:
    """Return the mean token NLL of the expected answers, in nats: -1/N sum log p(y_i | prompt, y_<i) over all their N tokens.

    The prompts are those that are asked, without trigger; an answer ends with what ends it in training. Nothing is drawn at random
    and no answer is generated, so that defenses that decode have no part in it.

    Args:
        base: the frozen model.
        template: how questions become prompts.
        asked: test questions as they are; one whose prompt does not fit beside its answer is left out.
        adapter: ``[D]``; None = the base alone.
        layout: of the adapter, where it is not the base's own.

    Returns:
        None where there is no question. What is no number says that the adapter gives logits that are none.
    """
    rows = [row for row in (_encoded(template, sample) for sample in asked) if row is not None]
    values = [value for nll in token_nll(base, rows, adapter, layout) for value in nll]
    return sum(values) / len(values) if values else None


def _encoded(template: Template, sample: Sample) -> Encoded | None:
    try:
        return template.encode(sample, "test")
    except UserError:  # a prompt that its answer leaves no room for; a template that fails has failed at asking
        return None
