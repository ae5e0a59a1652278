"""The one exception a user is meant to read, and the warning about names that have changed."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable

#: How Flower is installed; it wants older packages than the tests, so not beside them.
FLOWER = "give it an environment of its own in the clone: python3 -m venv .venv-flower; .venv-flower/bin/pip install -e '.[flower]'"


class UserError(ValueError):
    """Bad input or an impossible wish, told in one line: the value, the rule, the next action.

    The command line prints it without a traceback and exits with code 2. Line ends within the message become blanks.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(filter(None, map(str.strip, message.splitlines()))) if len(message.splitlines()) > 1 else message)


class RenamedWarning(FutureWarning):
    """A former name was used: it is understood for one minor release more. The command line prints it as one line."""


def warn_renamed(old: str, new: str) -> None:
    """Tell that ``old`` is now ``new``, once for each place that says so."""
    warnings.warn(f"{old} is now {new}; the former name is accepted for one more minor release", RenamedWarning, stacklevel=3)


class NoteWarning(UserWarning):
    """Something that may make a figure another than the one that was asked for. The command line prints it as one line."""


class ConvertedWarning(FutureWarning):
    """A file of a former format was read: it is understood for one minor release more. The command line prints it as one line."""


def warn_converted(what: str) -> None:
    """Tell that something of a former format was converted."""
    warnings.warn(f"{what}; the former format is read for one more minor release", ConvertedWarning, stacklevel=2)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the known name closest to ``word``, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
