"""Names for methods: one attack, defense, trigger, target, dataset or scoring = one file + one name.

A registry imports every file of its folder when first asked, so that adding a file is all it takes.
A user's own function needs no registration: ``path/to/file.py:function`` is accepted wherever a name is.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from undertow.core.errors import UserError, nearest, warn_renamed

#: How a method is called: kebab-case.
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def short_form(text: str, kind: str = "defense") -> dict[str, Any]:
    """Read a method in short, ``name`` or ``name:parameter=value:...``; values are YAML. ``kind`` is for messages.

    Raises:
        UserError: a value that is not YAML.
    """
    pieces = re.split(r"(?<!\.py):", text.strip())  # file.py:function is one piece, as a name and as a value
    try:
        params = {key: yaml.safe_load(value) for key, _, value in (piece.partition("=") for piece in pieces if "=" in piece)}
    except yaml.YAMLError as error:
        raise UserError(f"{kind} '{text}': a value is not YAML ({' '.join(str(error).split())}); quote it") from error
    return {"name": ":".join(piece for piece in pieces if "=" not in piece), "params": params}


def defense_list(text: str) -> list[dict[str, Any]]:
    """Read defenses in short: ``none``, ``krum``, ``krum:f=3``, or several joined by ``+``."""
    return [short_form(part) for part in text.split("+")] if text.strip() not in ("", "none") else []


def defense_text(defenses: Sequence[Mapping[str, Any]]) -> str:
    """Write the config's ``defenses`` (plain values) in short, as :func:`defense_list` reads them."""
    told = [":".join([d["name"], *(f"{k}={value_text(v)}" for k, v in (d.get("params") or {}).items())]) for d in defenses]
    return "+".join(told) or "none"


def value_text(value: Any) -> str:
    """Write a value as YAML in one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Entry:
    """One registered method: its name, the callable, and where it comes from (paper, section)."""

    name: str
    make: Callable[..., Any]
    source: str

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (self.make.__doc__ or "").strip().split("\n")[0]


class Registry:
    """The methods of one kind, found by name."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry] = {}
        self._aliases: dict[str, str] = {}
        self._loaded = False

    def register(self, name: str, *, source: str, aliases: Sequence[str] = ()) -> Callable[[Any], Any]:
        """Decorator: file the class or function under ``name``; ``source`` is its paper and section, ``aliases`` are its former
        names.

        Raises:
            UserError: ``name`` is not kebab-case.
        """
        if not _NAME.fullmatch(name):
            fitting = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "my-method"
            raise UserError(
                f"{self.kind} '{name}': a name has lower-case letters, digits and single hyphens between them; "
                f"register it as '{fitting}'"
            )

        def add(make: Any) -> Any:
            if name in self._entries and self._entries[name].make.__module__ != make.__module__:
                raise ValueError(
                    f"{self.kind} '{name}' is already registered, by the module {self._entries[name].make.__module__}: use it by "
                    "this name, or delete one of the two, or register yours under another name"
                )
            self._entries[name] = Entry(name, make, source)
            self._aliases.update(dict.fromkeys(aliases, name))
            return make

        return add

    def _load(self) -> None:
        if not self._loaded:
            self._loaded = True
            package = importlib.import_module(self.package)  # or one module that holds all of them
            for module in pkgutil.walk_packages(getattr(package, "__path__", []), f"{self.package}."):
                importlib.import_module(module.name)

    def entries(self) -> list[Entry]:
        """All registered methods in the order of their names."""
        self._load()
        return [self._entries[name] for name in sorted(self._entries)]

    def summary(self, entry: Entry) -> str:
        """Return one line about a method, for lists."""
        return entry.summary

    def canonical(self, name: str) -> str:
        """Return what a method is called now, by a name it has or had; any other text as it is."""
        self._load()
        return self._aliases.get(name, name)

    def get(self, name: str) -> Callable[..., Any]:
        """Return the callable filed under ``name``, or the function that ``file.py:function`` names.

        Raises:
            UserError: no such name, file or function.
        """
        self._load()
        if name in self._aliases:
            warn_renamed(f"{self.kind} '{name}'", f"'{self._aliases[name]}'")
            name = self._aliases[name]
        if name in self._entries:
            return self._entries[name].make
        if ".py:" in name:
            return _user_function(self.kind, name)
        known = ", ".join(sorted(self._entries))
        raise UserError(
            f"unknown {self.kind} '{name}'{nearest(name, self._entries)}: choose one of {known}, or give file.py:function"
        )


def _user_function(kind: str, spec: str) -> Callable[..., Any]:
    file, _, function = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{kind} '{spec}': no file {file}; give the path of an existing Python file")
    loader = importlib.util.spec_from_file_location(f"undertow_user_{path.stem}", path)
    if loader is None or loader.loader is None:
        raise UserError(f"{kind} '{spec}': {file} is no Python file; give one that ends in .py")
    module = importlib.util.module_from_spec(loader)
    sys.modules[loader.name] = module  # a dataclass in it looks its own module up there
    try:
        loader.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's file may raise anything; the user needs its name and the reason
        raise UserError(f"{kind} '{spec}': {file} cannot be imported: {type(error).__name__}: {error}") from error
    found: Callable[..., Any] | None = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"{kind} '{spec}': {file} has no function '{function}'; define it or correct the name")
    return found


def refuse_unknown(kind: str, name: str, params: Iterable[str], known: Sequence[str]) -> None:
    """Refuse parameters that a method does not take.

    Raises:
        UserError: one is not among ``known``, with the nearest.
    """
    for key in params:
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"{kind} '{name}' has no parameter '{key}'{nearest(key, known)}: {has}; correct or remove it")


def parameters(make: Callable[..., Any]) -> list[str]:
    """Return the parameters that a class or function takes, those of a base class that it hands on to included."""
    found: list[str] = []
    for kind in inspect.getmro(make) if inspect.isclass(make) else [make]:
        own = inspect.signature(kind).parameters.values()
        found += [p.name for p in own if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in found]
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    return found


def call(registry: Registry, text: str, field: str, *given: Any) -> Any:
    """Call what ``text`` names, ``name`` or ``name:parameter=value:...``, with ``given`` and its own parameters after these.

    Raises:
        UserError: no such name or parameter, or a value that it refuses.
    """
    short = short_form(text, registry.kind)
    make, params = registry.get(short["name"]), short["params"]
    refuse_unknown(registry.kind, short["name"], params, list(inspect.signature(make).parameters)[len(given) :])
    return built(f"{field} = {text}", make, *given, **params)


def built(said: str, make: Callable[..., Any], *given: Any, **params: Any) -> Any:
    """Call a class or function with parameters that a user chose; ``said`` is how, for the error.

    Raises:
        UserError: it refuses a value; its own is passed on as it is.
    """
    try:
        return make(*given, **params)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{said}: {' '.join(str(error).split())}; correct it") from error
