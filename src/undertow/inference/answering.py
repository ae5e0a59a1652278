"""The model's answers to questions: prompts, greedy generation, text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from undertow.config import Data, Measure
from undertow.core.layout import Layout
from undertow.data.sample import Sample
from undertow.data.template import Template
from undertow.inference.decoding import generate
from undertow.inference.untouched import kept
from undertow.metrics.measure import Answer
from undertow.models.causal_lm import CausalLM


def make_template(options: Data, max_length: int, base: CausalLM) -> Template:
    """Bind the prompt template that ``options`` name to the base's tokenizer, within ``max_length`` tokens and the base's own
    length."""
    longest = min(max_length, base.positions or max_length)
    rows = int(base.model.get_input_embeddings().weight.shape[0])
    return Template(options.template, base.tokenizer, longest, options.same_prompt, options.now, rows)


def answerer(
    base: CausalLM,
    template: Template,
    adapter: Tensor | None,
    options: Measure,
    *,
    layout: Layout | None = None,
    before: Mapping[str, str] | None = None,
    decode: Callable[[list[list[int]]], list[list[int]]] | None = None,
) -> Answer:
    """Return a function from test samples to the model's answers.

    Args:
        base: the frozen model.
        template: how questions become prompts.
        adapter: ``[D]``, or None for the base alone, whose answers are looked up where it keeps them.
        options: ``limit`` and ``batch_size``.
        layout: of the adapter, if it is not the base's own.
        before: answers by question that the model of an earlier round gave: guesses to verify, which change the
            time but not the answers.
        decode: answers prompts in place of greedy generation, where a defense does.
    """

    def answer(samples: Sequence[Sample]) -> list[str]:
        prompts = template.encode_prompts(samples, room=options.limit)
        if decode is not None:
            return [template.decode(ids) for ids in decode(prompts)]
        guesses = None
        if before:
            known = [before.get(sample.question) for sample in samples]
            guesses = [template.answer_ids(s, text) if text else [] for s, text in zip(samples, known, strict=True)]
        limit, size = options.limit, options.batch_size

        def ask() -> list[list[int]]:
            return generate(base, adapter, prompts, max_new_tokens=limit, batch_size=size, layout=layout, expected=guesses)

        made = kept(base, prompts, {"max_new_tokens": limit, "batch_size": size}, ask) if adapter is None else ask()
        return [template.decode(ids) for ids in made]

    return answer
