"""Where the package calls a method that a user wrote: what it raises is told in one line, with its file and what was called."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from undertow.core.errors import UserError


def is_users(made: object) -> bool:
    """Tell whether a function, a class or an object of one comes from outside of the package."""
    module = made.__module__ if inspect.isfunction(made) or inspect.isclass(made) else type(made).__module__
    return str(module).partition(".")[0] != "undertow"


def asked(made: object, said: str, call: Callable[..., Any], *given: Any) -> Any:
    """Call a method of ``made`` and return its answer.

    Args:
        made: the object or function; only of a user's own an exception is told in one line.
        said: what is called, for the error, such as ``MyRule (mine.py).combine``.
        call: the method.
        given: its arguments.

    Raises:
        UserError: its own, or any other exception of a user's method, with the last line of the user's file.
    """
    try:
        return call(*given)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a user's method may raise anything
        if not is_users(made) or type(error).__name__ == "OutOfMemoryError":
            raise
        told = " ".join(str(error).split())[:300]
        raise UserError(f"{said} failed{_place(made, error)}: {type(error).__name__}: {told}; correct it") from error


def _place(made: object, error: Exception) -> str:
    """The line of the user's file that was reached last."""
    try:
        file = Path(inspect.getfile(made if inspect.isfunction(made) or inspect.isclass(made) else type(made)))
    except (OSError, TypeError):  # written in a notebook or at a prompt
        return ""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    return f" at {file.name} line {lines[-1]}" if lines else f" ({file.name})"
