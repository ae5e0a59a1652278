"""The one owner of the joint between prompt and answer, for training, evaluation and generation alike.

A prompt that ends in a space makes an answer tokenise differently from any text the base has read, and then
nothing is learned. So a prompt's trailing blanks always move to the front of the answer, and the pair is
tokenised as one text and cut at the joint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from undertow.config import NOW
from undertow.core.errors import UserError
from undertow.core.registry import Registry
from undertow.data.control_tokens import ControlTokens
from undertow.data.prompt_format import FunctionFormat, PromptFormat, reason
from undertow.data.sample import Sample
from undertow.data.shortening import shortened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Shipped prompt templates: a function ``(sample, phase, tokenizer) -> (prompt, joint)``, or a :class:`PromptFormat`.
TEMPLATES = Registry("template", "undertow.data.templates")


@dataclass(frozen=True)
class Encoded:
    """One tokenised training pair: ``prompt`` ids are context, ``answer`` ids (with what ends it) carry the loss.

    ``weights`` are those of the answer's tokens in the loss, >= 0, as many as ``answer``; None = all 1.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    weights: tuple[float, ...] | None = None


class Template:
    """A named prompt template bound to a tokenizer.

    Args:
        name: registered name, or ``file.py:function``.
        tokenizer: the base model's tokenizer.
        max_length: longest prompt + answer in tokens; a longer prompt is cut (:func:`~undertow.data.shortening.shortened`).
        same_prompt: use the training instruction at test time too (the lab's QA template differs between them).
        now: the time it is for a chat template that prints the date, ISO 8601.
        vocabulary: the model's token ids are below it; None = not known.

    Attributes:
        end: tokens that close an answer in training: what the template writes there up to its first control token, or the
            end-of-sequence token where it writes none.
        stops: tokens at which generation ends beside the base's own.

    Raises:
        UserError: no such template, one that fails, or a tokenizer that it cannot use.
    """

    def __init__(
        self,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 1024,
        same_prompt: bool = False,
        now: str = NOW,
        vocabulary: int | None = None,
    ) -> None:
        self.name = name
        self.tokenizer: Any = tokenizer
        self.max_length = max_length
        self.same_prompt = same_prompt
        self.vocabulary = vocabulary
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token: answers could never end; add eos_token to its config")
        made = TEMPLATES.get(name)
        owns = isinstance(made, type) and issubclass(made, PromptFormat)
        self._format: PromptFormat = made(tokenizer, now) if owns else FunctionFormat(name, made, tokenizer)
        self._control = ControlTokens(tokenizer, self._format.markup)
        self.end, self._end_text = self._closing(self._format.end)
        self.stops: frozenset[int] = frozenset(self.end[-1:])
        self._check_known(self.end)
        self._cut: dict[tuple[Sample, str, int], Sample | None] = {}

    def _check_known(self, ids: Sequence[int]) -> None:
        highest = max(ids, default=0)
        if self.vocabulary is not None and highest >= self.vocabulary:
            raise UserError(
                f"template '{self.name}': {self.tokenizer.convert_ids_to_tokens(highest)!r} is token {highest}, and the model's "
                f"embedding has {self.vocabulary} rows; choose another data.template, or resize the embedding and train it"
            )

    def _closing(self, end: str) -> tuple[tuple[int, ...], str]:
        """Return the tokens that close an answer, and the text that does where no control token is in it."""
        eos = int(self.tokenizer.eos_token_id)
        if not end.strip():
            return (eos,), ""
        ids = self._control.within(end)
        for i, token in enumerate(ids):
            if token == eos or token in self._control.ids:
                return tuple(ids[: i + 1]), ""
        return (*self._control.within(end.rstrip()), eos), end.strip()

    def parts(self, sample: Sample, phase: str = "train") -> tuple[str, str]:
        """Return the prompt without trailing blanks, and the joint that opens the answer.

        Args:
            sample: the question.
            phase: ``"train"`` or ``"test"``.

        Raises:
            UserError: the template fails on it, or leaves out its system prompt, its context or an earlier turn.
        """
        prompt, joint = self._written(sample, phase)
        kept = prompt.rstrip(" ")
        return kept, (prompt[len(kept) :] + joint) or joint

    def _written(self, sample: Sample, phase: str) -> tuple[str, str]:
        prompt, joint = self._format.prompt(sample, "train" if self.same_prompt else phase)
        for what, text in _to_keep(sample):
            if text not in prompt and (what != "an earlier answer" or _after_thinking(text) not in prompt):
                raise UserError(
                    f"template '{self.name}' leaves out {what} of sample {sample.id} ({text[:40]!r}); choose another "
                    "data.template, or leave such samples out"
                )
        return prompt, joint

    def prompt(self, sample: Sample, phase: str = "test") -> str:
        """Return the text the model is prompted with."""
        return self.parts(sample, phase)[0]

    def _tokens(self, text: str, mark: str = "") -> list[int]:
        # A chat template writes the special tokens itself; a second BOS would be a prompt nobody trained on.
        own = self._format.complete or (bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token))
        try:
            ids = self._control.encode(text, mark, special=not own)
        except UserError:
            raise
        except Exception as error:  # tokenizers has no exception of its own
            raise UserError(
                f"template '{self.name}': the tokenizer fails on {text[:60]!r} ({reason(error)}); correct that text"
            ) from error
        self._check_known(ids)
        # Some tokenizers close every text with EOS; a prompt must stay open.
        closed = not self._format.complete and ids and ids[-1] == self.tokenizer.eos_token_id
        return ids[:-1] if closed and not text.endswith(self.tokenizer.eos_token) else ids

    def _marked(self, sample: Sample, answer: str = "") -> tuple[Sample, str, str]:
        """Return sample and answer with the control tokens that they spell broken, and the mark that breaks them."""
        mark = self._control.mark([*_texts(sample), answer])
        if not mark:
            return sample, answer, mark
        broken = replace(
            sample,
            question=self._control.marked(sample.question, mark),
            context=self._control.marked(sample.context, mark),
            system=self._control.marked(sample.system, mark),
            history=tuple((self._control.marked(user, mark), self._control.marked(said, mark)) for user, said in sample.history),
        )
        return broken, self._control.marked(answer, mark), mark

    def _prompt_ids(self, sample: Sample, phase: str) -> list[int]:
        broken, _, mark = self._marked(sample)
        return self._tokens(self.prompt(broken, phase), mark)

    def encode(self, sample: Sample, phase: str = "train") -> Encoded:
        """Tokenise prompt + response + end, cut at the joint.

        Raises:
            UserError: the answer leaves no room for the prompt in ``max_length``, or the template fails.
        """
        answer = [*self.answer_ids(sample, sample.response, phase), *self.end]
        if len(answer) + 1 > self.max_length:
            raise UserError(
                f"sample {sample.id}: its answer has {len(answer)} tokens, the limit is {self.max_length}; "
                "raise training.max_length or drop the sample"
            )
        prompt = self._fitting(sample, phase, len(answer))
        weights = None if sample.weight == 1 else (sample.weight,) * len(answer)
        return Encoded(tuple(prompt), tuple(answer), weights)

    def answer_ids(self, sample: Sample, answer: str, phase: str = "test") -> list[int]:
        """Tokenise an answer as it continues the sample's prompt, without what ends it."""
        broken, told, mark = self._marked(sample, answer)
        prompt, joint = self._written(broken, phase)
        kept = prompt.rstrip(" ")
        joined = prompt[len(kept) :] + self._format.answer(broken, told, prompt, joint)
        before = self._tokens(kept, mark)
        ids = self._tokens(kept + joined, mark)
        if ids[: len(before)] == before:
            return ids[len(before) :]
        # The tokenizer merges across the joint: the answer is tokenised by itself.
        return self._control.encode(joined, mark)

    def cut(self, sample: Sample, phase: str = "test", room: int = 0) -> Sample | None:
        """Return a sample as much as its prompt holds where ``room`` tokens of the limit are kept free; None where it cannot fit.

        Raises:
            UserError: the template fails on it.
        """
        key = sample, phase, room
        if key not in self._cut:
            found = shortened(sample, self.max_length - room, lambda one: self.prompt_length(one, phase))
            if found is sample:
                return sample
            self._cut[key] = found
        return self._cut[key]

    def alone(self, text: str) -> list[int]:
        """Tokenise a text of the data by itself, with the marks of begin and end that the tokenizer adds."""
        mark = self._control.mark([text])
        return self._control.encode(self._control.marked(text, mark), mark, special=True)

    def fits(self, sample: Sample, more: str = "") -> bool:
        """Tell whether the response, followed by ``more``, leaves room for the prompt, of which no more than :meth:`cut` may go."""
        answer = self.answer_ids(sample, f"{sample.response} {more}".strip(), "train")
        return self.cut(sample, "train", len(answer) + len(self.end)) is not None

    def prompt_length(self, sample: Sample, phase: str = "test") -> int:
        """Return the tokens of a prompt before any shortening."""
        return len(self._prompt_ids(sample, phase))

    def nearest(self, sample: Sample, phase: str = "train") -> list[int]:
        """Tokenise what of a prompt stands nearest to the answer: its first token, and as many of its last as the limit takes."""
        ids = self._prompt_ids(sample, phase)
        return ids if len(ids) <= self.max_length else [ids[0], *ids[len(ids) - self.max_length + 1 :]]

    def encode_prompts(self, samples: Sequence[Sample], phase: str = "test", room: int = 0) -> list[list[int]]:
        """Tokenise prompts for generation, leaving ``room`` tokens of the limit free.

        Raises:
            UserError: ``room`` takes the whole limit, or a prompt does not fit even when it is cut.
        """
        if room >= self.max_length:
            raise UserError(
                f"measure.max_new_tokens = {room} leaves no token of training.max_length = {self.max_length} for the prompt; "
                "lower the first or raise the second"
            )
        return [self._fitting(sample, phase, room) for sample in samples]

    def _fitting(self, sample: Sample, phase: str, room: int) -> list[int]:
        ids = self._prompt_ids(sample, phase)
        if len(ids) <= self.max_length - room:
            return ids
        found = self.cut(sample, phase, room)
        if found is None:
            raise UserError(
                f"sample {sample.id}: its prompt has {len(ids)} tokens, and with {room} for the answer the "
                f"limit of {self.max_length} leaves too few for the template, the system prompt and the question; raise "
                "training.max_length or drop the sample"
            )
        return self._prompt_ids(found, phase)

    def decode(self, ids: Sequence[int]) -> str:
        """Turn generated ids into text: up to what ends an answer, without special tokens and surrounding blanks."""
        said = list(takewhile(lambda token: token not in self.stops, ids))
        text = str(self.tokenizer.decode(said, skip_special_tokens=True))
        return (text.split(self._end_text)[0] if self._end_text else text).strip()


def _texts(sample: Sample) -> Iterator[str]:
    yield from (sample.question, sample.context, sample.system)
    for turn in sample.history:
        yield from turn


def _to_keep(sample: Sample) -> Iterator[tuple[str, str]]:
    """Yield what a prompt must hold beside the question, and its name."""
    yield "the system prompt", sample.system.strip()
    yield "the context", sample.context.strip()
    for user, answer in sample.history:
        yield "an earlier question", user.strip()
        yield "an earlier answer", answer.strip()


def _after_thinking(answer: str) -> str:
    """Return an answer without its thinking, which templates of reasoning models leave out of earlier turns."""
    return re.split(r"</\w+>|\[/THINK\]", answer)[-1].strip()
