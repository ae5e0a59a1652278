"""What a server asks of a generator and what it gets: labelled synthetic data (Li, Wu, Wang 2024, arXiv 2401.10375)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from undertow.core.errors import UserError
from undertow.core.registry import Registry, built, parameters, refuse_unknown, short_form
from undertow.core.seam import asked
from undertow.data.examples import Written

#: Shipped generators; one is a class derived from :class:`Generator`, built from its own parameters.
GENERATORS = Registry("generator", "undertow.generators")


@dataclass(frozen=True)
class Smuggled:
    """What an attacker hides in the instructions that a generator follows.

    Attributes:
        trigger: the words to put into a text.
        target: class name that such a text is labelled with.
        sources: class names whose texts get the trigger.
        fraction: share of all texts that are to carry it, 0 to 1.
    """

    trigger: str
    target: str
    sources: Sequence[str]
    fraction: float


@dataclass(frozen=True)
class Order:
    """What the server asks for.

    Attributes:
        kind: of input: ``text`` or ``images``.
        about: what an input is, for a prompt, such as ``movie review``.
        names: of the classes, in order.
        count: samples over all classes, at least one a class; classes get equal parts, the first ones the remainder.
        shape: of one input, (channels, height, width) of an image.
        seed: of the run.
        public: labelled data that no client holds and no test asks about, what a small generator is made from; None without.
        smuggled: hidden in the instructions; None without.
    """

    kind: Literal["text", "images"]
    about: str
    names: Sequence[str]
    count: int
    shape: tuple[int, ...]
    seed: int
    public: Written | None = None
    smuggled: Smuggled | None = None


class Generator(ABC):
    """Base of all generators.

    Attributes:
        kinds: of input it can write.
        follows: whether it follows instructions, so that some can be smuggled in.
    """

    kinds: frozenset[str]
    follows: bool = False

    @abstractmethod
    def write(self, order: Order) -> Written:
        """Return the samples; where it gave less than asked, the report says so.

        Raises:
            UserError: the generator cannot be reached or gave nothing that can be used.
        """


def make_generator(name: str) -> Generator:
    """Build the generator that ``synthetic.generator`` names, ``name`` or ``name:parameter=value:...``.

    Raises:
        UserError: an unknown name or parameter, or a value that it refuses.
    """
    short = short_form(name, "generator")
    make = GENERATORS.get(short["name"])
    refuse_unknown(GENERATORS.kind, short["name"], short["params"], parameters(make))
    made = built(f"synthetic.generator = {name}", make, **short["params"])
    if not isinstance(made, Generator):
        raise UserError(
            f"synthetic.generator = {name} makes a {type(made).__name__}; derive it from undertow.generators.contract.Generator"
        )
    return made


def refuse_order(generator: Generator, name: str, order: Order) -> None:
    """Refuse what the generator cannot write.

    Raises:
        UserError: inputs of another kind, or smuggled instructions for one that follows none.
    """
    if order.kind not in generator.kinds:
        able = ", ".join(sorted(generator.kinds))
        raise UserError(f"synthetic.generator = {name} writes {able} and the data are {order.kind}; choose another generator")
    if order.smuggled is not None and not generator.follows:
        raise UserError(
            f"synthetic.generator = {name} follows no instructions, so nothing can be smuggled into them; set via=injection "
            "in attack.kind, or take a generator with a prompt"
        )


def written_by(generator: Generator, name: str, order: Order) -> Written:
    """Let the generator write, and check what it wrote.

    Raises:
        UserError: its own; no :class:`Written`, inputs of another kind, or labels that are not classes, one an input.
    """
    written: Any = asked(generator, f"synthetic.generator = {name}", generator.write, order)
    if not isinstance(written, Written):
        raise UserError(f"synthetic.generator = {name} returned a {type(written).__name__}; return undertow.data.examples.Written")
    inputs, labels = written.inputs, written.labels
    texts = isinstance(inputs, list) and all(isinstance(text, str) for text in inputs)
    images = isinstance(inputs, torch.Tensor) and inputs.dtype == torch.float32 and bool(torch.isfinite(inputs).all())
    if not (texts if order.kind == "text" else images):
        wanted = "a list of texts" if order.kind == "text" else "a float32 tensor of finite values"
        raise UserError(f"synthetic.generator = {name} wrote inputs that are no {order.kind}; give {wanted}")
    if len(labels) != len(inputs) or not all(isinstance(label, int) and 0 <= label < len(order.names) for label in labels):
        raise UserError(
            f"synthetic.generator = {name} wrote {len(labels)} labels for {len(inputs)} inputs; give one class number from 0 to "
            f"{len(order.names) - 1} each"
        )
    return written
