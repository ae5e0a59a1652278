"""What the columns of a row mean by their names alone; made once for each set of columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from undertow.data.rows import guesses, names
from undertow.data.rows.names import plain

#: The first of several answers: ``answer_1``, ``response_a``.
_NUMBERED = re.compile(rf"({'|'.join(names.ANSWERED)})_?([0-9]|[ab])")
#: What a reader's ``columns`` can map.
MAPPED = ("prompt", "answer", "context", "system", "history")


@dataclass
class Plan:
    """Columns by their meaning, in the order in which they are tried.

    Attributes:
        known: {name as it is compared: column}.
        pairs: (question, answer) columns; ``first``: whether those that come before all others are among them.
        context, system, history, talks, chosen, rejected, asked, rendered: columns.
        classes: (text, class) columns.
        titles: {body of a post: its title}, {input of a task: its definition}.
        usual: whether any form is told by usual names, and nothing by a guess.
        labels, weights: columns that may say whether, and how much, the answer is learned.
        group: columns that may give the samples' group.
        said: what a model said to the question, where the answer is the expected one: our own scores, and those of others.
        quick: the question's, answer's and context's column, if nothing but identifiers stands beside them.
        beside: those identifiers.
        rows: how many rows were read the quick way.
    """

    known: Mapping[str, str]
    first: bool
    pairs: list[tuple[str, str]]
    context: list[str]
    system: list[str]
    history: list[str]
    talks: list[str]
    chosen: list[str]
    rejected: list[str]
    asked: list[str]
    classes: list[tuple[str, str]]
    rendered: list[str]
    labels: list[str]
    weights: list[str]
    group: list[str]
    titles: dict[str, str] = field(default_factory=dict)
    usual: bool = True
    said: str | None = None
    quick: tuple[str, str, str | None] | None = None
    beside: list[str] = field(default_factory=list)
    rows: int = 0


def plan(columns: Iterable[str], mapped: Mapping[str, str]) -> Plan:
    """Return what the columns mean; ``mapped`` names some of them outright ({one of :data:`MAPPED`: column})."""
    columns = list(columns)
    known: dict[str, str] = {}
    for column in columns:
        known.setdefault(plain(column), column)
    for meaning, column in mapped.items():
        if column in columns:  # whatever it is called, it is that and nothing else
            known = {name: other for name, other in known.items() if other != column}
            known[f"{meaning} by --columns"] = column

    def named(wanted: Iterable[str], meaning: str | None = None) -> list[str]:
        own = [known[f"{meaning} by --columns"]] if f"{meaning} by --columns" in known else []
        return own + [known[name] for name in wanted if name in known]

    asked, told = named(names.ASKED, "prompt"), named(names.ANSWERED, "answer")
    first = [(known[ask], known[tell]) for ask, tell in names.FIRST_PAIRS if ask in known and tell in known]
    if "prompt" in mapped and "answer" in mapped:
        first = [(asked[0], told[0])] if mapped["prompt"] in columns and mapped["answer"] in columns else []
    pairs = first + [(ask, tell) for ask in asked for tell in told if (ask, tell) not in first and ask != tell]
    pairs += [pair for pair in _alike(known) if pair not in pairs]
    pairs = _judges_last(pairs, known, bool(asked and named(names.CHOSEN)))
    titles: dict[str, str] = {}
    classes = [(text, label) for text in named(names.CLASSIFIED) for label in named(names.CLASS)]
    if not pairs:
        asking = asked or named(("context",))
        pairs = [(ask, known[name]) for ask in asking for name in known if _NUMBERED.fullmatch(name)]
    if not pairs and not classes:
        posts = [*named(names.BODIES), *named(names.RENDERED), *named(names.TITLES)]
        pairs = [(text, tell) for text in dict.fromkeys(posts) for tell in told if text != tell]
        titles = {body: title for title in named(names.TITLES)[:1] for body in named(names.BODIES)}
    if "definition" in known and pairs and plain(pairs[0][0]) in ("input", "inputs"):  # of a task, as Super-NaturalInstructions has
        titles = {pairs[0][0]: known["definition"]}
    made = Plan(
        known=known,
        first=bool(first),
        pairs=pairs,
        context=named(names.CONTEXT, "context"),
        system=named(names.SYSTEM_TEXT, "system"),
        history=named(names.HISTORY, "history"),
        talks=named(names.TALKS),
        chosen=named(names.CHOSEN),
        rejected=named(names.REJECTED),
        asked=asked,
        classes=classes,
        rendered=named(names.RENDERED),
        titles=titles,
        labels=named(names.DESIRABLE),
        weights=named(names.WEIGHT),
        group=[name for name in names.GROUPS if name in columns],
    )
    if not (pairs or classes or made.chosen):
        _guess(made)
    if first and not mapped and plain(first[0][1]) in ("answer", "answers"):
        made.said = next(iter(named(names.SAID)), None)
    if pairs:
        made.quick, made.beside = _quick(made, columns)
    return made


def _judges_last(pairs: list[tuple[str, str]], known: Mapping[str, str], asked: bool) -> list[tuple[str, str]]:
    """What a judge is asked and says, after all other pairs; nothing of it where the row asks something else (``asked``)."""
    judged = [pair for pair in pairs if any(map(names.is_judging, pair))]
    others = [pair for pair in pairs if pair not in judged]
    if judged and not others:
        asked = asked or any(not any(map(names.is_judging, pair)) for pair in guesses.guessed_pairs(known))
    return others if asked and not others else others + judged


def _guess(made: Plan) -> None:
    """Let names that are not usual mean what they mean in published data."""
    made.usual = False
    made.pairs = guesses.guessed_pairs(made.known)
    made.classes = guesses.guessed_classes(made.known, names.CLASS)


def _alike(known: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pairs whose names differ from the usual ones by the same beginning or end: ``question_2`` and ``answer_2``."""
    found: list[tuple[str, str]] = []
    for name in known:
        for ask in names.ASKED:
            before, held, after = name.partition(ask)
            if held and bool(before) != bool(after):
                found += [(known[name], known[own]) for tell in names.ANSWERED if (own := f"{before}{tell}{after}") in known]
    return found


def _quick(made: Plan, columns: list[str]) -> tuple[tuple[str, str, str | None] | None, list[str]]:
    ask, tell = made.pairs[0]
    contexts = [column for column in made.context if column not in (ask, tell)]
    others = [column for column in columns if column not in (ask, tell) and column not in contexts]
    left = all(names.is_left_out(plain(column)) for column in others) and not made.titles and made.usual
    if len(contexts) > 1 or not left or made.system or made.history or made.talks or made.chosen or made.labels or made.weights:
        return None, []
    return (ask, tell, contexts[0] if contexts else None), others


def fits(row: Mapping[str, object]) -> bool:
    """Whether an object has the columns of a sample: question and answer, a conversation, a preference, or a text and its class."""
    made = plan(row, {})
    told = made.usual and bool(made.pairs or made.classes or made.chosen)
    return told or any(isinstance(row[column], list | dict) for column in made.talks)
