"""A small network whose parameters are a row of the update matrix: images, words from scratch, or a whole language model."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from undertow.config import short_form
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.registry import Registry, refuse_unknown
from undertow.core.rng import torch_rng

#: Shipped networks; one is a function ``(inputs: tuple[int, ...], outputs: int, **options) -> torch.nn.Module``.
NETS = Registry("network", "undertow.models.nets")


class Net:
    """A module as a function of one flat vector, its state: what is trained, sent and averaged.

    The columns of a state are the trainable parameters in module order, then the running means and variances that
    training moves. Whatever else the module holds stays as it is. Dropout is on in training only where the module takes it
    as an argument ``noise`` and says by ``noise_shapes(n, length)`` what it needs; all other dropout stays off, since it
    would draw from torch's global generator.

    Args:
        module: returns logits ``[n, C]`` or ``[n, length, C]`` for inputs ``[n, ...]``, or an object that has them as
            ``logits``, such as a transformers model. Words are padded on the right. It is kept and put in evaluation mode.
            One with LoRA factors, ``MODULE.lora_A`` and ``MODULE.lora_B``, has their scale s as ``lora_scale``.

    Attributes:
        module: as given; no method changes its values.
        layout: of the D columns of a state.
        parameters: of the first columns, those that are trained.
        statistics: of the others.
        trained: number of columns that are parameters.
        normalizes: whether an example's outcome in training depends on the others of its batch.

    Raises:
        ValueError: nothing to train, or running statistics that count their batches (``momentum=None``).
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval()
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not parameters:
            raise ValueError(f"{type(module).__name__} has no parameter that requires a gradient")
        parts = [(name, part) for name, part in module.named_modules() if isinstance(part, _NormBase)]
        if any(part.momentum is None and part.running_mean is not None for _, part in parts):
            raise ValueError("a running mean with momentum=None depends on how many batches went before; give it a momentum")
        buffers = {
            f"{name}.{kind}" if name else kind: getattr(part, kind)
            for name, part in parts
            for kind in ("running_mean", "running_var")
            if getattr(part, kind) is not None
        }
        self._state: dict[str, Tensor] = {**parameters, **buffers}
        scale = float(getattr(module, "lora_scale", 1.0))
        self.layout, self.parameters, self.statistics = (
            Layout.of({name: tuple(t.shape) for name, t in tensors.items()}, scale)
            for tensors in (self._state, parameters, buffers)
        )
        self.trained = self.parameters.size
        self.normalizes = bool(parts)
        self._fixed = {
            name: t
            for tensors in (module.named_parameters(), module.named_buffers())
            for name, t in tensors
            if name not in self._state
        }
        self._options: dict[str, Any] = {"use_cache": False} if "use_cache" in inspect.signature(module.forward).parameters else {}

    def initial(self) -> Tensor:
        """Return the state of the module as it was given: ``[D]`` float32."""
        return self.layout.flatten(self._state)

    def of_state(self, state: Tensor) -> dict[str, Tensor]:
        """Return views of a state ``[..., D]`` by name: ``[..., *shape]``."""
        return self.layout.unflatten(state)

    def call(
        self,
        tensors: Mapping[str, Tensor],
        inputs: Tensor,
        noise: tuple[Tensor, ...] | None = None,
        module: nn.Module | None = None,
    ) -> Tensor:
        """Return the logits of ``inputs`` with the values of a state instead of the module's own; differentiable in them.

        Args:
            tensors: of every name of the layout, as :meth:`of_state` gives them; running statistics are updated in place
                by a module in training mode.
            inputs: ``[n, ...]``, on the device of the state.
            noise: for dropout, as :meth:`noise` draws it; None is none.
            module: a copy from :meth:`training_copy`; None is the module itself, in evaluation mode.
        """
        like = next(iter(tensors.values()))
        # Whole numbers are left to the module where they can be: a copy in training counts its batches in its own.
        fixed = {
            name: t.to(like) if t.is_floating_point() else t.to(like.device)
            for name, t in self._fixed.items()
            if t.is_floating_point() or t.device != like.device
        }
        return self.logits_of(self.module if module is None else module, inputs, noise, like.dtype, {**fixed, **tensors})

    def logits_of(
        self,
        module: nn.Module,
        inputs: Tensor,
        noise: tuple[Tensor, ...] | None,
        dtype: torch.dtype,
        tensors: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the logits of a copy of the module, run with ``tensors`` or with its own values, computing in ``dtype``."""
        if inputs.is_floating_point():
            inputs = inputs.to(dtype)
        options = self._options if noise is None else {**self._options, "noise": noise}
        found = module(inputs, **options) if tensors is None else torch.func.functional_call(module, tensors, (inputs,), options)
        logits: Tensor = getattr(found, "logits", found)
        return logits

    @torch.no_grad()
    def logits(self, state: Tensor, inputs: Tensor, *, rows: int = 256) -> Tensor:
        """Return the logits of ``inputs [n, ...]`` in evaluation mode, on the device of ``state [D]``: ``[n, ..., C]``.

        Args:
            state: as trained.
            inputs: at least one.
            rows: computed at a time; only the logits themselves are kept of each block.
        """
        tensors = self.of_state(state)
        return torch.cat([self.call(tensors, block.to(state.device)) for block in inputs.split(rows)])

    def training_copy(self) -> nn.Module:
        """Return a copy in training mode that shares the module's tensors: threads may not share a module they call.

        Counts of batches are its own.
        """
        shared = [t for t in (*self._state.values(), *self._fixed.values()) if t.is_floating_point()]
        made = copy.deepcopy(self.module, {id(t): t for t in shared})
        if hasattr(made, "noise_shapes"):
            return made.train()
        for part in made.modules():
            if isinstance(part, _NormBase):
                part.train()
        return made

    def noise(self, n: int, length: int, draw: torch.Generator) -> tuple[Tensor, ...] | None:
        """Draw the uniform numbers that dropout needs for ``n`` rows of ``length`` words; None where there is no dropout."""
        shapes = getattr(self.module, "noise_shapes", None)
        return (tuple(torch.rand(shape, generator=draw) for shape in shapes(n, length)) or None) if shapes is not None else None


def make_net(name: str, inputs: tuple[int, ...], outputs: int, seed: int, ids: int | None = None) -> Net:
    """Make a network with random initial values that depend on ``seed`` alone.

    Args:
        name: registered, or ``file.py:function`` of the user's; parameters as ``name:parameter=value``.
        inputs: shape of one input: ``(channels, height, width)`` of an image, ``(length,)`` of words.
        outputs: number of classes or words.
        seed: of the run.
        ids: for classes of texts, how many numbers an input can hold, 0 = padding among them
            (:attr:`undertow.data.population.Population.ids`); a network of texts takes it as its argument ``ids``, which no user
            sets.

    Raises:
        UserError: no such network or parameter, a value that the network refuses, a network of other inputs, or a function that
            makes no module.
    """
    short = short_form(name, NETS.kind)
    make, params = NETS.get(short["name"]), short["params"]
    taken = list(inspect.signature(make).parameters.values())
    known = [p.name for p in taken if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)][2:]
    if ("ids" in known) != (ids is not None):
        reads, has = (
            ("texts with one class each", "no such texts") if "ids" in known else ("no texts with one class each", "such texts")
        )
        raise UserError(f"network '{name}' reads {reads}, and the data are {has}; choose another of `undertow list networks`")
    known = [option for option in known if option != "ids"]
    if all(p.kind is not p.VAR_KEYWORD for p in taken):
        refuse_unknown(NETS.kind, short["name"], params, known)
    with torch.random.fork_rng(devices=[]):  # modules draw their values from the global generator
        torch.manual_seed(torch_rng(seed, "initial network").initial_seed())
        try:
            module = make(inputs, outputs, **params) if ids is None else make(inputs, outputs, ids=ids, **params)
            if not isinstance(module, nn.Module):
                raise ValueError(f"the function returned a {type(module).__name__}, not a torch module")
            return Net(module)
        except UserError:
            raise
        except (ValueError, TypeError) as error:
            raise UserError(f"network '{name}': {' '.join(str(error).split())}; correct it or choose another") from error


def model_folder(folder: Path) -> Path:
    """Return the folder with ``model.safetensors``: that of a run, or the one given."""
    inner = folder / "model"
    return inner if (inner / "model.safetensors").is_file() else folder


def load_state(folder: Path, layout: Layout, said: str = "") -> Tensor:
    """Read the final state of a run, or of a folder with ``model.safetensors``, as ``[D]`` float32.

    Args:
        folder: of the run or of the file.
        layout: of the network; names, shapes and finite values are checked.
        said: what the user wrote, for the error; default: the folder.

    Raises:
        UserError: no such file, damaged, or of another network.
    """
    said = said or str(folder)
    try:
        return layout.flatten(load((model_folder(folder) / "model.safetensors").read_bytes()))
    except OSError as error:
        raise UserError(f"{said}: no model/model.safetensors; give a finished run of the same task") from error
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{said}: {' '.join(str(error).split())}; give a finished run with the same model.name and data") from error


def load_model(folder: Path | str) -> tuple[Net, Tensor, dict[str, Any]]:
    """Read what a run of a task over tensors leaves: its network, its final state and what they are.

    Args:
        folder: of a finished run, or its folder ``model``.

    Returns:
        the network, the state ``[D]`` float32 on the CPU, and ``model.json``: ``task``, ``network`` (as ``model.name``), ``inputs``
        (shape of one input) and ``outputs`` (the name of each class or word, in order); with classes of texts ``ids``, as
        :func:`make_net` has it. ``net.logits(state, inputs)`` gives logits.

    Raises:
        UserError: files missing or damaged, values that are not finite, or a network that cannot be made here.
    """
    folder = Path(folder)
    path = model_folder(folder) / "model.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder}: no model/model.json; give a finished run of task=classification or next-word") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}); repeat the run") from error
    if not isinstance(about, dict) or not all(isinstance(about.get(key), kind) for key, kind in _ABOUT.items()):
        raise UserError(f"{path} is damaged: it needs {', '.join(_ABOUT)}; repeat the run")
    inputs, outputs = about["inputs"], about["outputs"]
    if not inputs or not all(type(side) is int and side > 0 for side in inputs) or not all(isinstance(o, str) for o in outputs):
        raise UserError(f"{path} is damaged: inputs are whole numbers from 1 and outputs are names; repeat the run")
    ids = about.get("ids")
    if ids is not None and (type(ids) is not int or ids < 1):
        raise UserError(f"{path} is damaged: ids is a whole number from 1; repeat the run")
    net = make_net(about["network"], tuple(inputs), len(outputs), 0, ids)
    return net, load_state(folder, net.layout), about


#: What ``model.json`` holds, with its types.
_ABOUT: dict[str, type] = {"task": str, "network": str, "inputs": list, "outputs": list}
