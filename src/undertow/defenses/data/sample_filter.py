"""What all data filters share: each sample stays or goes, whatever the order the samples lie in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undertow.data.sample import Sample
from undertow.data.template import Encoded
from undertow.defenses.contexts import TrainingContext
from undertow.defenses.data.base import DataDefense
from undertow.defenses.trusted import tune


class Filter(DataDefense):
    """Base of the data filters: a subclass writes :meth:`keeps`."""

    #: Fewer samples than this are all kept: nothing stands out among so few.
    least: ClassVar[int] = 5

    def keeps(
        self, samples: Sequence[Sample], context: TrainingContext
    ) -> tuple[Sequence[bool | Sample] | NDArray[np.bool_], dict[str, Any]]:
        """Return which samples stay, or what stands in their place, and a report of plain JSON values.

        Args:
            samples: at least :attr:`least`, in an order that depends on their texts alone.
            context: of the client.
        """
        raise NotImplementedError(f"{type(self).__name__} must override keeps")

    def sanitize(self, samples: Sequence[Sample], context: TrainingContext) -> tuple[list[bool | Sample], dict[str, Any]]:
        """Return what the client trains on, sample by sample; the report counts the ``dropped`` ones.

        Raises:
            UserError: what the filter needs is missing.
        """
        if len(samples) < self.least:
            return [True] * len(samples), {"dropped": 0, "too_few": True}
        order = canonical(samples)
        stays, report = self.keeps([samples[i] for i in order], context)
        keep: list[bool | Sample] = [True] * len(samples)
        for i, kept in zip(order, stays, strict=True):
            keep[i] = kept if isinstance(kept, Sample) else bool(kept)
        return keep, {"dropped": sum(kept is False for kept in keep), **report}


def canonical(samples: Sequence[Sample]) -> list[int]:
    """Return an order of the samples that depends on their texts alone, as indices."""
    return sorted(range(len(samples)), key=lambda i: (samples[i].question, samples[i].context, samples[i].response, samples[i].id))


def text_nll(texts: Sequence[str], context: TrainingContext) -> list[float]:
    """Return the mean of -log p, in nats, over the tokens of each text by itself under the base; the first token is given.

    That is the token that opens every text where the tokenizer has one. A text of a single token has 0.
    """
    from undertow.training.token_nll import token_nll

    unique = sorted(set(texts))
    end, most = context.base.tokenizer.eos_token_id, context.template.max_length
    rows = []
    for text in unique:
        ids = context.template.alone(text)[:most]
        ids = ids[:-1] if len(ids) > 1 and ids[-1] == end else ids
        rows.append(Encoded(tuple(ids[:1]), tuple(ids[1:])))
    full = [i for i, row in enumerate(rows) if row.answer]
    found = dict.fromkeys(unique, 0.0)
    for i, own in zip(full, token_nll(context.base, [rows[i] for i in full]), strict=True):
        found[unique[i]] = sum(own) / len(own)
    return [found[text] for text in texts]


def own_model(rows: Sequence[Encoded], context: TrainingContext, passes: int) -> Tensor:
    """Return an adapter ``[D]`` that the client trains on its own samples, from the run's initial one, by the run's options."""
    from undertow.models.lora import initial_adapter

    kind = torch.float64 if context.base.model.dtype == torch.float64 else torch.float32
    start = initial_adapter(context.base.layout, context.seed, kind)
    return tune(context.base, context.training, start, rows, passes, context.seed)
