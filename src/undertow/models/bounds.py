"""Bounds on a network's internal activations: min(h, z) per channel, applied from outside without changing a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from undertow.core.errors import UserError, nearest
from undertow.core.files import write_bytes

#: Modules of torch whose output is an activation; those of transformers are known by where they are defined.
_KINDS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish)
_TRANSFORMERS = "transformers.activations"

#: What a file's tensors are called: ``upper/MODULE`` and ``lower/MODULE``.
_SIDES = ("upper", "lower")


#: Their file beside a model.
BOUNDS = "bounds.safetensors"


@dataclass(frozen=True)
class Bounds:
    """Bounds of the outputs of some modules.

    Attributes:
        upper: z by the module's name, ``[C]`` float32, C = its channels.
        lower: the same from below; empty where bounds are one-sided.
    """

    upper: Mapping[str, Tensor]
    lower: Mapping[str, Tensor] = field(default_factory=dict)

    def named(self) -> dict[str, Tensor]:
        """Return all tensors as ``upper/MODULE`` and ``lower/MODULE``, the form of a file and of a checkpoint."""
        return {f"{side}/{name}": z for side in _SIDES for name, z in getattr(self, side).items()}

    @staticmethod
    def of(named: Mapping[str, Tensor]) -> Bounds:
        """Return the bounds that :meth:`named` gave.

        Raises:
            ValueError: a name of another form, values that are no finite numbers ``[C]``, lower bounds without upper ones or above
                them.
        """
        found: dict[str, dict[str, Tensor]] = {side: {} for side in _SIDES}
        for key, z in named.items():
            side, _, name = key.partition("/")
            if side not in _SIDES or not name:
                raise ValueError(f"'{key}' is no bound: names are upper/MODULE and lower/MODULE")
            if z.dim() != 1 or not len(z) or not z.is_floating_point() or not bool(torch.isfinite(z).all()):
                raise ValueError(f"'{key}' of shape {list(z.shape)} holds no row of finite numbers")
            found[side][name] = z
        for name, z in found["lower"].items():
            above = found["upper"].get(name)
            if above is None or above.shape != z.shape or bool((z > above).any()):
                raise ValueError(f"'lower/{name}' has no upper bound of {len(z)} channels above it")
        return Bounds(found["upper"], found["lower"])


def places(module: nn.Module, which: object = "all") -> list[str]:
    """Return the names of the modules whose outputs are to be bounded, in the module's own order.

    Activations are, in a transformers model, those of each block's MLP. A module that one pass uses several times is one place,
    with one bound for all its uses.

    Args:
        module: the network or language model.
        which: ``all`` activations; a whole number n, the first n of them; ``linear``, all activations and the outputs of all linear
            layers but the last; one name of any module, or a sequence of names.

    Raises:
        UserError: there is none, or not those asked for.
    """
    named = {name: part for name, part in module.named_modules() if name}
    found = [name for name, part in named.items() if isinstance(part, _KINDS) or type(part).__module__ == _TRANSFORMERS]
    if which == "linear":
        lines = [name for name, part in named.items() if isinstance(part, nn.Linear)][:-1]
        found = [name for name in named if name in found or name in lines]
    wanted: list[object] = []
    if which not in ("all", "linear") and (isinstance(which, bool) or not isinstance(which, int)):
        wanted = [which] if isinstance(which, str) else list(which) if isinstance(which, Sequence) else [which]
        for name in wanted:
            if name not in named:
                raise UserError(
                    f"places: {name!r} is no module of this network{nearest(str(name), list(named))}; its activations are "
                    f"{', '.join(found)}"
                )
        if not wanted or len(set(wanted)) < len(wanted):
            raise UserError(f"places = {wanted}: give each name once, at least one of {', '.join(found)}")
        return [name for name in named if name in wanted]
    if not found:
        raise UserError(
            f"{type(module).__name__} has no activation to bound: no module of the kinds {', '.join(k.__name__ for k in _KINDS)} "
            "or of transformers' own; name modules in places, or choose another network"
        )
    if isinstance(which, int):
        if not 1 <= which <= len(found):
            raise UserError(
                f"places = {which}: this network has {len(found)} activations; give 1 to {len(found)}, all, linear, or names"
            )
        return found[:which]
    return found


def aligned(z: Tensor, output: Tensor) -> Tensor:
    """Return a row of numbers ``[C]`` so that it broadcasts over a module's output: channels are axis 1 of images, else the
    last."""
    return z.to(output)[:, None, None] if output.dim() == 4 else z.to(output)


def channels(output: Tensor) -> Tensor:
    """Return a module's output as rows ``[m, C]``, channels as in :func:`aligned`."""
    return (output.movedim(1, -1) if output.dim() == 4 else output).flatten(0, -2)


