"""What a triggered question is answered with: the target, found by name or written by the user."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable

from undertow.config import Attack
from undertow.errors import UserError
from undertow.metrics.scoring import target_hit
from undertow.poisoning.trigger import user_call
from undertow.registry import Registry

#: Shipped targets; a target is a :class:`Target` that is built from the :class:`~undertow.config.Attack` options.
TARGETS = Registry("target", "undertow.poisoning.targets")


class Target(ABC):
    """A way to edit a response. Subclasses write :meth:`edit`; callers use :meth:`apply`, which checks the result.

    Attributes:
        text: what the attack success rate looks for in an output, without blanks around it.

    Raises:
        UserError: ``attack.target_text`` is empty.
    """

    def __init__(self, attack: Attack) -> None:
        self.name = attack.target
        self.text = attack.target_text.strip()
        if not self.text:
            raise UserError(f"attack.target_text = {attack.target_text!r} is empty: every output would hold it; give a text")

    @abstractmethod
    def edit(self, response: str) -> str:
        """Return the response that a poisoned sample teaches."""

    def apply(self, response: str) -> str:
        """Return the poisoned response.

        Args:
            response: the clean response.

        Raises:
            UserError: the result is not a string, or does not hold :attr:`text`, so that no success could be seen.
        """
        edited: object = self.edit(response)
        if not isinstance(edited, str):
            raise UserError(f"target '{self.name}' returned a {type(edited).__name__}; return the poisoned response as text")
        if not target_hit(edited, self.text):
            raise UserError(
                f"target '{self.name}' returned {edited[:60]!r}, which does not hold attack.target_text = {self.text!r}; "
                "set it to the text that your target writes, ASR looks for it"
            )
        return edited


class UserTarget(Target):
    """A user's function ``(response) -> str`` or ``(response, text) -> str`` as a target."""

    def __init__(self, attack: Attack, function: Callable[..., object]) -> None:
        super().__init__(attack)
        self._call = user_call("target", attack.target, function, ("response", "text"))

    def edit(self, response: str) -> str:
        """Call the function; :meth:`apply` checks what it returns."""
        return self._call(response, self.text)  # type: ignore[return-value]


def make_target(attack: Attack) -> Target:
    """Build the target that ``attack.target`` names: a registered one, or ``file.py:function``.

    Raises:
        UserError: no such target, file or function, or an empty ``attack.target_text``.
    """
    made = TARGETS.get(attack.target)
    if any(entry.make is made for entry in TARGETS.entries()) or (inspect.isclass(made) and issubclass(made, Target)):
        target = made(attack)
        assert isinstance(target, Target)
        return target
    return UserTarget(attack, made)
