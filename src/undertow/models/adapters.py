"""PEFT adapters read as what their files say: plain LoRA, what PEFT itself folds into the base, or refused.

Nothing is guessed. A key of the config is either known to leave the function alone, or understood, or the adapter is refused
and the key named; so are tensors that the config announces and the file lacks, and the other way round.
"""

from __future__ import annotations

import copy
import json
import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.models.lora import linear_sizes, linears_of

#: Keys that say how an adapter was made, kept or begun, not what it computes.
_INERT = {
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "peft_type",
    "peft_version",
    "task_type",
    "inference_mode",
    "lora_dropout",
    "eva_config",
    "corda_config",
    "loftq_config",
    "lora_ga_config",
    "runtime_config",
    "megatron_core",
    "qalora_group_size",
}

#: Keys that are read below.
_READ = {
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "fan_in_fan_out",
    "init_lora_weights",
    "bias",
}

#: How the names of an adapter's tensors begin.
_PREFIX = "base_model.model."

#: Keys that PEFT folds into the base's weights.
_FOLDED = ("use_dora", "lora_bias", "modules_to_save")

#: Ways to begin that draw A and B and leave the base's weights; and those that change the base, always in the same way.
_BEGUN, _BASE_CHANGED = (True, False, "gaussian", "eva", "orthogonal"), ("pissa", "olora")


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits a base.

    Attributes:
        flat: ``[D]`` in ``layout``; None where PEFT must fold it into the base.
        layout: of its A and B, or None.
        kind: what it is, in words.
    """

    flat: Tensor | None
    layout: Layout | None
    kind: str


def read_adapter(folder: Path, model: nn.Module) -> Adapter:
    """Read a PEFT adapter for ``model``, checked key by key and tensor by tensor.

    Raises:
        UserError: files missing or damaged, not LoRA, not safetensors, a key whose meaning is not known here, or not for this base.
    """
    config, tensors = _files(folder)
    folded = [key for key in _FOLDED if config.get(key)]
    begun = config.get("init_lora_weights", True)
    if begun in _BASE_CHANGED:
        folded.append(f"init_lora_weights = {begun!r}")
    _understood(folder, config, begun)
    try:
        targets = _targets(folder, config, model)
        named = _named(folder, tensors)
        if folded:
            own = {key for key in named if key.endswith((".lora_A.weight", ".lora_B.weight"))}
            _complete(folder, own, targets)
            return Adapter(None, None, ", ".join(folded))
        layout, values = _plain(folder, config, named, targets, model)
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError, re.error) as error:  # values of other kinds
        told = " ".join(str(error).split())[:160]
        raise UserError(f"{folder}: adapter_config.json holds a value that LoRA has no use for ({told}); copy it again") from error
    return Adapter(layout.flatten(values), layout, "LoRA")


def load_peft(folder: Path, model: nn.Module) -> tuple[Tensor, Layout]:
    """Read a PEFT adapter that leaves the base's weights, as ``(flat [D], layout)``; see :func:`read_adapter`.

    Raises:
        UserError: as there, and for one that changes the base's weights.
    """
    found = read_adapter(folder, model)
    if found.flat is None or found.layout is None:
        raise UserError(
            f"{folder}: an adapter with {found.kind} changes the base's own weights and is not supported here; use plain LoRA"
        )
    return found.flat, found.layout


def folded(folder: Path, model: Any) -> Any:
    """Return a copy of a transformers model with an adapter folded into its weights by PEFT.

    Raises:
        UserError: PEFT cannot, in its own words.
    """
    from peft import PeftModel, get_peft_model_state_dict

    _, tensors = _files(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is missing is told below
            whole = PeftModel.from_pretrained(copy.deepcopy(model), str(folder))
            wanted = get_peft_model_state_dict(whole, save_embedding_layers=False)
            if odd := sorted(wanted.keys() ^ tensors.keys()):
                kind = "lacks" if odd[0] in wanted else "holds, and its config does not announce,"
                raise UserError(f"{folder} {kind} {odd[0]}; copy the adapter again")
            merged = whole.merge_and_unload(safe_merge=True)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{folder} lacks {error.args[0]}; copy the adapter again") from error
    except Exception as error:  # peft and torch raise many kinds
        told = " ".join(str(error).split())
        if "size mismatch" in told:
            told = told[told.index("size mismatch") :]
            raise UserError(f"{folder} does not fit this base: {told[:200]}; give the base it was trained on") from error
        raise UserError(f"{folder}: peft cannot fold this adapter into the base ({told[:200]}); use plain LoRA") from error
    return merged.requires_grad_(False).eval()


def _files(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config_file, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not config_file.is_file():
        raise UserError(f"{folder} is no PEFT adapter: adapter_config.json is missing; give the folder that holds it")
    if not weights.is_file():
        raise UserError(
            f"{folder} has no adapter_model.safetensors (pickled adapters are refused); save the adapter as safetensors"
        )
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        tensors = load_file(weights)
        if not isinstance(config, dict):
            raise ValueError("adapter_config.json holds no object")
    except (ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: the adapter is damaged ({' '.join(str(error).split())}); copy it again") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{folder}: {name} holds NaN or infinity; train or copy the adapter again")
    return config, tensors


def _understood(folder: Path, config: dict[str, Any], begun: Any) -> None:
    """Refuse any key that may change the function and is not read here."""
    if config.get("peft_type") not in (None, "LORA"):
        raise UserError(f"{folder}: peft_type = {config['peft_type']!r} is not supported; only LoRA adapters are")
    for key, value in config.items():
        if key in _INERT or key in _READ or key in _FOLDED or not value:
            continue
        raise UserError(f"{folder}: {key} = {value!r} is not supported; an adapter without {key} is")
    if config.get("bias", "none") != "none":
        raise UserError(
            f"{folder}: bias = {config['bias']!r} changes the base's biases and is not supported; train with bias='none'"
        )
    if begun not in (*_BEGUN, *_BASE_CHANGED):
        how = "changes the base's weights in a way that cannot be repeated" if _lost(begun) else "is not supported"
        raise UserError(
            f"{folder}: init_lora_weights = {begun!r} {how}; save the adapter converted to plain LoRA (peft: "
            "path_initial_model_for_weight_conversion)"
        )
    for name in ("r", "lora_alpha"):
        value = config.get(name, 8)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise UserError(f"{folder}: adapter_config.json has {name} = {value!r}, it must be above 0; copy it again")


def _lost(begun: Any) -> bool:
    return str(begun).lower().startswith(("pissa", "corda", "loftq", "lora_ga"))


def _targets(folder: Path, config: dict[str, Any], model: Any) -> list[str]:
    """Return the modules that PEFT would adapt, by its own matching."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    wanted = config.get("target_modules")
    if not wanted:
        raise UserError(f"{folder}: adapter_config.json names no target_modules; copy it again")
    linears = linears_of(model)
    head = model.get_output_embeddings()
    if wanted == "all-linear":
        return [name for name, module in linears.items() if module is not head]
    names = ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
    matching = LoraConfig(target_modules=wanted, **{name: config.get(name) for name in names})
    found = [name for name, _ in model.named_modules() if name and check_target_module_exists(matching, name)]
    if not found:
        first = wanted if isinstance(wanted, str) else sorted(wanted)[0]
        raise UserError(f"{folder} does not fit this base: no module is named {first}; give the base it was trained on")
    for name in found:
        module = model.get_submodule(name)
        if isinstance(module, nn.Embedding):
            raise UserError(f"{folder} adapts the embeddings ({name}), which is not supported; train adapters of linear layers")
        if module is head:
            raise UserError(f"{folder} adapts the output head ({name}), which is not supported; leave it out of target_modules")
        if name not in linears:
            raise UserError(f"{folder} adapts {name}, a {type(module).__name__}; only linear layers are supported")
    return found


