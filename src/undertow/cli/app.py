"""The application, and what its commands share."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
import warnings
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from undertow.core.errors import ConvertedWarning, NoteWarning, RenamedWarning, UserError
from undertow.core.rules import rule
from undertow.core.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Backdoors that hide in federated instruction tuning: measure them, reproduce the papers, defend.\n\n"
    "Start with:  undertow run demo",
)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="A shipped name or YAML file, then overrides.")
]
#: click's UsageError; typer brings its own copy of click, of which only this subclass has a public name.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]

#: Commands that, typed again after an interrupt, go on where they stopped; all others save nothing on their way.
_RESUMED = (("run",), ("sweep",), ("reproduce",), ("federate",), ("base", "build"))

#: Exit code where the reader of a pipe went away: 128 + SIGPIPE, as the shell's own tools have it.
_BROKEN_PIPE = 141

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object with the final figures on stdout, and nothing else.")]


def main() -> None:
    """Run the command line; every error a user can fix is one line on stderr and exit code 2, and so is a fault of our own."""
    _show_notes()
    try:
        code = app(prog_name="undertow", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a reader that went away is told from a finding
        sys.exit(code)
    except UserError as error:
        _fail(str(error))
    except _USAGE_ERROR as error:
        _fail_usage(error)
    except (KeyboardInterrupt, SystemExit) as error:
        # typer turns an interrupt into a silent exit with code 130, and a broken pipe into one with code 1
        if isinstance(error, SystemExit) and _is_broken_pipe(error.__context__):
            _leave_pipe()
        if isinstance(error, SystemExit) and error.code != 130:
            raise
        told = ": what is finished is saved; the same command again continues from there" if _saves() else ""
        print(f"\ninterrupted{told}", file=sys.stderr)
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        # torch's own error for a full device is a RuntimeError, and torch need not be loaded to ask for its name
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
            _fail_unexpected(error)
        told = " ".join(str(error).split())[:120] or "no more memory"
        _fail(
            f"out of memory ({told}): lower training.client_chunk, training.batch_size, training.max_length or "
            "measure.batch_size; the same command again continues after the last finished round"
        )
    except OSError as error:
        if _is_broken_pipe(error):
            _leave_pipe()
        place = f" ({error.filename})" if error.filename else ""
        kept = ": what is finished is kept" if _saves() else ""
        advice = {
            errno.ENOSPC: f"free some space, then run the same command again{kept}",
            errno.EDQUOT: f"free some quota, then run the same command again{kept}",
            errno.EACCES: "choose a folder you may write to with --out",
            errno.EPERM: "choose a folder you may write to with --out",
            errno.EROFS: "choose a folder you may write to with --out",
            errno.ENOTDIR: "choose another --out: part of that path is a file",
        }.get(error.errno or 0)
        _fail(f"{error.strerror or error}{place}: {advice or 'check that path, then run the same command again'}")
    except Exception as error:
        _fail_unexpected(error)


def _saves() -> bool:
    """Tell whether the command that was typed goes on where it stopped."""
    return "--plan" not in sys.argv and any(tuple(sys.argv[1 : 1 + len(words)]) == words for words in _RESUMED)


def _is_broken_pipe(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _leave_pipe() -> NoReturn:
    """Exit without a word where nobody reads; what Python still holds for stdout would raise again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    sys.exit(_BROKEN_PIPE)


def _show_notes() -> None:
    """Let a warning about a former name or format be one line on stderr; other warnings stay as Python shows them."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, RenamedWarning | ConvertedWarning | NoteWarning):
            print(f"note: {message}", file=sys.stderr)
        else:
            usual(message, category, *where, **more)

    warnings.showwarning = show


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _fail_unexpected(error: BaseException) -> NoReturn:
    """Show the traceback and exit with code 2: Python's own code for it, 1, is a finding of ``undertow scan``."""
    traceback.print_exception(error)
    _fail(f"{type(error).__name__} is a fault in Undertow or in a method of yours; please report it with the lines above")


def _fail_usage(error: Any) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(2)
    where = error.ctx.command_path if error.ctx else "undertow"
    if isinstance(error.__cause__, ValidationError):  # typer passes on the words of pydantic, which newer ones check with
        item = error.__cause__.errors()[0]
        told = rule(item)
        error.message = told if repr(item["input"]) in told else f"{item['input']!r}; {told}"
    _fail(f"{error.format_message().rstrip('.')}; see `{where} --help`")


def changes(overrides: list[str], **others: str) -> dict[str, Any]:
    """Return ``key=value`` words as keyword arguments of a function of the Python interface.

    Args:
        overrides: words.
        others: parameters of that function that are no fields of a config, each with its option here, or "".

    Raises:
        UserError: as :func:`~undertow.config.reading.parse`, or a word names one of these.
    """
    from undertow.config.reading import parse

    found = parse(overrides)
    for key in found.keys() & {"config", "source", *others}:
        option = others.get(key)
        raise UserError(f"unknown key '{key}'{f'; did you mean {option}?' if option else ''}; see `undertow list fields`")
    return found


def split(arguments: list[str] | None, default: str) -> tuple[str, list[str]]:
    """Return the config's name and the overrides."""
    from undertow.config.names import long_name

    given = list(arguments or [])
    name = given.pop(0) if given and "=" not in given[0] else default
    seen: set[str] = set()
    for item in given:
        key, sign, _ = item.partition("=")
        if not sign:
            raise UserError(f"'{item}' is neither the first argument nor key=value; write group.field=value")
        if long_name(key.strip()) in seen:
            raise UserError(f"{key.strip()} is given twice; give it once")
        seen.add(long_name(key.strip()))
    return name, given


def print_json(value: Any) -> None:
    """Print the one object that ``--json`` promises."""
    print(json.dumps(value, ensure_ascii=False))


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"undertow {__version__}")
        raise typer.Exit
