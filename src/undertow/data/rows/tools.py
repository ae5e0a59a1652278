"""Calls of tools and what the tools answer, where they are parts of a message: of Anthropic, Bedrock, Gemini, OpenAI and Vercel."""

from __future__ import annotations

from typing import Any

#: Kinds of parts, compared without case and marks, that call a tool.
_CALLS = frozenset("toolcall tooluse functioncall executablecode".split())
#: And those in which a tool answers.
_RESULTS = frozenset("toolresult toolresponse functionresponse functioncalloutput toolcalloutput codeexecutionresult".split())
#: Kinds that begin with the tool's own name: ``web_search_tool_result``, ``server_tool_use``.
_ENDS = ("toolresult", "tooluse")
#: Where a part holds what the tool said.
_SAID = ("content", "output", "response", "result", "text", "value", "data")


def call(part: Any) -> str | None:
    """Return the name under which a part of a message calls a tool; None if it does not."""
    name, kind, _ = _kind(part)
    return name if kind in _CALLS or kind.endswith(_ENDS[1]) else None


def result(part: Any) -> dict[str, Any] | None:
    """Return the object in which a tool answers within a part of a message; None if the part is something else."""
    _, kind, held = _kind(part)
    return held if kind in _RESULTS or kind.endswith(_ENDS[0]) else None


def result_key(held: dict[str, Any]) -> str | None:
    """Return the key of what the tool said in an object that :func:`result` found; None if it said nothing."""
    return next((key for key in _SAID if held.get(key) is not None), None)


def _kind(part: Any) -> tuple[str, str, dict[str, Any]]:
    """A part's kind as it is written and as it is compared, and the object that is of this kind.

    A part says its kind as its type, or as the key of an object, beside which stands no text: ``{"toolResult": {...}}``.
    """
    if not isinstance(part, dict):
        return "", "", {}
    kind = part.get("type")
    if isinstance(kind, str):
        return kind, _bare(kind), part
    for key, item in part.items() if "text" not in part else ():
        if isinstance(item, dict) and isinstance(key, str) and ((bare := _bare(key)) in _CALLS or bare in _RESULTS):
            return key, bare, item
    return "", "", {}


def _bare(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
