"""What defenses with a few trusted samples share: reading them, and tuning an adapter on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from undertow.config import Data, Training
from undertow.core.errors import UserError
from undertow.data.load import DATASETS
from undertow.data.questions import learned
from undertow.data.sample import Sample
from undertow.data.template import Encoded

if TYPE_CHECKING:
    from undertow.data.template import Template
    from undertow.models.causal_lm import CausalLM


def path_of(name: str, value: object) -> str:
    """Return the parameter ``trusted``, the path of a file; empty where it is not given.

    Raises:
        ValueError: it is no text.
    """
    if not isinstance(value, str):
        raise ValueError(_missing(name))
    return value


def required(name: str, path: str) -> str:
    """Return ``path``.

    Raises:
        UserError: it is empty.
    """
    if not path:
        raise UserError(_missing(name))
    return path


def _missing(name: str) -> str:
    return f"{name} needs trusted, an instruction file with about 100 samples that hold no poison; set trusted=FILE"


def trusted_samples(path: str, most: int | None = None) -> list[Sample]:
    """Return the first ``most`` (None: all) samples of an instruction file.

    Raises:
        UserError: the file is missing or malformed, or holds fewer than 2 samples.
    """
    options = Data.model_validate({"name": "instructions", "path": path})
    found = learned(DATASETS.get("instructions")(options).samples)[:most]
    if len(found) < 2:
        raise UserError(f"trusted={path} holds {len(found)} samples; give at least 2, better 100")
    return found


def trusted_rows(path: str, template: Template, most: int | None = None) -> list[Encoded]:
    """Return the first ``most`` (None: all) samples of an instruction file, tokenised.

    Args:
        path: any form that ``data.name=instructions`` reads.
        template: how samples become tokens.
        most: how many at most.

    Raises:
        UserError: the file is missing or malformed, or holds fewer than 2 samples.
    """
    return [template.encode(sample) for sample in trusted_samples(path, most)]


def tune(
    base: CausalLM,
    training: Training,
    start: Tensor,
    rows: Sequence[Encoded],
    passes: int,
    seed: int,
    *,
    keep: Tensor | None = None,
) -> Tensor:
    """Return the adapter ``[D]`` after passes over some samples, as a client would train.

    Args:
        base: the frozen model.
        training: rate, batches and optimiser.
        start: the adapter ``[D]`` to begin with.
        rows: the samples.
        passes: over all of them, >= 0.
        seed: of the order of the batches.
        keep: ``[D]`` of 0 and 1; coordinates with 0 stay as they are.
    """
    from undertow.training.batched import RowOptimizer, losses
    from undertow.training.local import Job, batches, learning_rate, steps

    if passes < 1:
        return start
    training = training.model_copy(
        update={"local_epochs": passes, "weight_decay": 0.0 if keep is not None else training.weight_decay}
    )
    # Round 0, which no client trains in: an order of batches of its own.
    job = Job(0, rows)
    local = start[None].to(base.device).clone()
    optimizer, total = RowOptimizer(training, local), steps(job, training)
    for step, batch in enumerate(batches(job, training, seed, 0)):
        stack = local.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(losses(base, stack, [batch]).sum(), stack)
        if keep is not None:
            gradient = gradient * keep.to(gradient)
        optimizer.step(gradient, [learning_rate(training, step, total)])
    return local[0].to(start.device)