def _named(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the modules they belong to: ``MODULE.lora_A.weight``."""
    named = {}
    for key, value in tensors.items():
        if "_orig_mod." in key:
            raise UserError(f"{folder} was saved from a compiled model ({key}); save the adapter of the plain peft model")
        if key.startswith(_PREFIX * 2):
            raise UserError(f"{folder} was saved from a model wrapped twice ({key}); save the adapter of the plain peft model")
        if not key.startswith(_PREFIX):
            raise UserError(f"{folder}: {key} does not begin with {_PREFIX}, as peft writes; save the adapter with save_pretrained")
        named[key.removeprefix(_PREFIX)] = value
    return named


def _complete(folder: Path, found: set[str], targets: list[str]) -> None:
    wanted = {f"{name}.lora_{side}.weight" for name in targets for side in "AB"}
    missing, surplus = sorted(wanted - found), sorted(found - wanted)
    if missing and surplus:
        raise UserError(
            f"{folder} does not fit this base: it holds {surplus[0]}, where this base and the config need {missing[0]}; give the "
            "base it was trained on"
        )
    if missing:
        raise UserError(
            f"{folder}: {missing[0]} is missing, though the config's target_modules name its module; copy the adapter again, or "
            "give the base it was trained on"
        )
    if surplus:
        kind = "a bias" if surplus[0].endswith(".bias") else "a tensor"
        raise UserError(
            f"{folder} holds {kind} that its config does not announce or this base does not have: {surplus[0]}; copy the adapter "
            "again, or give the base it was trained on"
        )


def _plain(
    folder: Path, config: dict[str, Any], named: dict[str, Tensor], targets: list[str], model: nn.Module
) -> tuple[Layout, dict[str, Tensor]]:
    """Return A and B of each module, B times what its own scale differs from the common one."""
    _complete(folder, set(named), targets)
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    common = _scale(alpha, rank, config)
    shapes: dict[str, tuple[int, ...]] = {}
    values: dict[str, Tensor] = {}
    for name in targets:
        r, own = _pattern(config, "rank_pattern", name, rank), _pattern(config, "alpha_pattern", name, alpha)
        inputs, outputs = linear_sizes(model.get_submodule(name))
        for side, shape in (("A", (r, inputs)), ("B", (outputs, r))):
            key = f"{name}.lora_{side}"
            held = named[f"{key}.weight"]
            if tuple(held.shape) != shape:
                raise UserError(
                    f"{folder} does not fit this base: {key} is {tuple(held.shape)}, the base's layer and "
                    f"rank {r} need {shape}; give the base it was trained on"
                )
            shapes[key], values[key] = shape, held.float()
        scale = _scale(own, r, config)
        if scale != common:
            values[f"{name}.lora_B"] = values[f"{name}.lora_B"] * (scale / common)
    return Layout.of(shapes, scale=common), values


def _scale(alpha: float, rank: int, config: dict[str, Any]) -> float:
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _pattern(config: dict[str, Any], key: str, name: str, default: Any) -> Any:
    """Return a module's rank or alpha, by PEFT's own matching."""
    from peft.utils.other import get_pattern_key

    patterns = config.get(key) or {}
    return patterns.get(get_pattern_key(patterns.keys(), name), default)
