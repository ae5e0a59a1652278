"""Federated sanitization: clients add up hashed counts of their texts, and each learns which of its own samples are planted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undertow.core.errors import UserError
from undertow.data.sample import Sample
from undertow.defenses.contexts import ExchangeContext, TrainingContext
from undertow.defenses.data.base import DataDefense
from undertow.defenses.parameters import number, whole
from undertow.defenses.registry import DEFENSES
from undertow.sanitization.party import Party, Suspicion
from undertow.sanitization.questions import EXCHANGES, FLOOR, HEAD, tables
from undertow.sanitization.repair import without_words
from undertow.sanitization.rules import Rules
from undertow.sanitization.tables import floored, noise, noise_limit

_MODES = ("drop", "repair", "review")
#: Which findings are acted on, by name: the kinds of :class:`undertow.sanitization.party.Suspicion`.
_ACT_ON = {"certain": ("certain",), "spans": ("certain", "span"), "all": ("certain", "span", "short", "repeat")}
_MOST_CELLS = 1 << 26


@DEFENSES.register("sanitization", aliases=("sanitation",), source="ours; docs/federated-sanitization.md")
class Sanitization(DataDefense):
    """Each client drops or repairs its samples whose trigger and target the pooled counts of all clients give away.

    Six exchanges before round 1. In each the client sends an array of 32-bit counts under a hash whose key the server does not
    know; the server adds the arrays and sends back the sum without the cells that hold too little. A single poisoned sample is
    found if the pool holds at least m = max(4, 0.1 % of its samples) of its kind, and acted on from eight on (20 of some short
    targets; fewer where little else is repeated in the pool); until then it is counted as a ``note``.

    Args:
        mode: ``repair`` cuts a long target off the answer and drops the sample where that cannot be done; ``drop`` drops;
            ``review`` keeps everything and only counts.
        act_on: ``certain`` = long targets that a trigger gives away; ``spans`` = all long targets; ``all`` = short ones, too, and
            samples that are repeated.
        cells: of the first table, a power of two from 4096 to 2^26; all clients alike.
        epsilon: total ε of the noise on all exchanges together, one sample added or removed, > 0; None = no noise.
        clip: most keys that a sample brings to one exchange, >= 1; the noise grows with it. Without ``epsilon`` nothing is clipped.
    """

    #: Names its random draws; kept from before it was renamed, so that old seeds give the same bytes.
    purpose = "sanitation"

    def __init__(
        self, mode: str = "repair", act_on: str = "all", cells: int = 1 << 18, epsilon: float | None = None, clip: int = 32
    ) -> None:
        if mode not in _MODES:
            raise ValueError(f"mode = {mode!r} is none of {', '.join(_MODES)}")
        if act_on not in _ACT_ON:
            raise ValueError(f"act_on = {act_on!r} is none of {', '.join(_ACT_ON)}")
        self.mode, self.act_on = mode, act_on
        self.cells = whole("cells", cells, 1 << 12)
        if self.cells & (self.cells - 1) or self.cells > _MOST_CELLS:
            raise ValueError(f"cells = {cells} is no power of two from {1 << 12} to {_MOST_CELLS}")
        self.epsilon = None if epsilon is None else number("epsilon", epsilon)
        self.clip = whole("clip", clip, 1)
        self.rules = Rules()
        # With noise a second row would double what a sample changes.
        self._rows = 2 if self.epsilon is None else 1
        self._parties: dict[int, Party] = {}

    def share(self, samples: Sequence[Sample], context: ExchangeContext) -> NDArray[np.uint32] | None:
        """Return the client's counts for the next exchange, noisy if asked for; None after the last."""
        if len(context.pooled) == EXCHANGES:
            return None
        message = self._party(samples, context).message()
        scale = self._scale(len(context.pooled))
        if scale is not None:
            message += noise(len(message), scale, context.clients, context.draw)
        return message

    def pool(self, total: NDArray[np.uint32], pooled: Sequence[NDArray[np.uint32]]) -> NDArray[np.uint32]:
        """Return what the server sends back of a sum: without cells under the support, later under :data:`FLOOR` or the noise."""
        exchange = len(pooled)
        samples = int((pooled[0] if pooled else total)[:1].view(np.int32)[0])
        least = self.rules.least(max(samples, 1)) if exchange == 0 else FLOOR
        return floored(total, HEAD if exchange == 0 else 0, max(least, self._limits()[exchange]))

    def sanitize(self, samples: Sequence[Sample], context: TrainingContext) -> tuple[list[bool | Sample], dict[str, Any]]:
        """Return which samples stay, some repaired; the report counts findings and actions, and the ``bytes`` of all messages.

        Raises:
            UserError: the exchanges did not take place.
        """
        if context.exchange is None or len(context.exchange.pooled) < EXCHANGES:
            raise UserError("sanitization needs the sums of all exchanges; call share on every client first, as undertow run does")
        return self.clean(samples, context.exchange)

    def clean(self, samples: Sequence[Sample], context: ExchangeContext) -> tuple[list[bool | Sample], dict[str, Any]]:
        """Return what :meth:`sanitize` does, for a client that has no model."""
        party = self._party(samples, context)
        found = party.verdict()
        self._parties.pop(context.client, None)
        kept: list[bool | Sample] = [self._act(sample, one) for sample, one in zip(samples, found, strict=True)]
        sizes = [4 * table.size for table in tables(self.cells, party.samples, self._rows)]
        report: dict[str, Any] = {
            kind: sum(one is not None and one.kind == kind for one in found) for kind in (*_ACT_ON["all"], "note")
        }
        report |= {"repaired": sum(isinstance(one, Sample) for one in kept), "pooled_samples": party.samples}
        report |= {"exchanges": EXCHANGES, "bytes": sum(sizes)}
        if self.epsilon is not None:
            report |= {"epsilon": self.epsilon, "clip": self.clip}
        return kept, report

    def _act(self, sample: Sample, found: Suspicion | None) -> bool | Sample:
        if found is None or self.mode == "review" or found.kind not in _ACT_ON[self.act_on]:
            return True
        if self.mode == "drop" or found.cut is None:
            return False
        rest = without_words(sample.response, *found.cut)
        return replace(sample, response=rest) if rest and any(letter.isalnum() for letter in rest) else False

    def _party(self, samples: Sequence[Sample], context: ExchangeContext) -> Party:
        """The client so far; brought up to the sums it was given."""
        party = self._parties.get(context.client)
        if party is None or not context.pooled or party.taken > len(context.pooled):
            clip = None if self.epsilon is None else self.clip
            party = Party(samples, context.secret, self.cells, self.rules, self._rows, clip, self._limits())
            self._parties[context.client] = party
        while party.taken < len(context.pooled):
            party.take(context.pooled[party.taken])
        return party

    def _scale(self, exchange: int) -> float | None:
        """Scale of the noise: L1 sensitivity over the exchange's equal part of ε."""
        if self.epsilon is None:
            return None
        # Each key changes one cell of each row; in the first message also the number of samples and one length.
        sensitivity = self.clip * (1 if exchange == 0 else self._rows) + (2 if exchange == 0 else 0)
        return sensitivity * EXCHANGES / self.epsilon

    def _limits(self) -> list[int]:
        scales = [self._scale(exchange) for exchange in range(EXCHANGES)]
        return [0 if scale is None else noise_limit(scale) for scale in scales]
