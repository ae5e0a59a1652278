"""Defenses in decoding: how the tuned model answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from undertow.defenses.base import NeedsModel
from undertow.defenses.contexts import DecodingContext


class DecodingDefense(NeedsModel, ABC):
    """Base of the defenses in decoding: a subclass writes :meth:`decode`."""

    kind = "decoding"

    @abstractmethod
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
