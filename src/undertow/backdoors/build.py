"""Triggers and targets made from the config: ``name``, ``name:parameter=value:...`` or ``file.py:function``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from undertow.config import ClassificationBackdoor, InstructionBackdoor, NextWordBackdoor
from undertow.core.errors import UserError
from undertow.core.registry import Registry, refuse_unknown, short_form

#: What triggers and targets, or patterns, are made from.
BackdoorOptions = InstructionBackdoor | ClassificationBackdoor | NextWordBackdoor

_O = TypeVar("_O", bound=BackdoorOptions)
_T = TypeVar("_T")


def build(registry: Registry, text: str, options: _O, base: type, of_user: Callable[[_O, Any], _T]) -> _T:
    """Make what ``text`` names.

    Args:
        registry: of triggers, targets or patterns.
        text: the config's value, in the short form that defenses have too.
        options: handed to the constructor, before the parameters.
        base: class of what is made; a class of the user's that derives from it is taken like a registered one.
        of_user: wraps any other function of the user's, which has no parameters.

    Raises:
        UserError: no such name, file or parameter, or a value that the constructor refuses.
    """
    short = short_form(text, registry.kind)
    name, params = short["name"], short["params"]
    make = registry.get(name)
    own = any(entry.make is make for entry in registry.entries()) or (inspect.isclass(make) and issubclass(make, base))
    known = [p.name for p in inspect.signature(make).parameters.values() if p.kind is not p.VAR_KEYWORD][1:] if own else []
    refuse_unknown(registry.kind, name, params, known)
    if not own:
        return of_user(options, make)
    try:
        made: _T = make(options, **params)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{registry.kind} '{text}': {error}") from error
    assert isinstance(made, base)
    return made


def refuse_options(options: BackdoorOptions, kind: str, *names: str) -> None:
    """Refuse options that a trigger, target or pattern does not use, rather than leave them without effect.

    Args:
        options: of the backdoor.
        kind: what refuses them, such as ``trigger 'style'``.
        names: fields that must be at their default.

    Raises:
        UserError: one of them is not.
    """
    for name in names:
        field, value = type(options).model_fields[name], getattr(options, name)
        if value != field.get_default(call_default_factory=True, validated_data={}):
            raise UserError(f"attack.{name} = {value!r} is not supported by {kind}; leave it out")
