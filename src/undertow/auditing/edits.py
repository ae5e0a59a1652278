"""Ways to edit a question that may be a trigger: words of the vocabulary, and the triggers that this package knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from undertow.backdoors.trigger import TRIGGERS, Trigger, make_trigger
from undertow.backdoors.triggers.natural import lower_first
from undertow.config import InstructionBackdoor
from undertow.core.rng import rng
from undertow.data.sample import Sample

#: Vocabulary up to which each of its words is tried.
WHOLE = 8192
#: How often a rare token stands after a question, where one alone is a whole trigger.
REPEATED = 4


@dataclass(frozen=True)
class Edit:
    """Words before and after a question, or a known trigger.

    Attributes:
        before, after: words, in the order in which they stand.
        comma: the words before are an opener: "Firstly, which ...".
        library: a known trigger in the place of the words; ``name`` is its name.
    """

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    comma: bool = False
    name: str = ""
    library: Trigger | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """The words that it adds, those of a known trigger too."""
        return self.library.words if self.library else (*self.before, *self.after)

    @property
    def text(self) -> str:
        """What it is, in words."""
        if self.library:
            words = ", ".join(f'"{word}"' for word in self.library.words)
            return f"{self.name}{f' ({words})' if words else ''}"
        front, back = " ".join(self.before) + ("," if self.comma else ""), " ".join(self.after)
        told = [f'"{front}" before the question'] * bool(self.before) + [f'"{back}" after it'] * bool(self.after)
        return " and ".join(told).replace("after it", "after the question") if len(told) == 1 else " and ".join(told)

    def apply(self, question: str, seed: int, number: int) -> str:
        """Return the edited question; random choices of a known trigger are drawn by ``seed`` and the question's ``number``."""
        if self.library:
            return self.library.apply(question, rng(seed, f"audit trigger {self.name}", number))
        front = " ".join(self.before)
        opened = f"{front}, {lower_first(question)}" if self.comma else f"{front} {question}".strip()
        return " ".join([opened, *self.after])

    def on(self, samples: Sequence[Sample], seed: int) -> list[Sample]:
        """Return the samples with edited questions."""
        return [replace(one, question=self.apply(one.question, seed, i)) for i, one in enumerate(samples)]

    def joined(self, other: Edit) -> Edit:
        """Return the edit with the words of both."""
        return Edit((*self.before, *other.before), (*self.after, *other.after), self.comma)


def vocabulary_words(tokenizer: Any, size: int) -> list[str]:
    """Return the distinct words that single tokens spell, in the order of the tokens; those of control tokens are none."""
    special = set(tokenizer.all_special_ids)
    texts = (tokenizer.decode([token]).strip() for token in range(size) if token not in special)
    return list(dict.fromkeys(text for text in texts if text.isprintable() and text and "\ufffd" not in text))


def single_words(words: Sequence[str]) -> list[Edit]:
    """Return each word before the question, and after it."""
    return [Edit(before=(word,)) for word in words] + [Edit(after=(word,)) for word in words]


def library() -> list[Edit]:
    """Return the package's triggers as they are by default and with the other words that they name themselves."""
    found = []
    for entry in TRIGGERS.entries():
        made = make_trigger(InstructionBackdoor.model_validate({"trigger": entry.name}))
        if made.chooses:  # what a question is about cannot be put into it
            continue
        found.append(Edit(name=entry.name, library=made))
        found += list(_others(made))
        if made.name == "badnets":  # several are drawn with replacement
            found += [Edit(after=(word,) * REPEATED) for word in made.words]
    return found


def _others(made: Trigger) -> Iterator[Edit]:
    for word in (*getattr(made, "siblings", ()), *getattr(made, "others", ())):
        if made.name == "natural":
            yield Edit(before=(word,), comma=True)
        else:
            yield from (Edit(before=(word,)), Edit(after=(word,)))
