"""What a round's updates look like, written beside any Flower strategy: lengths, angles, BSNR, and the cost of averaging LoRA's
factors."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from undertow.config import Bsnr
from undertow.core.errors import UserError, warn_renamed
from undertow.core.rng import rng
from undertow.defenses.aggregation.lora_error import cross_term
from undertow.defenses.contexts import ServerContext
from undertow.flower.arrays import GlobalModel
from undertow.flower.arrival import Arrived, BadReply, Limits, decoded
from undertow.flower.strategies import read_replies
from undertow.metrics.bsnr import gram
from undertow.metrics.round_bsnr import round_bsnr

log = logging.getLogger("flwr")

#: Who is poisoned: node ids, places in the ascending list of node ids, or a function of a reply.
Poisoned = Collection[int] | Callable[[Message], bool]


class Diagnosed(Strategy):  # type: ignore[misc]
    """A strategy that does exactly what another does, and writes a line of measurements of every training round.

    It needs ground truth: it is for experiments, and no part of a defense. Lines hold ``round``, ``nodes`` (whose replies were
    measured, ascending), ``poisoned``, ``dropped`` (replies that could not be measured, with reasons; the strategy may have used
    them), ``counts``, ``norms`` and ``cosines`` (each with each) of the updates, the same of the global ``change``, ``bsnr`` by
    space with its permutation null (None without both groups or without a change) and ``cross_term`` (see
    :func:`undertow.defenses.aggregation.lora_error.cross_term`; None without LoRA).

    Attributes:
        strategy: the wrapped one; what is asked of the wrapper and not known here is asked of it.
        last: the last round's line.

    Args:
        strategy: any of Flower's message-based strategies.
        poisoned: who trains on poison. A number below the count of nodes is a place in the ascending list of the ids that are known
            when the first round begins, any other a node id. A function sees each reply, such as one that carries ``partition-id``.
        path: a file that lines are added to.
        permutations: relabellings behind BSNR's null; 0 = none.
        lora_scale: s = alpha / r.
        weighted_by_key: under which replies say how many samples they have.
        seed: of the relabellings.

    Raises:
        UserError: something that is no strategy, or ``poisoned`` names what is no whole number from 0.
    """

    def __init__(
        self,
        strategy: Strategy,
        poisoned: Poisoned,
        path: str | Path = "diagnostics.jsonl",
        *,
        permutations: int = 200,
        lora_scale: float = 1.0,
        weighted_by_key: str = "num-examples",
        seed: int = 0,
    ) -> None:
        if not isinstance(strategy, Strategy):
            raise UserError(
                f"{type(strategy).__name__} is no Flower strategy; give one of flwr.serverapp.strategy or undertow.flower"
            )
        if not callable(poisoned):
            listed = list(poisoned) if isinstance(poisoned, Iterable) else [f"no list but {poisoned!r}"]
            if odd := [one for one in listed if isinstance(one, bool) or not isinstance(one, Integral) or one < 0]:
                raise UserError(f"poisoned names {odd[0]}; give a list of node ids or places, whole numbers from 0")
        self.strategy = strategy
        self.poisoned = poisoned
        self.path = Path(path)
        self.permutations = permutations
        self.lora_scale = lora_scale
        self.weighted_by_key = weighted_by_key
        self.seed = seed
        self.last: dict[str, Any] = {}
        self._places: list[int] = []
        self._names: list[str] = []
        self._model: GlobalModel | None = None

    def __getattr__(self, name: str) -> Any:
        """Whatever else the wrapped strategy has."""
        if name == "strategy":  # before __init__, as in a copy
            raise AttributeError(name)
        return getattr(self.strategy, name)

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Remember what is sent out, and let the strategy choose."""
        # Flower's FedAvg turns counters into floats: what was one in the first round is no column later either.
        self._names = self._names or GlobalModel(arrays).columns
        self._model = GlobalModel(ArrayRecord({name: arrays[name] for name in self._names if name in arrays}), self.lora_scale)
        messages: Iterable[Message] = self.strategy.configure_train(server_round, arrays, config, grid)
        if not self._places:
            self._places = sorted(grid.get_node_ids())
            if unknown := [one for one in self._listed if one >= len(self._places) and one not in self._places]:
                log.warning(
                    "poisoned names %s: neither a place of the %d nodes that are known, from 0, nor a node id; it marks nobody "
                    "until such a node connects",
                    ", ".join(map(str, unknown)),
                    len(self._places),
                )
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy aggregate, and measure; the replies and the result are not touched."""
        kept = list(replies)
        if self._model is None:
            return self._inner(server_round, kept)
        # first, for some of Flower's strategies empty the replies
        sound, updates, dropped = read_replies(kept, self._model, self.weighted_by_key, Limits(), others=True)
        marks = self._marks(sound, kept)
        result = self._inner(server_round, kept)
        line: dict[str, Any] = {
            "round": server_round,
            "nodes": [reply.node for reply in sound],
            "poisoned": marks,
            "dropped": [{"node": drop.node, "reason": drop.reason} for drop in dropped],
            "counts": [reply.examples for reply in sound],
        }
        self.last = line | self._measured(line, self._model, updates, result[0])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(self.last) + "\n")
        return result

    @property
    def _listed(self) -> list[int]:
        return [] if callable(self.poisoned) else list(self.poisoned)

    def _inner(self, server_round: int, replies: list[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        result: tuple[ArrayRecord | None, MetricRecord | None] = self.strategy.aggregate_train(server_round, replies)
        return result

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Let the strategy choose."""
        messages: Iterable[Message] = self.strategy.configure_evaluate(server_round, arrays, config, grid)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Let the strategy aggregate."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Let the strategy log itself, and log where the lines go."""
        self.strategy.summary()
        log.info("\t└──> Diagnostics: %s", self.path)

    def _measured(self, line: dict[str, Any], model: GlobalModel, updates: Tensor, new: ArrayRecord | None) -> dict[str, Any]:
        """What is computed of the updates of a line's nodes."""
        delta = torch.zeros(model.layout.size)
        if new is not None:
            try:
                delta = model.update({name: decoded(name, new[name], spec) for name, spec in model.specs.items()})
            except (KeyError, BadReply) as error:
                raise UserError(
                    f"the strategy returned another model than it sent ({error}); diagnostics cannot measure it"
                ) from error
        if not len(updates):
            return {"norms": [], "cosines": [], "change": None, "bsnr": None, "cross_term": None}
        products = gram(updates, delta)
        norms, norm = products.G.diagonal().sqrt(), products.dd**0.5
        told: dict[str, Any] = {
            "norms": norms.tolist(),
            "cosines": _cosines(products.G, norms[:, None] * norms[None, :]).tolist(),
            "change": {"norm": norm, "cosines": _cosines(products.g, norms * norm).tolist()},
        }
        spaces = ["adapter", "delta_w"] if model.is_lora else ["adapter"]
        context = ServerContext(
            model.layout, line["counts"], line["round"], model.flat, rng(self.seed, "diagnostics", line["round"])
        )
        return told | {
            "bsnr": round_bsnr(
                updates,
                line["poisoned"],
                model.flat,
                model.flat + delta,
                layout=model.layout,
                options=Bsnr(spaces=spaces, permutations=self.permutations),  # type: ignore[arg-type,call-arg]
                seed=self.seed,
                round=line["round"],
            ),
            "cross_term": cross_term(updates, context) if model.is_lora else None,
        }

    def _marks(self, sound: list[Arrived], replies: list[Message]) -> list[bool]:
        """Which of the sound replies are of poisoned clients."""
        if callable(self.poisoned):
            by_node = {reply.metadata.src_node_id: reply for reply in replies}
            return [bool(self.poisoned(by_node[reply.node])) for reply in sound]
        nodes = {self._places[one] if 0 <= one < len(self._places) else one for one in self.poisoned}
        return [reply.node in nodes for reply in sound]


def with_diagnostics(
    strategy: Strategy, poisoned: Poisoned | None = None, path: str | Path = "diagnostics.jsonl", **options: Any
) -> Diagnosed:
    """Return a strategy that does what ``strategy`` does and writes a line a round; arguments as :class:`Diagnosed`.

    ``affected`` is the former name of ``poisoned``.

    Raises:
        UserError: nobody says who is poisoned.
    """
    if "affected" in options:
        warn_renamed("affected", "poisoned")
        poisoned = options.pop("affected")
    if poisoned is None:
        raise UserError("with_diagnostics compares poisoned with clean clients; give poisoned=[...], node ids or their places")
    return Diagnosed(strategy, poisoned, path, **options)


def _cosines(products: Tensor, lengths: Tensor) -> Tensor:
    """Return the quotient within [-1, 1], 0 where there is no direction."""
    return torch.where(lengths > 0, products / torch.where(lengths > 0, lengths, 1.0), 0.0).clamp(-1, 1)
