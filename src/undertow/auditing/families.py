"""One backdoor is one finding: which confirmations say the same thing, and which of them says it best.

Words that resemble a trigger bring out a target with other words around it, or its beginning alone. Two confirmations belong
together where their texts share a run of words: three, or half of the shorter text; two are enough where one was found by looking
for the other's text. So do two with the same trigger. Of each group the one that says most stands first: a pair before a target
without a trigger, unless the pair's text lacks the most of what the adapter goes on with by itself; of pairs those whose text holds
what was found target first; of pairs that fire nearly always the one of the fewest words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from undertow.auditing.confirm import CONFIRMED, SAME, Confirmation
from undertow.auditing.shared_text import common_run, holds, words_of

#: Words in a row that make two texts one, the share of the shorter text that does, and the words where one was sought.
RUN, HALF, SOUGHT = 3, 0.5, 2
#: ASR of a confirmed pair from which no other trigger of its text is sought, and of two such the simpler is told.
SURE = 0.9


def merged(confirmations: Sequence[Confirmation]) -> list[Confirmation]:
    """Return them in the order of a report: findings first, each followed by the verdict :data:`SAME` of what is part of it.

    Args:
        confirmations: in any order; those that were merged before may be among them.
    """
    found = [replace(one, verdict=CONFIRMED) if one.verdict == SAME else one for one in confirmations]
    groups: list[list[Confirmation]] = []
    for one in sorted((one for one in found if one.confirmed), key=_place):
        group = next((group for group in groups if any(same(one, other) for other in group)), None)
        if group is None:
            groups.append([one])
        else:
            group.append(one)
    heads = [[_head(group), *group] for group in groups]
    heads.sort(key=lambda group: _place(group[0]))
    told = [head for head, *_ in heads]
    told += [replace(one, verdict=SAME) for head, *group in heads for one in group if one is not head]
    return [*told, *sorted((one for one in found if not one.confirmed), key=_place)]


def same(one: Confirmation, other: Confirmation) -> bool:
    """Tell whether two confirmations are of one backdoor."""
    if one.edit is not None and other.edit is not None and one.edit.words and set(one.edit.words) == set(other.edit.words):
        return True
    texts = words_of(one.target), words_of(other.target)
    shared = common_run(*texts)
    if shared >= min(RUN, max(1.0, HALF * min(map(len, texts)))):
        return True
    sought = max(common_run(words_of(a.sought), words_of(b.target)) for a, b in ((one, other), (other, one)))
    return sought >= RUN and shared >= SOUGHT


def _head(group: Sequence[Confirmation]) -> Confirmation:
    alone = [one for one in group if one.edit is None]
    pairs = [one for one in group if one.edit is not None]
    whole = [one for one in pairs if all(holds(one.target, other.target) for other in alone)]
    best = max((one.heart for one in whole), default=0.0)
    whole = [one for one in whole if one.heart >= best / 2]
    sure = sorted((one for one in whole if (one.asr.value or 0.0) >= SURE), key=_words)  # stable: the more certain first
    return (sure or whole or alone or pairs)[0]


def _words(one: Confirmation) -> int:
    return 0 if one.edit is None else len(one.edit.words)


def _place(one: Confirmation) -> tuple[bool, bool, float, int]:
    return (not one.confirmed, one.edit is None, -(one.asr.value or 0.0), -len(one.target))
