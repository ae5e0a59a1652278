"""What time it is for a chat template that prints the date: one moment for the whole run, ``data.now``."""

from __future__ import annotations

from datetime import datetime

#: Directives of strftime that depend on nothing but the moment.
_DIRECTIVES = "aAbBcCdDeFgGhHIjklmMnpPrRSTuUVwWxXyYf"


def with_clock(template: str, now: str) -> str:
    """Return a chat template in whose text ``strftime_now`` tells ``now`` (ISO 8601) instead of the time of the day.

    transformers gives templates a function that asks the machine's clock, and takes no other; a macro of that name hides it. So a
    prompt is the same when a run is resumed on another day, and on every node.
    """
    if "strftime_now" not in template:
        return template
    moment = datetime.fromisoformat(now)
    each = {f"%{flag}{one}": moment.strftime(f"%{flag}{one}") for flag in ("", "-") for one in _DIRECTIVES}
    steps = "".join(f" | replace('{one}', '{text}')" for one, text in each.items())
    # The line end after the macro is taken away by trim_blocks, so that the template begins a line as it did.
    told = f"{{{{ format | replace('%%', '\\0'){steps} | replace('\\0', '%') }}}}"
    return f"{{%- macro strftime_now(format) -%}}{told}{{%- endmacro %}}\n{template}"
