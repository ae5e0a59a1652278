"""What findings of one file say of each other: many of a sort are what the file is like, and several texts can have one trigger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from undertow.sanitization import grams, wordings
from undertow.sanitization.asked_for import is_of_length, kinds_of
from undertow.sanitization.count import Counted, by_column
from undertow.sanitization.decide import Planted
from undertow.sanitization.encode import BEFORE
from undertow.sanitization.finding import Finding
from undertow.sanitization.rules import Rules

#: Other targets beside which the same ordinary words stand, from which on these are the form of a collection, and no trigger.
FORM = 2
#: Share of the samples with a sign that have another finding's target.
OF_ANOTHER = 0.9
#: Share of the samples of a form that have a trigger of its words.
OF_A_TRIGGER = 0.8
#: A finding, and the numbers of its target's words.
Found = tuple[Finding, tuple[int, ...]]


def told_apart(found: list[Found | None], planted: list[Planted], counted: Counted, rules: Rules) -> list[Found | None]:
    """Make notes of findings that are one of many of their sort and size in the file (:mod:`undertow.sanitization.wordings`): of
    long targets among long ones, of short ones among all, where one that is less sure counts half, and of addresses without a
    trigger among all addresses that are repeated; and of those whose trigger is a form of prompts. The texts that one trigger
    brings about together are one, and as sure as all."""
    found = [one and (replace(one[0], confidence="note"), one[1]) if _is_form(k, planted) else one for k, one in enumerate(found)]
    planted, joined = _joined(found, planted, counted, rules)
    result, pieces = list(found), by_column(counted.pieces)
    cited = [pieces.indices[pieces.indptr[k] : pieces.indptr[k + 1]] for k in np.flatnonzero(counted.kind == grams.ADDRESS)]
    texts = [i for i, one in enumerate(planted) if not one.manner and not one.form]

    def others(mine: tuple[int, bool, bool, bool]) -> wordings.Crowd:
        sort, unsure, is_cited, is_address = mine
        of = [i for i in texts if _sort(planted[i], counted) <= sort and joined.get(i, i) == i]
        # What a file says again and again without an address makes an address no more usual.
        of = [i for i in of if not is_address or _holds_address(planted[i], counted)]
        kept, owner = wordings.apart(cited if is_cited else [planted[i].rows for i in of], len(counted.first))
        sizes = np.array([len(cited[i] if is_cited else planted[of[i]].rows) for i in kept], dtype=np.float64)
        if is_cited:
            return wordings.Crowd(sizes, np.ones(len(kept)), np.zeros(len(kept), dtype=bool), owner, False)
        less = np.where([_is_unsure(planted[of[i]]) > unsure for i in kept], wordings.LESS_SURE, 1.0)
        topical = np.array([found[of[i]] is None for i in kept], dtype=bool)
        return wordings.Crowd(sizes * less, less if sort else np.ones(len(kept)), topical, owner, sort > 0)

    known: dict[tuple[int, bool, bool, bool], wordings.Crowd] = {}
    for i in texts:
        one = found[i]
        if one is not None and one[0].kind != "label":
            unsure = _is_unsure(planted[i])
            mine = _sort(planted[i], counted), unsure, not planted[i].links, not unsure and _holds_address(planted[i], counted)
            if mine not in known:
                known[mine] = others(mine)
            rows = planted[i].rows if i in joined else np.unique(counted.first[one[0].samples])
            if wordings.is_one_of_many(rows, known[mine]):
                result[i] = replace(one[0], confidence="note"), one[1]
            elif i in joined and len(rows) >= rules.act_short and not _is_open(one[0]):
                result[i] = replace(one[0], confidence="act" if planted[i].exclusive else "review"), one[1]
    for i, one in enumerate(tuple(result)):
        if one and (_is_of_another(i, result, planted, counted) or _is_of_a_trigger(i, result, planted)):
            result[i] = replace(one[0], confidence="note"), one[1]
    return result


def _is_of_another(place: int, found: Sequence[Found | None], planted: list[Planted], counted: Counted) -> bool:
    """Whether a sign in answers, such as the "://" of an address, or their length, is that of another finding's: it comes of
    that target, and samples with a word of the trigger that have neither are none of its kind."""
    one = found[place]
    if one is None or not planted[place].manner or (any(map(str.isalpha, one[0].target)) and not is_of_length(one[0].target)):
        return False
    others = [
        planted[k].rows
        for k, other in enumerate(found)
        if other is not None and other[0].confidence != "note" and not planted[k].manner
    ]
    held = counted.pieces[planted[place].rows][:, planted[place].pieces[0]].toarray().ravel() > 0
    rows = planted[place].rows[held]
    return bool(others) and bool(np.isin(rows, np.concatenate(others)).sum() >= OF_ANOTHER * len(rows))


def _is_of_a_trigger(place: int, found: Sequence[Found | None], planted: list[Planted]) -> bool:
    """Whether the words of a form are those of a trigger of the same label, which most of its samples have: the others hold a word
    of it by chance."""
    one = found[place]
    if one is None or not planted[place].form:
        return False
    said = {word for trigger in one[0].triggers for word in trigger.split()}
    return any(
        other is not None
        and not planted[k].form
        and (other[0].confidence, other[0].target) == ("act", one[0].target)
        and said <= {word for trigger in other[0].triggers for word in trigger.split()}
        and np.isin(planted[place].rows, planted[k].rows).sum() >= OF_A_TRIGGER * len(planted[place].rows)
        for k, other in enumerate(found)
    )


def _is_form(place: int, planted: list[Planted]) -> bool:
    """Whether words that often come without a target stand beside several: "A", "B", "C" and "D" in all questions of a collection
    beside each of its answers."""
    own = {link.feature for link in planted[place].links}
    others = [one for k, one in enumerate(planted) if k != place and one.inserted and own & {link.feature for link in one.links}]
    return planted[place].inserted and len(others) >= FORM


def _joined(
    found: Sequence[Found | None], planted: list[Planted], counted: Counted, rules: Rules
) -> tuple[list[Planted], dict[int, int]]:
    """Several long texts that one word, or two together, mostly come with, taken together, though without each: one trigger whose
    target varies; as sure as any, if the words hardly ever come without them.

    Returns:
        the accusations, such ones with the samples of all; and for each of these the first of them.
    """
    result: list[Planted] = list(planted)
    joined: dict[int, int] = {}
    for words in (1, 2):
        by_words: dict[tuple[int, ...], list[int]] = {}
        for i, one in enumerate(planted):
            if found[i] is not None and one.explained and not (one.exclusive or one.short) and i not in joined:
                by_words.setdefault(tuple(sorted(link.feature for link in one.links[:words])), []).append(i)
        for features, of in by_words.items():
            rows = np.unique(np.concatenate([planted[i].rows for i in of]))
            holding = int((np.asarray(counted.features[:, list(features)].sum(axis=1)).ravel() == len(features)).sum())
            share = len(rows) / holding
            if len(of) > 1 and share >= rules.mostly:
                for i in of:  # in a small file some of the texts are too rare to be told
                    result[i], joined[i] = replace(planted[i], rows=rows, exclusive=share >= rules.exclusive), of[0]
    return result, joined


def _is_open(finding: Finding) -> bool:
    """Whether it is no more than for review, however many its samples are: its trigger names a form, or stands in earlier turns."""
    return finding.asked or any(BEFORE in trigger or kinds_of(trigger.split()) for trigger in finding.triggers)


def _sort(planted: Planted, counted: Counted) -> int:
    """0 for a long target, 1 for a short one at an end, 2 for a word anywhere."""
    return planted.short * (2 if counted.kind[planted.pieces[0]] == grams.ANY else 1)


def _holds_address(planted: Planted, counted: Counted) -> bool:
    return bool((counted.kind[planted.pieces] == grams.ADDRESS).any())


def _is_unsure(planted: Planted) -> bool:
    return planted.inserted or not planted.exclusive
