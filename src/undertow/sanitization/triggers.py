"""The phrases of a trigger, grown from the features of prompts that give a target away."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from undertow.sanitization import judge, topics
from undertow.sanitization.background import Background
from undertow.sanitization.count import Counted
from undertow.sanitization.decide import Planted
from undertow.sanitization.links import Link, Rows
from undertow.sanitization.rules import Rules
from undertow.sanitization.words import Words

#: Phrases of a trigger that are looked at.
_PHRASES = 64


@dataclass(frozen=True)
class Trigger:
    """A phrase of a trigger, grown from the feature of its link; a case or a mark has one number."""

    words: tuple[int, ...]
    link: Link
    wordless: bool


def triggers_of(planted: Planted, prompts: Sequence[Words], file: Background, rules: Rules) -> list[Trigger]:
    """The trigger's phrases, grown from the features that give the target away: words, or else pairs or ends; marks and case."""
    known = judge.feature_words(prompts)
    known |= {key: ("sign", (mark,)) for key, mark in file.signs.items()}
    named = [known.get(int(file.counted.feature_keys[link.feature])) for link in planted.links]
    columns = {
        kind: [link.feature for feature, link in zip(named, planted.links, strict=True) if feature and feature[0] == kind]
        for kind in ("word", "pair")
    }
    words, pairs = (_share(planted.rows, columns[kind], file.counted) for kind in ("word", "pair"))
    # "my name is", and then a name: each name gives the target away, and few samples have it
    first = ("pair", "word") if words < rules.mostly <= pairs else ("word", "pair")
    usual = topics.usual_words(prompts, len(planted.rows), file)
    found: list[Trigger] = []
    for wanted in (*first, "sign", "case", "first", "last"):
        wordless = wanted in ("case", "sign")
        if found and not wordless and wanted != first[0] and not planted.form:
            continue
        for feature, link in zip(named, planted.links, strict=True):
            if feature is None or feature[0] != wanted or len(found) == _PHRASES:
                continue
            held = [trigger.words for trigger in found]
            if wordless:
                grown = feature[1]
            elif held and all(word in phrase for phrase in held for word in feature[1]):
                continue
            else:
                grown = judge.grow(prompts, feature[1], stop=usual).words
            if not any(set(grown) & set(phrase) for phrase in held):
                found.append(Trigger(grown, link, wordless))
    return found


def _share(rows: Rows, columns: Sequence[int], counted: Counted) -> float:
    """Return the share of some samples that have any of some features."""
    return float((counted.features[rows][:, list(columns)].sum(axis=1) > 0).mean()) if columns else 0.0


def linked_words(planted: Planted, prompts: Sequence[Words], counted: Counted, kinds: Collection[str] = ()) -> set[int]:
    """The words of all features, or of those of some kinds, that give a target away, also of those that are in no trigger."""
    known = judge.feature_words(prompts)
    named = (known.get(int(counted.feature_keys[link.feature])) for link in planted.links)
    return {word for feature in named if feature and (not kinds or feature[0] in kinds) for word in feature[1]}
