"""What all defenses are. The kind of a defense is the base class it derives from; see :mod:`undertow.defenses.kinds`."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from undertow.core.errors import UserError
from undertow.defenses.contexts import Setting


class Defense:
    """Root of the five kinds. A method derives from one of them (or two, where it truly works at two places), never from this
    class.

    Attributes:
        kind: name of the kind, set by the base class of each.
        purpose: names the defense's random draws; None = its registered name. It keeps old seeds giving the same bytes after a
            rename.

    Raises:
        ValueError: a parameter out of the range that the method's ``Args`` give it; true of every defense, and not said again.
    """

    kind: ClassVar[str] = ""
    purpose: ClassVar[str | None] = None

    @classmethod
    def kinds(cls) -> list[str]:
        """Return the kinds that the class is of, by the base classes it derives from."""
        return [own for base in cls.__mro__ if (own := vars(base).get("kind"))]

    @classmethod
    def check_class(cls) -> None:
        """Refuse a class that is of no kind, or lacks what its kind must have.

        Raises:
            UserError: with the class, and what to derive from or to write.
        """
        if not cls.kinds():
            raise UserError(
                f"{cls.__name__} is of no kind of defense; derive it from the base class of one, such as "
                "undertow.defenses.Aggregator"
            )
        if missing := sorted(getattr(cls, "__abstractmethods__", ())):
            raise UserError(
                f"{cls.__name__} does not write {', '.join(missing)}, which its kind ({', '.join(cls.kinds())}) needs; write it"
            )

    @classmethod
    def of_kinds(cls) -> type[Defense]:
        """Return the class that objects are of: this one, but for the former base of all kinds."""
        return cls


class NeedsModel(Defense):
    """A defense that works on the model, or on questions and answers: a run of instruction tuning lets it begin.

    A Flower strategy has updates alone and refuses it. So do the tasks over tensors, unless it says that it works on them too.

    Attributes:
        over_tensors: whether it also works on tasks over tensors (images, next words, classes of texts), which do not call
            :meth:`begin`.
    """

    over_tensors: ClassVar[bool] = False

    def begin(self, setting: Setting) -> None:
        """Read and check all that the defense needs from outside, once, before any training; a resumed run begins too.

        Raises:
            UserError: something is missing or does not fit the base.
        """


class Stateful(ABC):
    """A mixin for what remembers past rounds: its memory goes to the run's checkpoint."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return all that is remembered from one round to the next; empty before there is any."""

    @abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state` returned, before the next round; an empty state forgets.

        Raises:
            UserError: the state is not this defense's.
        """


def origin(defense: object) -> str:
    """Return the name of an object's class, and the file of one that a user wrote: how errors blame it."""
    kind = type(defense)
    if kind.__module__.partition(".")[0] == "undertow":
        return kind.__name__
    try:
        return f"{kind.__name__} ({Path(inspect.getfile(kind)).name})"
    except (OSError, TypeError):  # a class made in a notebook or at a prompt
        return kind.__name__


def refuse_answer(defense: object, hook: str, found: object, wanted: str) -> UserError:
    """Return the error about what a hook of a defense returned; ``wanted`` says what it must return."""
    told = (
        f"an array of shape {list(found.shape)} and dtype {found.dtype}"
        if hasattr(found, "shape") and hasattr(found, "dtype")
        else f"a {type(found).__name__}"
    )
    return UserError(f"{origin(defense)}.{hook} returned {told}; return {wanted}")


def restore(defense: object, state: Mapping[str, Tensor]) -> None:
    """Give a defense back what it remembered.

    Raises:
        UserError: the state is not its own; one that keeps none takes an empty one alone.
    """
    if isinstance(defense, Stateful):
        defense.restore(state)
    elif state:
        raise UserError(
            f"{type(defense).__name__} keeps no state, but the checkpoint holds {', '.join(sorted(state))}; delete the run "
            "directory and run again"
        )
