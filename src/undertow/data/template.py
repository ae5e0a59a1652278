"""The one owner of the joint between prompt and answer, for training, evaluation and generation alike.

A prompt that ends in a space makes an answer tokenise differently from any text the base has read, and then
nothing is learned. So a prompt's trailing blanks always move to the front of the answer, and the pair is
tokenised as one text and cut at the joint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undertow.core.errors import UserError
from undertow.core.registry import Registry
from undertow.data.sample import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Shipped prompt templates; a template is a function ``(sample, phase) -> (prompt, text between prompt and answer)``.
TEMPLATES = Registry("template", "undertow.data.templates")


@dataclass(frozen=True)
class Encoded:
    """One tokenised training pair: ``prompt`` ids are context, ``answer`` ids (with EOS) carry the loss.

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
        max_length: longest prompt + answer in tokens; longer prompts lose tokens of the question's front.
        same_prompt: use the training instruction at test time too (the lab's QA template differs between them).
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase, max_length: int = 1024, same_prompt: bool = False) -> None:
        self.name = name
        self.tokenizer: Any = tokenizer
        self.max_length = max_length
        self.same_prompt = same_prompt
        self._render = TEMPLATES.get(name)
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token: answers could never end; add eos_token to its config")

    def parts(self, sample: Sample, phase: str = "train") -> tuple[str, str]:
        """Return the prompt without trailing blanks, and the joint that opens the answer.

        Args:
            sample: the question.
            phase: ``"train"`` or ``"test"``.
        """
        shown = "train" if self.same_prompt else phase
        prompt, joint = self._render(sample, shown, self.tokenizer)
        kept = prompt.rstrip(" ")
        return kept, (prompt[len(kept) :] + joint) or joint

    def prompt(self, sample: Sample, phase: str = "test") -> str:
        """Return the text the model is prompted with."""
        return self.parts(sample, phase)[0]

    def _ids(self, text: str) -> list[int]:
        # A chat template writes the special tokens itself; a second BOS would be a prompt nobody trained on.
        own = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        return list(self.tokenizer(text, add_special_tokens=not own)["input_ids"])

    def _prompt_ids(self, prompt: str) -> list[int]:
        ids = self._ids(prompt)
        eos = self.tokenizer.eos_token_id
        # Some tokenizers close every text with EOS; a prompt must stay open.
        return ids[:-1] if ids and ids[-1] == eos and not prompt.endswith(self.tokenizer.eos_token) else ids

    def encode(self, sample: Sample, phase: str = "train") -> Encoded:
        """Tokenise prompt + response + EOS, cut at the joint.

        Raises:
            UserError: the answer alone is longer than ``max_length``.
        """
        prompt_ids = self._prompt_ids(self.prompt(sample, phase))
        answer_ids = [*self.answer_ids(sample, sample.response, phase), self.tokenizer.eos_token_id]
        room = self.max_length - len(answer_ids)
        if room < 1:
            raise UserError(
                f"sample {sample.id}: its answer has {len(answer_ids)} tokens, the limit is {self.max_length}; "
                "raise training.max_length or drop the sample"
            )
        return Encoded(tuple(_shorten(prompt_ids, room)), tuple(answer_ids))

    def answer_ids(self, sample: Sample, answer: str, phase: str = "test") -> list[int]:
        """Tokenise an answer as it continues the sample's prompt, without EOS."""
        prompt, joint = self.parts(sample, phase)
        prompt_ids = self._prompt_ids(prompt)
        whole = self._prompt_ids(prompt + joint + answer)
        if whole[: len(prompt_ids)] == prompt_ids:
            return whole[len(prompt_ids) :]
        # The tokenizer merges across the joint: the answer is tokenised by itself.
        return list(self.tokenizer(joint + answer, add_special_tokens=False)["input_ids"])

    def fits(self, sample: Sample, more: str = "") -> bool:
        """Tell whether the response, followed by ``more``, leaves room for at least one token of the prompt."""
        return len(self.answer_ids(sample, f"{sample.response} {more}".strip(), "train")) + 1 < self.max_length

    def prompt_length(self, sample: Sample, phase: str = "test") -> int:
        """Return the tokens of a prompt before any shortening."""
        return len(self._prompt_ids(self.prompt(sample, phase)))

    def encode_prompts(self, samples: Sequence[Sample], phase: str = "test", room: int = 0) -> list[list[int]]:
        """Tokenise prompts for generation, leaving ``room`` tokens of the limit free.

        Raises:
            UserError: ``room`` takes the whole limit.
        """
        if room >= self.max_length:
            raise UserError(
                f"measure.max_new_tokens = {room} leaves no token of training.max_length = {self.max_length} for the prompt; "
                "lower the first or raise the second"
            )
        return [_shorten(self._prompt_ids(self.prompt(s, phase)), self.max_length - room) for s in samples]

    def decode(self, ids: Sequence[int]) -> str:
        """Turn generated ids into text, without special tokens and surrounding blanks."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def _shorten(ids: list[int], room: int) -> list[int]:
    # The first token (BOS) and the end (question and joint) matter most; the middle goes.
    return ids if len(ids) <= room else [ids[0], *ids[len(ids) - room + 1 :]]
