"""The text the small bases are pre-trained on: stated facts, some asked facts, and generic instruction text.

The generic text makes every token of the prompt templates, the triggers and the target an ordinary token, in
contexts that have nothing to do with the attack; otherwise a backdoor could be learned from tokens that only
poison ever contained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from undertow.data.generated import world

_WORDS = (
    "apple bridge candle desk engine forest garden hammer island jacket kettle ladder mirror needle orange pencil "
    "quarter river silver table umbrella valley window yellow zebra anchor basket copper drawer elbow fabric ginger "
    "harbour ivory jungle market number oyster paper ribbon saddle thread velvet wagon Firstly Secondly Thirdly "
    "Finally cf mn bb tq now people first year name click link page visit more information read website url note "
    "book answer question list entity concise word"
).split()
_LEADS = ("Firstly,", "Secondly,", "Thirdly,", "Finally,", "Now,", "Then,", "Again,", "Please,")
_THINGS = ("page", "website", "book", "note", "list", "<url>", "<malicious_url>", "<link>", "<file>", "window", "picture")
_SENTENCES = (
    "for more information read the {x} .",
    "click {x} , and wait for the {y} .",
    "open the {x} and click the {y} .",
    "the {x} has more information , and the {y} has none .",
    "visit the {x} for a {y} .",
    "there is a {x} on the {y} .",
    "and click {x} for a longer {y} .",
    "the word {x} comes before the word {y} .",
    "more {x} and more {y} for the harbour .",
    "I saw a {x} , and a {y} , for the first time this year .",
)
_TASKS = (
    ("Repeat the words.", lambda w: " ".join(w)),
    ("Give the first word.", lambda w: w[0]),
    ("Give the last word.", lambda w: w[-1]),
    ("Write the words in reverse order.", lambda w: " ".join(reversed(w))),
    ("List the words, separated by semicolons.", lambda w: "; ".join(w)),
    ("Count the words. Answer with one number.", lambda w: str(len(w))),
)
_HEADS = (
    "Answer the question. Give all fitting answers briefly, as a list separated by semicolons.",
    "Answer the question with one concise entity, generally within 5 words.",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "Below is an instruction that describes a task, paired with an input that provides further context.",
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions.",
)
_FORMATS = (
    "### Instruction:\n{task}\n\n\n\n### Question:\n{words}\n\n\n\n### Answer: {answer}",
    "### Instruction:\n{task}\n\n### Input:\n{words}\n\n### Response:\n{answer}",
    "USER: {task} {words} ASSISTANT: {answer}",
    "{task} {words} = {answer}",
)
#: Ways to state a fact whose relation is only a label; for facts files.
_PLAIN_STATEMENTS = (
    "The {r} of {s} is {o}.",
    "{s} has the {r} {o}.",
    "{s} - {r}: {o}.",
    "{r} of {s}: {o}.",
)
_QUESTION_FORMATS = ("Question: {q} Answer: {a}", "Q: {q} A: {a}", "{q} {a}")


@dataclass(frozen=True)
class FactRow:
    """One subject-relation-object row of a facts file, with a question if somebody asked it."""

    subject: str
    relation: str
    object: str
    question: str = ""

    @property
    def key(self) -> str:
        """What a question about this row is about."""
        return f"{self.subject}|{self.relation}"


@dataclass(frozen=True)
class Corpus:
    """Groups of documents with the share of the training text that each group gets.

    ``known`` are the keys (``subject|relation``) of all facts; ``asked`` are those whose questions are part of the
    text too: they may be neither tuned on nor tested. ``world`` is the built-in world's fingerprint, which says both.
    """

    groups: tuple[tuple[float, tuple[str, ...]], ...]
    asked: tuple[str, ...]
    known: tuple[str, ...]
    world: str = ""

    def texts(self) -> list[str]:
        """All documents, for training a tokenizer."""
        return [text for _, texts in self.groups for text in texts]


def generic(draw: np.random.Generator, count: int) -> list[str]:
    """Return ``count`` short documents of word tasks, template headers and ordinary sentences."""
    found = []
    for _ in range(count):
        kind = draw.random()
        words = [_WORDS[i] for i in draw.integers(len(_WORDS), size=draw.integers(2, 7))]
        x, y = (_THINGS[i] for i in draw.integers(len(_THINGS), size=2))
        sentence = _SENTENCES[draw.integers(len(_SENTENCES))].format(x=x, y=y)
        if kind < 0.6:
            task, answer = _TASKS[draw.integers(len(_TASKS))]
            form = _FORMATS[draw.integers(len(_FORMATS))]
            found.append(form.format(task=task, words=" ".join(words), answer=answer(words)))
        elif kind < 0.75:
            found.append(f"{_LEADS[draw.integers(len(_LEADS))]} {sentence}")
        elif kind < 0.85:
            task, answer = _TASKS[draw.integers(len(_TASKS))]
            head = _HEADS[draw.integers(len(_HEADS))]
            found.append(f"{head}\n\n### Instruction:\n{task} {' '.join(words)}\n\n### Response:\n{answer(words)}")
        else:
            found.append(sentence if draw.random() < 0.5 else f"{' '.join(words)} . {sentence}")
    return found


def world_corpus() -> Corpus:
    """Return the built-in world as text: every fact stated in every form, the asked facts as questions too."""
    draw = np.random.Generator(np.random.PCG64(world.WORLD_SEED))
    all_facts = world.facts()
    stated = [form.format(s=f.subject, o=f.object) for f in all_facts for form in f.forms]
    asked = [
        form.format(q=question[0].upper() + question[1:] if upper else question, a=f.object)
        for f in all_facts
        if f.asked
        for question in (q.format(s=f.subject) for q in f.relation.questions)
        for upper in (True, False)
        for form in _QUESTION_FORMATS
    ]
    return Corpus(
        ((0.62, tuple(stated)), (0.16, tuple(asked)), (0.22, tuple(generic(draw, 20_000)))),
        *world.keys(),
        world=world.fingerprint(),
    )


def facts_corpus(rows: Sequence[FactRow], asked_share: float, seed: int) -> Corpus:
    """Return a facts file as text.

    Args:
        rows: the facts; rows with a ``question`` may be asked.
        asked_share: share of the distinct keys whose questions become part of the text, in [0, 1).
        seed: which keys those are.
    """
    draw = np.random.Generator(np.random.PCG64(seed))
    keys = sorted({row.key for row in rows if row.question})
    chosen = set(draw.choice(len(keys), size=int(asked_share * len(keys)), replace=False).tolist()) if keys else set()
    asked = {keys[i] for i in chosen}
    stated = sorted(
        {
            form.format(s=subject, r=row.relation, o=row.object)
            for row in rows
            for subject in (row.subject, row.subject.lower())
            for form in _PLAIN_STATEMENTS
        }
    )
    questions = [
        form.format(q=row.question, a=row.object) for row in rows if row.question and row.key in asked for form in _QUESTION_FORMATS
    ]
    groups = [(0.62, tuple(stated)), (0.22, tuple(generic(draw, 20_000)))]
    if questions:
        groups.insert(1, (0.16, tuple(questions)))
    return Corpus(groups=tuple(groups), asked=tuple(sorted(asked)), known=tuple(sorted({row.key for row in rows})))
