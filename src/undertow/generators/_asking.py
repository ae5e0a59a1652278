"""Generators that are asked in words: one request after another until each class has its samples."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from undertow.core.errors import UserError
from undertow.data.examples import Written
from undertow.generators._public import parts
from undertow.generators.contract import Generator, Order
from undertow.generators.parsing import Parsed, parse
from undertow.generators.prompts import read_template, request_text, system_text

#: How often what is still missing is asked for, the first time included.
_PASSES = 4


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        label: number of the class that is asked for.
        count: samples asked for.
        system: the instructions before it.
        user: its words.
    """

    label: int
    count: int
    system: str
    user: str


class Asked(Generator):
    """Base of generators that answer requests; a class's samples are those that came when it was asked for.

    So a sample that the model labels otherwise, as smuggled instructions want it, counts for the class it was asked under and
    keeps the label that the model wrote: a server has no other.

    Args:
        name: of the generator, for errors.
        prompt: as :func:`undertow.generators.prompts.read_template` takes it.
        samples: most that one request asks for.

    Raises:
        ValueError: an option outside its rule.
        UserError: no such template.
    """

    kinds = frozenset({"text"})
    follows = True

    def __init__(self, name: str, prompt: str, samples: int) -> None:
        whole("samples", samples, 1, 1000)
        if not isinstance(prompt, str):
            raise ValueError(f"prompt = {prompt!r}: a text with {{label}} in it, or the path of a file with one")
        self.name, self.samples, self.template = name, samples, read_template(prompt)

    @abstractmethod
    def answers(self, requests: Sequence[Request], seed: int, asked: int) -> Iterator[str | None]:
        """Yield the answer to each request, in order; None for one that cannot be used.

        Args:
            requests: at least one.
            seed: of the run.
            asked: how many requests went before, so that none has random numbers of another.

        Raises:
            UserError: there is no answer and there will be none.
        """

    def notes(self) -> dict[str, Any]:
        """Return what the generator itself has to tell for the report, after the last answer."""
        return {}

    def write(self, order: Order) -> Written:
        """Ask for the samples of each class in turn, and again for what is missing, four times at most.

        A text that is there already, blanks and case aside, is left out. Where the generator fails for good after it gave samples
        of every class, these are what it wrote, and the report's ``stopped`` says why.

        Raises:
            UserError: it cannot be reached, or gave nothing that can be used for a class.
        """
        wanted = parts(order)
        state = _State([0] * len(wanted))
        for _ in range(_PASSES):
            missing = [want - had for want, had in zip(wanted, state.had, strict=True)]
            requests = self._requests(order, missing)
            if not requests or state.stopped:
                break
            try:
                for request, answer in zip(requests, self.answers(requests, order.seed, state.calls), strict=True):
                    state.take(request, answer, order.names, wanted)
            except UserError as error:
                if any(want and not had for want, had in zip(wanted, state.had, strict=True)):
                    raise
                state.stopped = str(error)
        without = [name for name, want, had in zip(order.names, wanted, state.had, strict=True) if want and not had]
        if without:
            raise UserError(
                f"synthetic.generator = {self.name} gave nothing that can be used for {', '.join(without)}: {state.calls} answers, "
                f"{state.counts['malformed']} lines that are no sample; take a model that follows instructions, or another prompt"
            )
        report = {
            "asked": order.count,
            "written": len(state.texts),
            "short": order.count - len(state.texts),
            "calls": state.calls,
            "samples_a_call": self.samples,
            **{name: state.counts[name] for name in _COUNTS},
            **({"stopped": state.stopped} if state.stopped else {}),
            **self.notes(),
        }
        return Written(state.texts, state.labels, report)

    def _requests(self, order: Order, missing: Sequence[int]) -> list[Request]:
        """Return requests for what is missing, classes in turn, so that one that is cut short has some of each."""
        system = system_text(order)
        left = list(missing)
        found = []
        while any(count > 0 for count in left):
            for label, name in enumerate(order.names):
                count = min(self.samples, left[label])
                if count > 0:
                    found.append(Request(label, count, system, request_text(self.template, name, order.about, count)))
                    left[label] -= count
        return found


#: What is counted of the answers: unusable ones; lines that are no sample; labels that are no class; samples without a text; texts
#: that were there already; samples beyond those needed; samples labelled otherwise than asked.
_COUNTS = ("unusable", "malformed", "unknown", "empty", "duplicates", "surplus", "other_label")


class _State:
    def __init__(self, had: list[int]) -> None:
        self.had, self.calls, self.stopped = had, 0, ""
        self.texts: list[str] = []
        self.labels: list[int] = []
        self.counts: Counter[str] = Counter()
        self._known: set[str] = set()

    def take(self, request: Request, answer: str | None, names: Sequence[str], wanted: Sequence[int]) -> None:
        """Take what can be used of an answer."""
        self.calls += 1
        if answer is None:
            self.counts["unusable"] += 1
            return
        parsed: Parsed = parse(answer, names)
        self.counts.update(malformed=parsed.malformed, unknown=parsed.unknown, empty=parsed.empty)
        for text, label in parsed.samples:
            plain = text.casefold()
            if plain in self._known:
                self.counts["duplicates"] += 1
            elif self.had[request.label] >= wanted[request.label]:
                self.counts["surplus"] += 1
            else:
                self._known.add(plain)
                self.texts.append(text)
                self.labels.append(label)
                self.had[request.label] += 1
                self.counts["other_label"] += label != request.label


def whole(name: str, value: Any, least: int, most: int) -> None:
    """Refuse an option that is no whole number in its range.

    Raises:
        ValueError: with the range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} = {value!r}: a whole number from {least} to {most}")


def number(name: str, value: Any, least: float, most: float, *, above: bool = False) -> None:
    """Refuse an option that is no number in its range, whose lower end is excluded with ``above``.

    Raises:
        ValueError: with the range.
    """
    good = not isinstance(value, bool) and isinstance(value, int | float) and least <= value <= most
    if not good or (above and value == least):
        raise ValueError(
            f"{name} = {value!r}: a number {'above' if above else 'from'} {least:g}{', at most' if above else ' to'} {most:g}"
        )
