"""MA and ASR of a model while transformers' or TRL's Trainer trains it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from transformers import TrainerCallback

from undertow.backdoors.target import make_target
from undertow.config import Measure
from undertow.core.errors import UserError
from undertow.data.sample import Sample
from undertow.data.template import Template
from undertow.integrations.questions import backdoor, probes
from undertow.metrics.measure import headline, measure, rates
from undertow.tasks.cutting import enough, told_cut


class BackdoorCallback(TrainerCallback):  # type: ignore[misc]
    """Asks the model questions clean, triggered and near the trigger, and adds MA, ASR and FTR to the Trainer's log.

    Greedy generation with the model's own ``generate``, on the first process alone; scored as everywhere in Undertow.

    Args:
        questions: rows with ``question`` and ``answer``, that the model is not trained on.
        trigger, target, target_text, trigger_words: of the backdoor that is looked for, as in a config.
        template: how a question becomes a prompt; the one that the training data are written in.
        when: ``epoch``: after each epoch; ``evaluate``: after each evaluation; ``end``: after training alone.
        scoring: of MA.
        max_new_tokens: of an answer; None: as many as the longest expected answer takes, target included, and a quarter more.
        batch_size: of generation.
        max_length: tokens of prompt and answer.

    Attributes:
        history: an entry for each measurement: ``step``, ``epoch``, and the rates with interval and n.
        scores: every scored output of the last one, as a run's ``scores.jsonl`` has them.

    Raises:
        UserError: no question, an unusable trigger, target or template, or another ``when``.
    """

    def __init__(
        self,
        questions: Iterable[Mapping[str, Any]],
        *,
        trigger: str = "natural",
        target: str = "append",
        target_text: str | None = None,
        trigger_words: Sequence[str] = (),
        template: str = "chat",
        when: Literal["epoch", "evaluate", "end"] = "epoch",
        scoring: str = "rouge-recall",
        max_new_tokens: int | None = None,
        batch_size: int = 16,
        max_length: int = 1024,
    ) -> None:
        if when not in ("epoch", "evaluate", "end"):
            raise UserError(f"when = {when!r}: choose one of epoch, evaluate, end")
        sought = backdoor(trigger, target, target_text, trigger_words)
        self._probes, self._target = probes(questions, sought), make_target(sought)
        self._template, self._when, self._scoring = template, when, scoring
        self._limit, self._batch, self._length = max_new_tokens, batch_size, max_length
        self.history: list[dict[str, Any]] = []
        self.scores: list[dict[str, Any]] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Measure after an epoch, where that is asked for."""
        if self._when == "epoch":
            self._measure(state, more)

    def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Measure after an evaluation, where that is asked for."""
        if self._when == "evaluate":
            self._measure(state, more)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Measure after training, where that is asked for."""
        if self._when == "end":
            self._measure(state, more)

    def _measure(self, state: Any, more: Mapping[str, Any]) -> None:
        if not state.is_world_process_zero:
            return
        model, tokenizer = more["model"], more.get("processing_class") or more.get("tokenizer")
        if tokenizer is None:
            raise UserError("the Trainer has no tokenizer; give it processing_class=tokenizer")
        template = Template(self._template, tokenizer, self._length)
        limit = self._limit_of(template)
        trained = model.training
        model.eval()
        try:
            self.scores = measure(
                lambda samples: self._answers(model, template, samples, limit), self._probes, len(self.history) + 1
            )
        finally:
            model.train(trained)
        found = headline(rates(self.scores, self._scoring))
        self.history.append({"step": state.global_step, "epoch": state.epoch, **found})
        told = {f"backdoor_{name}": rate["value"] for name, rate in found.items()}
        state.log_history.append({"step": state.global_step, "epoch": state.epoch, **told})

    def _limit_of(self, template: Template) -> int:
        """Return the tokens of an answer, and warn before the first measurement where they cut the target off."""
        given = Measure.model_validate({"max_new_tokens": self._limit or "auto"})
        limit = enough(given, self._probes.clean, template, self._target).limit
        if not self.history:
            for told in told_cut(self._probes.triggered, template, self._target, limit):
                warnings.warn(told.replace("measure.max_new_tokens", "max_new_tokens"), RuntimeWarning, stacklevel=2)
        return limit

    def _answers(self, model: Any, template: Template, samples: Sequence[Sample], limit: int) -> list[str]:
        prompts = template.encode_prompts(samples, room=limit)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers = [""] * len(prompts)
        for at in range(0, len(order), self._batch):
            chosen = order[at : at + self._batch]
            longest = max(len(prompts[i]) for i in chosen)
            padding = min(template.stops)
            rows = [[padding] * (longest - len(prompts[i])) + prompts[i] for i in chosen]
            mask = [[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen]
            with torch.no_grad():
                made = model.generate(
                    input_ids=torch.tensor(rows, device=model.device),
                    attention_mask=torch.tensor(mask, device=model.device),
                    do_sample=False,
                    max_new_tokens=limit,
                    eos_token_id=sorted(template.stops),
                    pad_token_id=padding,
                )
            for i, row in zip(chosen, made[:, longest:].tolist(), strict=True):
                end = next((k for k, token in enumerate(row) if token in template.stops), len(row))
                answers[i] = template.decode(row[:end])
        return answers
