"""Checks of a method's own parameters: they raise ValueError, which a run turns into one line with the method's name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real


def number(name: str, value: object, above: float = 0.0, *, least: float | None = None, most: float = math.inf) -> float:
    """Return a finite parameter above ``above``, or from ``least`` on where that is given, and not beyond ``most``.

    Raises:
        ValueError: it is not.
    """
    rule = f"above {above:g}" if least is None else f"at least {least:g}"
    fine = not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    if not fine or not (value > above if least is None else value >= least) or value > most:  # type: ignore[operator]
        raise ValueError(f"{name} = {value!r} must be a number {rule}" + (f" and at most {most:g}" if most < math.inf else ""))
    return float(value)  # type: ignore[arg-type]


def whole(name: str, value: object, least: int = 0) -> int:
    """Return a parameter that must be a whole number >= ``least``.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} = {value!r} must be a whole number >= {least}")
    return int(value)


def one_of(name: str, value: object, choices: Sequence[str]) -> str:
    """Return a parameter that must be one of ``choices``.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        raise ValueError(f"{name} = {value!r} must be one of {', '.join(choices)}")
    return str(value)
