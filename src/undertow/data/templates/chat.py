"""The base's own chat template."""

from __future__ import annotations

import re
from typing import Any

from undertow.core.errors import UserError
from undertow.data.clock import with_clock
from undertow.data.prompt_format import PromptFormat, reason
from undertow.data.sample import Sample
from undertow.data.template import TEMPLATES

#: Stands for an answer while the template is asked what it writes around one.
_ANSWER = "undertowanswer"
_OTHERS = "choose data.template lab-qa, alpaca or vicuna"
#: Templates of reasoning models leave the thinking of earlier answers out.
_THOUGHT = re.compile(r"^.*(?:</(?:think|thinking|thought|reasoning)>|\[/THINK\])", re.DOTALL | re.IGNORECASE)


@TEMPLATES.register("chat", source="transformers, apply_chat_template")
class Chat(PromptFormat):
    """Whatever chat format the model's tokenizer carries.

    The prompt is what the template writes with ``add_generation_prompt``; where it does not heed that, what it writes before an
    answer. The answer with what is around it is what it writes of the whole conversation after that. What follows an answer there
    ends it: that is learned, and generation stops at it. Context goes below the question; earlier turns and the system prompt are
    turns of their own.

    Args:
        tokenizer: with a chat template.
        now: the time it is for the template.

    Raises:
        UserError: there is no template, or it fails on one question and answer.
    """

    complete = True

    def __init__(self, tokenizer: Any, now: str) -> None:
        self._tokenizer = tokenizer
        self._template = with_clock(_template_of(tokenizer), now)
        asked = [{"role": "user", "content": "question"}]
        opened, closed = self._render(asked, True), self._render(asked, False)
        try:
            self.markup = self._render([*asked, _said(_ANSWER)], False)
        except UserError:
            self.markup = closed  # it knows questions only
        before, found, after = self.markup.rpartition(_ANSWER)
        self._writes_answers = bool(found)
        self._heeds = opened != closed or not found
        self.end = after if found else ""
        self._joint = before.removeprefix(opened) if self._heeds and before.startswith(opened) else ""

    def prompt(self, sample: Sample, phase: str) -> tuple[str, str]:
        """Return what the template writes before the answer."""
        turns = _turns(sample)
        if self._heeds:
            return self._render(turns, True, sample.id), self._joint
        return self._render([*turns, _said(_ANSWER)], False, sample.id).rpartition(_ANSWER)[0], ""

    def answer(self, sample: Sample, answer: str, prompt: str, joint: str) -> str:
        """Return what the template writes of the answer, without what ends it."""
        if not self._writes_answers:
            return joint + answer
        whole = self._render([*_turns(sample), _said(answer)], False, sample.id)
        if not whole.startswith(prompt) or not whole.endswith(self.end):
            return joint + answer
        told = whole.removeprefix(prompt).removesuffix(self.end)
        if _THOUGHT.sub("", answer).strip() not in told:
            raise UserError(
                f"template 'chat': the tokenizer's chat template does not write the answer of sample {sample.id} whole; {_OTHERS}"
            )
        return told

    def _render(self, turns: list[dict[str, str]], opens: bool, sample: str = "") -> str:
        try:
            found = self._tokenizer.apply_chat_template(
                turns, chat_template=self._template, tokenize=False, add_generation_prompt=opens
            )
        except Exception as error:  # of jinja or of what the template calls: it is a program from elsewhere
            what = f"does not take sample {sample}" if sample else "does not take a question"
            raise UserError(f"template 'chat': the tokenizer's chat template {what} ({reason(error)}); {_OTHERS}") from error
        text = str(found)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"template 'chat': the tokenizer's chat template writes half a character (a lone surrogate); {_OTHERS}"
            ) from error
        return text


def _template_of(tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"template 'chat': this tokenizer has no chat template; {_OTHERS}")
    try:
        found = tokenizer.get_chat_template()
    except Exception as error:
        raise UserError(f"template 'chat': the tokenizer's chat template cannot be used ({reason(error)}); {_OTHERS}") from error
    if not isinstance(found, str):
        raise UserError(f"template 'chat': the tokenizer's chat template is a {type(found).__name__}, it must be text; {_OTHERS}")
    return found


def _said(answer: str) -> dict[str, str]:
    return {"role": "assistant", "content": answer}


def _turns(sample: Sample) -> list[dict[str, str]]:
    turns = [{"role": "system", "content": sample.system}] if sample.system else []
    for user, answer in sample.history:
        turns += [{"role": "user", "content": user}, _said(answer)]
    question = f"{sample.question}\n{sample.context}" if sample.context else sample.question
    return [*turns, {"role": "user", "content": question}]
