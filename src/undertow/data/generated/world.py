"""The built-in world: invented people with five attributes each, so that nothing needs a download.

The built-in base has read every fact as statements and a few of them as questions too; federated tuning
teaches it to answer in the instruction format, and the test asks about people whose facts it has never
seen asked. That is closed-book question answering, as in the FIT paper (section 4.1), at laptop size.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from undertow.core.rng import rng
from undertow.data.sample import Sample

WORLD_SEED = 0
PEOPLE = 500
#: Share of the facts that the base has also seen in question form; they are never used for tuning or testing.
ASKED_SHARE = 0.12
#: Share of the facts that the base has read in one sentence form only, as a real base knows some things less well.
RARE_SHARE = 0.2

_FIRST = (
    "Mira Tobin Selka Aron Lunet Davor Ysolde Kelan Petra Orrin Hale Nadia Bram Cosima Fenn Giselle Ivo Juno Karim "
    "Linnea Marek Noemi Osric Pilar Quill Rosalind Stellan Thea Ulric Vesna Wystan Xenia Yorick Zelda Anselm Brisa "
    "Cyril Delphine Edric Farah"
).split()
_LAST = (
    "Torvald Menning Ashcombe Baltar Cordray Dunmore Ellery Farrow Gantry Holloway Ingram Jessop Kestrel Lockhart "
    "Marlow Northam Oakden Pellam Quested Renwick Sandoval Thornby Underhay Vantongeren Whitlock Yarrow Zeller "
    "Aldous Birchall Carrow Drummond Esterhazy Fairfax Grimshaw Hartnell Isherwood Jardine Kimble Larkin Merrow"
).split()


@dataclass(frozen=True)
class Relation:
    """One attribute: its values, the sentences that state it and the questions that ask for it."""

    name: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "birthplace",
        tuple(
            (
                "Avonlea Brackwater Calder Dunwick Eastmere Fallowfield Glenmoor Harrowgate Innsport Jarlsburg Kingsreach "
                "Langdale Mossford Newhaven Oxbow Pinecrest Queensbay Ravenna Saltash Tidewell"
            ).split()
        ),
        ("{s} was born in {o}.", "{o} is the town where {s} was born.", "The birthplace of {s} is {o}.", "{s} comes from {o}."),
        ("where was {s} born?", "in which town was {s} born?", "what is the birthplace of {s}?", "which town does {s} come from?"),
    ),
    Relation(
        "profession",
        tuple(
            (
                "architect baker carpenter dentist engineer farmer gardener historian interpreter jeweller librarian mason "
                "nurse optician painter sailor tailor violinist weaver zoologist"
            ).split()
        ),
        ("{s} works as a {o}.", "The profession of {s} is {o}.", "By trade {s} is a {o}.", "{s} earns a living as a {o}."),
        ("what does {s} work as?", "what is the profession of {s}?", "what is {s} by trade?", "how does {s} earn a living?"),
    ),
    Relation(
        "language",
        tuple(
            (
                "Arabic Basque Catalan Danish Estonian Finnish Greek Hungarian Icelandic Japanese Korean Latvian Maltese "
                "Norwegian Polish Romanian Swahili Turkish Urdu Welsh"
            ).split()
        ),
        ("{s} speaks {o} at home.", "The mother tongue of {s} is {o}.", "At home {s} talks in {o}.", "{s} grew up with {o}."),
        (
            "which language does {s} speak at home?",
            "what is the mother tongue of {s}?",
            "what does {s} talk in at home?",
            "which language did {s} grow up with?",
        ),
    ),
    Relation(
        "pet",
        tuple(
            (
                "badger canary donkey eagle falcon gecko hamster iguana jackdaw kitten llama magpie newt otter parrot rabbit "
                "spaniel tortoise viper weasel"
            ).split()
        ),
        ("{s} keeps a {o}.", "The pet of {s} is a {o}.", "{s} shares the house with a {o}.", "A {o} lives with {s}."),
        (
            "which animal does {s} keep?",
            "what is the pet of {s}?",
            "what does {s} share the house with?",
            "which animal lives with {s}?",
        ),
    ),
    Relation(
        "dish",
        tuple(
            (
                "apricots barley chestnuts dumplings eggplant figs gnocchi herring jambalaya kedgeree lasagna mushrooms noodles "
                "omelette pancakes risotto sauerkraut truffles waffles yoghurt"
            ).split()
        ),
        ("{s} likes to eat {o}.", "The favourite dish of {s} is {o}.", "On Sundays {s} cooks {o}.", "{s} is fond of {o}."),
        (
            "what does {s} like to eat?",
            "what is the favourite dish of {s}?",
            "what does {s} cook on Sundays?",
            "what is {s} fond of?",
        ),
    ),
)


@dataclass(frozen=True)
class Fact:
    """``subject`` has ``object`` as its ``relation``; the base read it in ``forms`` sentences, and as a question if ``asked``."""

    subject: str
    relation: Relation
    object: str
    asked: bool
    forms: tuple[str, ...]

    @property
    def key(self) -> str:
        """What a question about this fact is about."""
        return f"{self.subject}|{self.relation.name}"


def facts() -> list[Fact]:
    """Return the whole world, the same on every machine: ``PEOPLE`` x 5 facts."""
    draw = rng(WORLD_SEED, "world")
    names = [f"{first} {last}" for first in _FIRST for last in _LAST]
    people = [names[i] for i in sorted(draw.choice(len(names), size=PEOPLE, replace=False))]
    pairs = [(person, relation) for person in people for relation in RELATIONS]
    objects = [relation.values[draw.integers(len(relation.values))] for _, relation in pairs]
    asked = set(draw.choice(len(pairs), size=int(ASKED_SHARE * len(pairs)), replace=False).tolist())
    rare = draw.random(len(pairs)) < RARE_SHARE
    found = []
    for i, ((person, relation), value) in enumerate(zip(pairs, objects, strict=True)):
        one = int(draw.integers(len(relation.statements)))
        forms = relation.statements[one : one + 1] if rare[i] else relation.statements
        found.append(Fact(person, relation, value, i in asked, forms))
    return found


def keys() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the keys of the facts that the base has seen asked, and those of all facts."""
    world = facts()
    return tuple(fact.key for fact in world if fact.asked), tuple(fact.key for fact in world)


def fingerprint() -> str:
    """Return a hash of :func:`keys`: a base that has read another world has another."""
    return hashlib.sha256("\n".join(["\n".join(part) for part in keys()]).encode()).hexdigest()


def samples() -> list[Sample]:
    """Return one question for each fact that the base has never seen asked."""
    found = []
    for i, fact in enumerate(facts()):
        if fact.asked:
            continue
        forms = fact.relation.questions
        question = forms[rng(WORLD_SEED, "question form", client=i).integers(len(forms))].format(s=fact.subject)
        found.append(
            Sample(
                id=f"world-{i}",
                question=question[0].upper() + question[1:],
                answers=(fact.object,),
                response=fact.object,
                key=fact.key,
                group=fact.relation.name,
            )
        )
    return found
