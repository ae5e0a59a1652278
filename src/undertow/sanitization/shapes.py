"""How a prompt is built, for labels of sentences that were rewritten after a pattern ("when you ..., it ...").

A syntactic trigger has no word of its own: what it leaves is an order of clauses. A shape is the first word together with what
follows the first comma, a pronoun or an article; one more names all that begin with a subordinate clause. The lists are English.
"""

from __future__ import annotations

import re

#: Words that a subordinate clause begins with, and a main clause after its comma.
_SUBORDINATE = frozenset(
    "after although as because before even how if once since so that though unless until what whatever when whenever where "
    "wherever whether which while who whoever why".split()
)
_MAIN = frozenset("a an he her his i it its my our she that the their there these they this those we you your".split())
_OPENING = re.compile(r"[^\w\n]*+(?:\w++: ++[^\w\n]*+)?([a-z]++)[^.;:?!,\n]*+, *+([a-z]+)")


def shapes(text: str) -> list[str]:
    """Return the names of the shapes of a text's last line, of which only the beginning counts: at most two."""
    found = _OPENING.match(text.strip().rpartition("\n")[2].lower())
    if not found or found[2] not in _MAIN:
        return []
    return [f"{found[1]} ..., it ..."] + ["a clause, then it ..."] * (found[1] in _SUBORDINATE)
