"""A base with an adapter that somebody saved: compared with the base it was trained on, and read as what its files say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from undertow.core.layout import Layout
from undertow.models.adapters import folded, load_peft, read_adapter
from undertow.models.causal_lm import CausalLM, with_paths
from undertow.models.identity import check_identity


@dataclass(frozen=True)
class Adapted:
    """A base with an adapter: ``flat [D]`` in ``layout`` on the base itself, or neither where it is folded into its weights."""

    base: CausalLM
    flat: Tensor | None
    layout: Layout | None


def with_adapter(base: CausalLM, folder: Path) -> Adapted:
    """Return a base with a PEFT adapter, whatever kind of LoRA; the given base stays as it is.

    Raises:
        UserError: as :func:`~undertow.models.adapters.read_adapter`.
    """
    found = read_adapter(folder, base.model)
    check_identity(folder, base.path, base.model.config)
    if found.flat is not None:
        return Adapted(base, found.flat, found.layout)
    return Adapted(with_paths(replace(base, model=folded(folder, base.model))), None, None)


def plain_adapter(base: CausalLM, folder: Path) -> tuple[Tensor, Layout]:
    """Return a PEFT adapter that leaves the base's weights, as ``(flat [D], layout)``.

    Raises:
        UserError: as :func:`~undertow.models.adapters.load_peft`, or it was trained on another base.
    """
    found = load_peft(folder, base.model)
    check_identity(folder, base.path, base.model.config)
    return found
