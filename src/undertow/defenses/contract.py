"""What a defense may do and what it may see.

A defense overrides any of these hooks: :meth:`Defense.begin` before all else, :meth:`Defense.share` for sums over the clients' data
and :meth:`Defense.sanitize` on a client's data, both before round 1, :meth:`Defense.weigh` on its tokens, :meth:`Defense.select` on its samples in each round,
:meth:`Defense.token_loss` on what it minimises, :meth:`Defense.prepare` on the updates before they are aggregated,
:meth:`Defense.aggregate` instead of FedAvg, :meth:`Defense.guard` on the new global adapter, :meth:`Defense.bounds` on its activations, and :meth:`Defense.decode` on the
tuned model's answers. The contexts hold what that party really has. Who is affected is not in them. Aggregation rules derive from :class:`undertow.defenses.aggregation.rule.Rule`, which brings the checks that they share;
what only prepares derives from :class:`undertow.defenses.aggregation.pre_aggregator.PreAggregator`. A defense that remembers past
rounds gives its memory to the checkpoint by :meth:`Defense.state`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from undertow.config import Defense as Options
from undertow.config import Lora, Training
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.registry import Registry
from undertow.data.sample import Sample
from undertow.models.token_loss import TokenLoss

if TYPE_CHECKING:
    from undertow.data.examples import Examples
    from undertow.data.template import Encoded, Template
    from undertow.models.bounds import Bounds
    from undertow.models.causal_lm import CausalLM
    from undertow.models.net import Net

DEFENSES = Registry("defense", "undertow.defenses")


@dataclass(frozen=True)
class ClientContext:
    """What a client has: its own index and its own random numbers."""

    client: int
    draw: np.random.Generator


@dataclass(frozen=True)
class ExchangeContext(ClientContext):
    """What a client has while clients add up counts of their data before round 1.

    Attributes:
        clients: how many take part.
        secret: shared by all clients and unknown to the server, 32 bytes.
        pooled: what the server sent back in the exchanges so far.
    """

    clients: int
    secret: bytes
    pooled: tuple[NDArray[np.uint32], ...] = ()


@dataclass(frozen=True)
class Setting:
    """What every party of a run knows before it begins.

    Attributes:
        seed: of the run.
        rounds: T, how many there will be.
        base: the frozen model.
        template: how samples become tokens.
        lora, training: what all clients train, and how.
    """

    seed: int
    rounds: int
    base: CausalLM
    template: Template
    lora: Lora
    training: Training


@dataclass(frozen=True)
class NetSetting:
    """What a server knows of a task over tensors before it begins: the counterpart of :class:`Setting`.

    Attributes:
        seed: of the run.
        rounds: T, how many there will be.
        net: the network as a function of a state ``[D]``.
        training: what all clients do.
        synthetic: labelled data that a foundation model wrote for the server, with whatever poison is in them; None without.
        classes: names of the outputs.
    """

    seed: int
    rounds: int
    net: Net
    training: Training
    synthetic: Examples | None
    classes: Sequence[str]


@dataclass(frozen=True)
class ServerContext:
    """What a server has.

    Attributes:
        layout: names the columns of the updates.
        counts: samples n_k behind each row, as the clients report them.
        round: from 1.
        adapter: the global adapter ``[D]`` that the clients started from.
        draw: its own random numbers.
        clients: which client sent each row, for defenses that remember clients; None where rows are not clients,
            such as after bucketing.
        trusted: an update ``[D]`` from ``adapter``, trained by the server itself on data it trusts; None without.
        setting: what all parties know in instruction tuning; None outside a run and on other tasks.
        network: what the server knows on a task over tensors; None outside a run and in instruction tuning.
    """

    layout: Layout
    counts: Sequence[int]
    round: int
    adapter: Tensor
    draw: np.random.Generator
    clients: Sequence[int] | None = None
    trusted: Tensor | None = None
    setting: Setting | None = None
    network: NetSetting | None = None


@dataclass(frozen=True)
class TrainingContext(ClientContext):
    """What a client has before it trains: besides its own index and random numbers, what all clients share.

    Attributes:
        seed: of the run, which all clients know.
        base: the frozen model.
        template: how samples become tokens.
        lora, training: what all clients train, and how.
        round: from 1; 0 before the first.
        exchange: of a defense with :meth:`Defense.share`, in :meth:`Defense.sanitize`: all that came back; None elsewhere.
    """

    seed: int
    base: CausalLM
    template: Template
    lora: Lora
    training: Training
    round: int = 0
    exchange: ExchangeContext | None = None


@dataclass(frozen=True)
class DecodingContext:
    """What the user of a tuned model has when it answers.

    Attributes:
        setting: what all parties know.
        layout: names the columns of the adapter.
        max_new_tokens: the longest answer.
        batch_size: prompts side by side.
    """

    setting: Setting
    layout: Layout
    max_new_tokens: int
    batch_size: int


class Defense:
    """Base of all defenses; each hook does nothing unless overridden.

    Attributes:
        sums: whether :meth:`prepare` and :meth:`aggregate` need no more of the updates than their sum by counts, all that secure
            aggregation shows.
        over_tensors: whether it does its work on tasks over tensors (images, words, classes of text) too, though it overrides a hook
            that those tasks do not call.
    """

    sums: bool = False
    over_tensors: bool = False

    def begin(self, setting: Setting) -> None:
        """Read and check all that the defense needs from outside, once, before any training; a resumed run begins too.

        Raises:
            UserError: something is missing or does not fit the base.
        """

    def share(self, samples: Sequence[Sample], context: ExchangeContext) -> NDArray[np.uint32] | None:
        """Return a client's message of the next exchange, or None when there is none left, for all clients alike.

        A message is an array of 32-bit numbers, as long for all clients. Nothing but the sum of all messages (modulo 2^32) is used, so
        that a network engine can add them up secretly. Runs before :meth:`sanitize`, on every client in every exchange.
        """
        return None

    def pool(self, total: NDArray[np.uint32], pooled: Sequence[NDArray[np.uint32]]) -> NDArray[np.uint32]:
        """Return what the server sends to all clients of a sum of messages, given what it sent in the exchanges before."""
        return total

    def sanitize(self, samples: Sequence[Sample], context: TrainingContext) -> tuple[Sequence[bool | Sample], dict[str, Any]]:
        """Return for each sample whether the client keeps it, or what it trains on in its place, and a report.

        Runs on every client once, before round 1.
        """
        return [True] * len(samples), {}

    def weigh(self, data: Sequence[Encoded], context: TrainingContext) -> tuple[Sequence[Sequence[float]], dict[str, Any]]:
        """Return a weight >= 0 in the loss for each answer token of each of the client's samples, and a report.

        Runs on every client once, before round 1, behind :meth:`sanitize`; weights of several defenses are multiplied.
        """
        return [(1.0,) * len(row.answer) for row in data], {}

    def token_loss(self, round: int, rounds: int) -> TokenLoss | None:
        """Return how a token's cross-entropy becomes its loss in ``round`` (from 1) of ``rounds``; None leaves it. At most one defense."""
        return None

    def select(self, data: Sequence[Encoded], adapter: Tensor, context: TrainingContext) -> tuple[Sequence[bool], dict[str, Any]]:
        """Return which of its samples a client trains on in ``context.round``, and a report.

        Runs on every participant in every round, behind :meth:`sanitize` and :meth:`weigh`; at least one sample must stay. A function of
        what it is given and of :meth:`state` alone: BSNR's clean twins go through it too.

        Args:
            data: the client's samples, all of them.
            adapter: the global adapter ``[D]`` that the client was sent.
            context: of the client in this round.
        """
        return [True] * len(data), {}

    def check(self, k: int) -> None:
        """Refuse ``k`` clients a round, before any training, where that is too few.

        Raises:
            UserError: with the legal range.
        """

    def fits(self, layout: Layout) -> None:
        """Refuse the layout of the adapter, before any training, where it lacks what the defense looks at.

        Raises:
            UserError: what is missing.
        """

    @property
    def needs_trusted(self) -> bool:
        """Whether it cannot do without ``context.trusted``, which a run does not have."""
        return False

    def prepare(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, ServerContext, dict[str, Any]]:
        """Return the rows ``[K', D]`` that are aggregated in place of ``updates [K, D]``, their context, and a report."""
        return updates, context, {}

    def rows(self, k: int) -> int:
        """Return K', the number of rows that :meth:`prepare` makes of ``k``."""
        return k

    def aggregate(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the global change ``[D]`` made of ``updates [K, D]``, and a report. Replaces FedAvg."""
        raise NotImplementedError

    def guard(self, adapter: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the global adapter ``[D]`` to send out, and a report. Runs after aggregation."""
        return adapter, {}

    def bounds(self) -> Bounds | None:
        """Return the activation bounds that belong to the model that :meth:`guard` saw last; None without.

        A task over tensors applies them wherever it measures the model, and saves them beside it.
        """
        return None

    def decode(
        self, prompts: Sequence[Sequence[int]], adapter: Tensor, context: DecodingContext
    ) -> tuple[list[list[int]], dict[str, Any]]:
        """Return the tuned model's answer to each prompt, as tokens without the end token, and a report.

        Replaces greedy generation wherever the tuned model is measured; at most one defense.

        Args:
            prompts: token ids.
            adapter: the global adapter ``[D]``.
            context: of the one who asks.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Return all that the defense remembers from one round to the next, to be saved in the run's checkpoint."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state` returned, before the next round.

        Raises:
            UserError: the state is not this defense's.
        """
        if state:
            raise UserError(
                f"{type(self).__name__} keeps no state, but the checkpoint holds {', '.join(sorted(state))}; delete the run directory and run again"
            )


def overrides(defense: Defense, hook: str) -> bool:
    """Tell whether a defense implements a hook."""
    return getattr(type(defense), hook) is not getattr(Defense, hook)


def make_defenses(options: Sequence[Options], trusted: bool = False) -> list[tuple[str, Defense]]:
    """Build the listed defenses.

    Args:
        options: names and parameters.
        trusted: whether the server has data of its own to train an update on.

    Raises:
        UserError: an unknown name or parameter, two that both replace FedAvg, the clients' loss or generation, one that prepares the updates behind
            the rule, or one that needs what a run does not have.
    """
    made = [pair for option in options for pair in _make(option, trusted)]
    rules = [name for name, defense in made if overrides(defense, "aggregate")]
    if len(rules) > 1:
        raise UserError(f"defenses {' and '.join(rules)} both replace FedAvg; keep one of them")
    losses = [name for name, defense in made if overrides(defense, "token_loss")]
    if len(losses) > 1:
        raise UserError(f"defenses {' and '.join(losses)} both replace the clients' loss; keep one of them")
    decoders = [name for name, defense in made if overrides(defense, "decode")]
    if len(decoders) > 1:
        raise UserError(f"defenses {' and '.join(decoders)} both replace greedy generation; keep one of them")
    behind = False
    for name, defense in made:
        behind = behind or overrides(defense, "aggregate")
        if behind and overrides(defense, "prepare"):
            raise UserError(f"defense '{name}' prepares the updates for '{rules[0]}', which is listed before it; swap them")
    return made


def _make(option: Options, trusted: bool) -> list[tuple[str, Defense]]:
    """One defense, or those that a registered combination lists as options."""
    kind = DEFENSES.get(option.name)
    try:
        if "space" in option.params and isinstance(kind, type) and "space" not in inspect.signature(kind).parameters:
            raise ValueError("it needs the coordinates, so that it runs in the adapter space only; leave space out")
        defense = kind(**option.params)
    except (TypeError, ValueError) as error:
        raise UserError(f"defense '{option.name}' with {option.params}: {error}; see `undertow list defenses`") from error
    if isinstance(defense, list) and all(isinstance(part, Options) for part in defense):
        return [pair for part in defense for pair in _make(part, trusted)]
    if not isinstance(defense, Defense):
        raise UserError(
            f"defense '{option.name}' makes a {type(defense).__name__}; derive it from undertow.defenses.contract.Defense"
        )
    if defense.needs_trusted and not trusted:
        raise UserError(
            f"defense '{option.name}' needs an update from trusted data, which this run does not have; name a client whose data "
            "you trust, as in {name: " + option.name + ", params: {client: 0}}, or set synthetic.generator"
        )
    return [(option.name, defense)]
