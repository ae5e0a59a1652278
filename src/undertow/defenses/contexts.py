"""What each party of a run really has, as defenses see it. Which clients are poisoned is in none of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from undertow.config import Lora, Training
from undertow.core.layout import Layout

if TYPE_CHECKING:
    from undertow.data.examples import Examples
    from undertow.data.template import Template
    from undertow.models.causal_lm import CausalLM
    from undertow.models.net import Net


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
        counts: samples n_k of each row, as the clients report them.
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
        exchange: of a defense with ``share``, in ``sanitize``: all that came back; None elsewhere.
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