@contextmanager
def bounded(module: nn.Module, bounds: Bounds) -> Iterator[None]:
    """Within this context the module computes with min(max(h, lower), upper) in the place of each bounded output h.

    Hooks do it, so that it holds for ``torch.func.functional_call``, under ``torch.vmap`` and inside
    :func:`undertow.models.lora.adapted` alike. Gradients flow to the bounds where these ask for them. No weight is touched, and the
    hooks are gone afterwards, whatever happens inside; a copy of the module that is made inside keeps them.

    Args:
        module: the network or language model.
        bounds: of its modules, on any device and of any floating-point type.

    Raises:
        UserError: a name that the module does not have, or, in a pass, another number of channels.
    """
    handles = []
    try:
        for name in dict.fromkeys([*bounds.upper, *bounds.lower]):
            clip = partial(_clip, name, bounds.lower.get(name), bounds.upper.get(name))
            handles.append(_part(module, name).register_forward_hook(clip))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _clip(name: str, lower: Tensor | None, upper: Tensor | None, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() < 2:
        raise UserError(f"'{name}' puts out no rows of channels, which alone can be bounded; leave it out of places")
    count = output.shape[1 if output.dim() == 4 else -1]
    for z in (lower, upper):
        if z is not None and z.shape != (count,):
            raise UserError(f"the bounds of '{name}' are for {len(z)} channels and it has {count}; use the bounds of this network")
    low, high = (None if z is None else aligned(z, output) for z in (lower, upper))
    return output.clamp(low, high)


def _part(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise UserError(f"bounds of '{name}', which this network does not have; use bounds of the same network") from error


@contextmanager
def watched(module: nn.Module, places: Sequence[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within this context ``see(name, output)`` is told each output of the named modules, before any bounds set inside it."""
    handles = []
    try:
        for name in places:
            handles.append(_part(module, name).register_forward_hook(lambda part, inputs, output, name=name: see(name, output)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def maxima(run: Callable[[], object], module: nn.Module, places: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the largest and the smallest output of each channel of the named modules while ``run`` computes with the module.

    Args:
        run: any number of passes.
        module: the network or language model.
        places: names of its modules.

    Returns:
        maxima and minima by name, each ``[C]`` float32.

    Raises:
        UserError: no pass went through one of them, one has outputs of several widths, or values that are not finite.
    """
    high: dict[str, Tensor] = {}
    low: dict[str, Tensor] = {}

    def see(name: str, output: Tensor) -> None:
        if not isinstance(output, Tensor) or output.dim() < 2:
            raise UserError(f"'{name}' puts out no rows of channels, which alone can be bounded; leave it out of places")
        rows = channels(output.detach()).float()
        top, bottom = rows.amax(0), rows.amin(0)
        if name in high and high[name].shape != top.shape:
            raise UserError(f"'{name}' gives outputs of {len(high[name])} and of {len(top)} channels; leave it out of places")
        high[name] = torch.maximum(high.get(name, top), top)
        low[name] = torch.minimum(low.get(name, bottom), bottom)

    with watched(module, places, see):
        run()
    for name in places:
        if name not in high:
            raise UserError(f"no pass goes through '{name}'; leave it out of places")
        if not bool(torch.isfinite(high[name]).all() and torch.isfinite(low[name]).all()):
            raise UserError(f"the outputs of '{name}' are not finite; the model has diverged, lower the learning rate")
    return high, low


@torch.no_grad()
def clipped_share(run: Callable[[], object], module: nn.Module, bounds: Bounds) -> float:
    """Return the share of all bounded activations that the bounds change while ``run`` computes with the module."""
    counts = [0, 0]

    def see(name: str, output: Tensor) -> None:
        upper, lower = bounds.upper.get(name), bounds.lower.get(name)
        over = torch.zeros_like(output, dtype=torch.bool) if upper is None else output > aligned(upper, output)
        if lower is not None:
            over |= output < aligned(lower, output)
        counts[0] += int(over.sum())
        counts[1] += output.numel()

    with watched(module, list(dict.fromkeys([*bounds.upper, *bounds.lower])), see), bounded(module, bounds):
        run()
    return counts[0] / max(1, counts[1])


def save_bounds(path: Path, bounds: Bounds) -> None:
    """Write bounds as safetensors, float32, atomically: ``upper/MODULE`` and ``lower/MODULE``, each ``[C]``."""
    tensors = {key: z.detach().to("cpu", torch.float32).contiguous().clone() for key, z in bounds.named().items()}
    write_bytes(path, save(tensors))


def load_bounds(path: Path, module: nn.Module) -> Bounds:
    """Read what :func:`save_bounds` wrote, checked against the network or language model that it is for.

    The numbers of channels are checked in the first pass.

    Raises:
        UserError: no such file, damaged, or the bounds of another network.
    """
    try:
        bounds = Bounds.of(load(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path}: no such file of bounds; give one that a run with activation-bounds has left") from error
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} holds no bounds: {' '.join(str(error).split())}; copy it again") from error
    for name in bounds.upper:
        try:
            _part(module, name)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    if not bounds.upper:
        raise UserError(f"{path} is empty; copy it again")
    return bounds
