"""What a triggered question is answered with: the target, found by name or written by the user."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from undertow.backdoors.build import build
from undertow.backdoors.trigger import user_call
from undertow.config import InstructionBackdoor
from undertow.core.errors import UserError
from undertow.core.registry import Registry
from undertow.core.seam import asked
from undertow.metrics.scoring import target_hit, target_suffix

#: Shipped targets; a target is a :class:`Target` that is built from :class:`~undertow.config.InstructionBackdoor`.
TARGETS = Registry("target", "undertow.backdoors.targets")


class Target(ABC):
    """A way to edit a response. Subclasses write :meth:`edit`; callers use :meth:`apply`, which checks the result.

    Attributes:
        text: what the attack success rate looks for in an output, without blanks around it.
        own: the text where ``attack.target_text`` is left at its default, if that does not suit this target.

    Raises:
        UserError: ``attack.target_text`` is empty.
    """

    own: str | None = None

    def __init__(self, options: InstructionBackdoor) -> None:
        self.name = options.target
        left = options.target_text == type(options).model_fields["target_text"].default
        self.text = self.own if left and self.own is not None else options.target_text.strip()
        if not self.text:
            raise UserError(f"attack.target_text = {options.target_text!r} is empty: every output would hold it; give a text")

    @abstractmethod
    def edit(self, response: str, number: int) -> str:
        """Return the response that a poisoned sample teaches.

        Args:
            response: the clean response.
            number: the poisoned samples before this one in the order of the draw, so that several texts can take turns.
        """

    def hit(self, output: str) -> bool:
        """Tell whether an output counts for ASR and FTR: it holds :attr:`text`, in any case (A23)."""
        return target_hit(output, self.text)

    def ends(self, output: str) -> bool:
        """Tell whether an output has the target where this target puts it, letter by letter: the strict ASR."""
        return target_suffix(output, self.text)

    @property
    def longest(self) -> str:
        """The longest text that may follow an answer."""
        return self.text

    def apply(self, response: str, number: int = 0) -> str:
        """Return the poisoned response.

        Args:
            response: the clean response.
            number: see :meth:`edit`.

        Raises:
            UserError: the result is not a string, or is no :meth:`hit`, so that no success could be seen.
        """
        edited: object = asked(self, f"target '{self.name}'", self.edit, response, number)
        if not isinstance(edited, str):
            raise UserError(f"target '{self.name}' returned a {type(edited).__name__}; return the poisoned response as text")
        if not self.hit(edited):
            raise UserError(
                f"target '{self.name}' returned {edited[:60]!r}, which does not hold attack.target_text = {self.text!r}; "
                "set it to the text that your target writes, ASR looks for it"
            )
        return edited


class UserTarget(Target):
    """A user's function ``(response) -> str`` or ``(response, text) -> str`` as a target."""

    def __init__(self, options: InstructionBackdoor, function: Callable[..., object]) -> None:
        super().__init__(options)
        self._call = user_call("target", options.target, function, ("response", "text"))

    def edit(self, response: str, number: int) -> str:
        """Call the function; :meth:`apply` checks what it returns."""
        return self._call(response, self.text)  # type: ignore[return-value]


def make_target(options: InstructionBackdoor) -> Target:
    """Build the target that ``attack.target`` names: a registered one with its parameters, or ``file.py:function``.

    Raises:
        UserError: no such target, file, function or parameter, or an ``attack.target_text`` that it cannot use.
    """
    return build(TARGETS, options.target, options, Target, UserTarget)
