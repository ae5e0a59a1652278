"""What a prompt template is: it makes text of a sample, and says what ends an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from undertow.core.errors import UserError
from undertow.data.sample import Sample


class PromptFormat(ABC):
    """A template bound to a tokenizer.

    Attributes:
        complete: its text holds every mark of begin and end, so that the tokenizer adds none.
        end: what it writes after an answer; empty = nothing, and the end-of-sequence token ends the answer.
        markup: a conversation as it writes it, where control tokens of its own may stand.
    """

    complete: ClassVar[bool] = False
    end: str = ""
    markup: str = ""

    @abstractmethod
    def prompt(self, sample: Sample, phase: str) -> tuple[str, str]:
        """Return the prompt, and the joint: what stands between it and the answer.

        Raises:
            UserError: it cannot write this sample.
        """

    def answer(self, sample: Sample, answer: str, prompt: str, joint: str) -> str:
        """Return what it writes after the prompt and before the end: joint and answer.

        Args:
            sample: the question.
            answer: any answer to it.
            prompt, joint: what :meth:`prompt` returned.

        Raises:
            UserError: it cannot write this answer.
        """
        return joint + answer


class FunctionFormat(PromptFormat):
    """A function ``(sample, phase, tokenizer) -> (prompt, joint)``.

    Args:
        name: for messages.
        function: a shipped template or the user's own.
        tokenizer: of the base.
    """

    def __init__(self, name: str, function: Callable[..., Any], tokenizer: Any) -> None:
        self.name, self._function, self._tokenizer = name, function, tokenizer

    def prompt(self, sample: Sample, phase: str) -> tuple[str, str]:
        """Call the function and check what it returns."""
        try:
            found = self._function(sample, phase, self._tokenizer)
        except UserError:
            raise
        except Exception as error:  # a user's function may raise anything
            raise UserError(
                f"template '{self.name}' failed on sample {sample.id}: {reason(error)}; correct the function"
            ) from error
        if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, str) for part in found)):
            raise UserError(
                f"template '{self.name}' returned {found!r:.80} for sample {sample.id}; return (prompt, joint), two texts"
            )
        prompt, joint = found
        return prompt, joint


def reason(error: Exception) -> str:
    """Return what went wrong elsewhere, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200].rstrip(": ")
