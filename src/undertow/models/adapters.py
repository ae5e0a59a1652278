"""PEFT adapters read as what their files say: plain LoRA, what PEFT itself folds into the base, or refused.

Nothing is guessed. A key of the config is either known to leave the function alone, or understood, or the adapter is refused
and the key named; so are tensors that the config announces and the file lacks, and the other way round.
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.models.adapter_files import PREFIX, adapter_files, by_module
from undertow.models.folding import without_adapter
from undertow.models.lora import linear_sizes, linears_of, lost_in_peft

#: Keys that say how an adapter was made, kept or begun, not what it computes.
_INERT = {
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "peft_version",
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
    "peft_type",
    "task_type",
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

#: Keys that PEFT folds into the base's weights.
_FOLDED = ("use_dora", "lora_bias", "modules_to_save")

#: Which of the base's own biases an adapter holds; all but the first are folded, too.
_BIASES = ("none", "lora_only", "all")

#: Ways to begin that draw A and B and leave the base's weights; and those that change the base, always in the same way.
_BEGUN, _BASE_CHANGED = (True, False, "gaussian", "eva", "orthogonal"), ("pissa", "olora")

#: What PEFT's other tasks are, in words.
_OTHER_TASKS = (
    ("SEQ_CLS", "sequence classification"),
    ("SEQ_2_SEQ_LM", "a sequence-to-sequence model"),
    ("TOKEN_CLS", "token classification"),
    ("QUESTION_ANS", "extractive question answering"),
    ("FEATURE_EXTRACTION", "feature extraction"),
)


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


def check_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return an adapter's config and its tensors by module; what needs no base is checked, so that no base is loaded in vain.

    Raises:
        UserError: files missing or damaged, not LoRA, not safetensors, or a key whose meaning is not known here.
    """
    config, tensors = adapter_files(folder)
    _understood(folder, config, config.get("init_lora_weights", True))
    return config, by_module(folder, tensors)


def read_adapter(folder: Path, model: nn.Module) -> Adapter:
    """Read a PEFT adapter for ``model``, checked key by key and tensor by tensor.

    Raises:
        UserError: files missing or damaged, not LoRA, not safetensors, a key whose meaning is not known here, or not for this base.
    """
    config, named = check_adapter(folder)
    folded = [key for key in _FOLDED if config.get(key)]
    if config.get("bias", "none") != "none":
        folded.append(f"bias = {config['bias']!r}")
    begun = config.get("init_lora_weights", True)
    if begun in _BASE_CHANGED:
        folded.append(f"init_lora_weights = {begun!r}")
    try:
        targets = _targets(folder, config, model)
        surplus = _base_embeddings(folder, config, named, model)
        named = {key: value for key, value in named.items() if key not in surplus}
        factors = {key for key in named if key.endswith((".lora_A.weight", ".lora_B.weight"))}
        _complete(folder, factors if folded else set(named), targets)
        ranks = _ranks(folder, config, named, targets, model)
        if folded:
            return Adapter(None, None, ", ".join(folded))
        layout, values = _plain(config, named, ranks)
        flat = layout.flatten(values)
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError, re.error) as error:  # values of other kinds
        told = " ".join(str(error).split())[:160]
        raise UserError(f"{folder}: adapter_config.json holds a value that LoRA has no use for ({told}); copy it again") from error
    return Adapter(flat, layout, "LoRA")


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

    config, tensors = adapter_files(folder)
    try:
        surplus = {PREFIX + key for key in _base_embeddings(folder, config, by_module(folder, tensors), model)}
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            whole = PeftModel.from_pretrained(copy.deepcopy(model), str(folder))
            wanted = get_peft_model_state_dict(whole, save_embedding_layers=False)
            if odd := sorted(wanted.keys() ^ (tensors.keys() - surplus)):
                kind = "lacks" if odd[0] in wanted else "holds, and its config does not announce,"
                raise UserError(f"{folder} {kind} {odd[0]}; copy the adapter again")
            if lost := [text for one in warned if "missing adapter keys" in (text := str(one.message))]:
                raise UserError(f"{folder}: peft does not load all of it on this base ({lost[0][-120:]}); train other modules")
            merged = without_adapter(whole, str(folder))
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


def _understood(folder: Path, config: dict[str, Any], begun: Any) -> None:
    """Refuse any key that may change the function and is not read here."""
    if config.get("peft_type") not in (None, "LORA"):
        raise UserError(f"{folder}: peft_type = {config['peft_type']!r} is not supported; only LoRA adapters are")
    _causal(folder, config.get("task_type"))
    for key, value in config.items():
        # An object switches on what it is for, even an empty one: peft fills it with defaults.
        if key in _INERT or key in _READ or key in _FOLDED or (not value and not isinstance(value, dict)):
            continue
        raise UserError(f"{folder}: {key} = {value!r} is not supported; an adapter without {key} is")
    if config.get("bias", "none") not in _BIASES:
        raise UserError(f"{folder}: bias = {config['bias']!r}, it must be one of {', '.join(_BIASES)}; copy the adapter again")
    if begun not in (*_BEGUN, *_BASE_CHANGED):
        how = "changes the base's weights in a way that cannot be repeated" if _lost(begun) else "is not supported"
        raise UserError(
            f"{folder}: init_lora_weights = {begun!r} {how}; save the adapter converted to plain LoRA (peft: "
            "path_initial_model_for_weight_conversion)"
        )
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    wrong = None
    if not isinstance(rank, int) or isinstance(rank, bool):
        wrong = f"r = {rank!r}, which is no whole number"
    elif rank <= 0:
        wrong = f"r = {rank}, it must be above 0"
    elif not isinstance(alpha, int | float) or isinstance(alpha, bool):
        wrong = f"lora_alpha = {alpha!r}, which is no number"
    elif not -math.inf < alpha < math.inf:
        wrong = f"lora_alpha = {alpha}, it must be finite"
    elif not isinstance(patterns := config.get("alpha_pattern") or {}, dict):
        wrong = f"alpha_pattern = {str(patterns)[:80]}, which is no object of names and numbers"
    elif odd := [value for value in patterns.values() if _is_endless(value)]:
        wrong = f"{odd[0]} in alpha_pattern, it must be finite"
    if wrong:
        raise UserError(f"{folder}: adapter_config.json has {wrong}; write the number of its training there, or copy it again")


def _is_endless(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _causal(folder: Path, task: Any) -> None:
    """Refuse an adapter of another task than a causal language model's."""
    if task in (None, "CAUSAL_LM"):
        return
    words = [told for name, told in _OTHER_TASKS if name == task]
    known = f"the adapter is for {words[0]}, not for a causal language model" if words else "which peft does not know"
    raise UserError(f"{folder}: task_type = {task!r}, {known}; give an adapter with task_type = 'CAUSAL_LM'")


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
    names = ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
    matching = LoraConfig(target_modules=wanted, **{name: config.get(name) for name in names})
    every = isinstance(wanted, str) and wanted.lower() == "all-linear"
    if every:
        matching.target_modules = {name for name, module in linears.items() if module is not head}
    found = [name for name, _ in model.named_modules() if name and check_target_module_exists(matching, name)]
    if every and not found:
        raise UserError(f"{folder}: exclude_modules and modules_to_save leave no linear layer of this base; copy the adapter again")
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
    if lost := lost_in_peft(model, sorted({name.rpartition(".")[2] for name in found})):
        raise UserError(
            f"{folder} adapts {', '.join(lost)} of a '{getattr(model.config, 'model_type', '?')}', which PEFT refuses or takes for "
            "its fused experts; merge the adapter into its base where it was trained, and give the result as the base"
        )
    return found


def _base_embeddings(folder: Path, config: dict[str, Any], named: dict[str, Tensor], model: Any) -> set[str]:
    """Return the tensors that are copies of the base's own embeddings or output head, which change nothing.

    PEFT writes them with ``save_embedding_layers``, by itself after the vocabulary was resized, and reads them into the base.

    Raises:
        UserError: such a tensor is of another vocabulary, or differs from the base's and is not in ``modules_to_save``.
    """
    own: dict[str, Tensor] = {}
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    for name, module in model.named_modules():
        if any(module is layer for layer in layers):
            own.update({f"{name}.{key}": value for key, value in module.state_dict().items()})
    copies = set()
    for key, held in named.items():
        plain = key.replace(".original_module.", ".").replace(".modules_to_save.", ".")
        if plain not in own:
            continue
        _same_vocabulary(folder, key, held, own[plain])
        announced = any(plain.rpartition(".")[0].endswith(one) for one in config.get("modules_to_save") or ())
        if announced and key == plain:
            continue
        second = announced and ".modules_to_save." in key  # PEFT reads the first, which is announced
        if not second and not torch.equal(held.to(own[plain].dtype), own[plain].cpu()):
            raise UserError(
                f"{folder} holds embeddings of its own, saved with it, that differ from this base's ({key}); give the base it was "
                "trained on, merge the adapter into that base, or save it with save_embedding_layers=False"
            )
        copies.add(key)
    return copies


def _same_vocabulary(folder: Path, key: str, held: Tensor, own: Tensor) -> None:
    if held.shape == own.shape:
        return
    if held.shape[1:] == own.shape[1:] and held.dim():
        raise UserError(
            f"{folder} holds embeddings of {held.shape[0]} tokens ({key}), this base has {own.shape[0]}: the vocabulary was "
            "resized in training, or the base is another; merge the adapter into the base it was trained on and give the result"
        )
    raise UserError(
        f"{folder} does not fit this base: {key} is {tuple(held.shape)}, the base's is {tuple(own.shape)}; give the base it was "
        "trained on"
    )


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


def _ranks(folder: Path, config: dict[str, Any], named: dict[str, Tensor], targets: list[str], model: nn.Module) -> dict[str, int]:
    """Return each target's rank, A and B checked against it and against the base's layer."""
    ranks: dict[str, int] = {}
    for name in targets:
        inputs, outputs = linear_sizes(model.get_submodule(name))
        rank = ranks[name] = _pattern(config, "rank_pattern", name, config.get("r", 8))
        for side, axis, size in (("A", 0, inputs), ("B", 1, outputs)):
            key, held = f"{name}.lora_{side}", tuple(named[f"{name}.lora_{side}.weight"].shape)
            if len(held) != 2 or held[1 - axis] != size:
                need = (rank, size) if side == "A" else (size, rank)
                raise UserError(
                    f"{folder} does not fit this base: {key} is {held}, the base's layer and rank {rank} need {need}; give the "
                    "base it was trained on"
                )
            if held[axis] != rank or not isinstance(rank, int):
                raise UserError(
                    f"{folder}: adapter_config.json {_rank_told(config, rank)}, but {key} is of rank {held[axis]}; write the r "
                    "of its training into the config, or copy the adapter again"
                )
    return ranks


def _rank_told(config: dict[str, Any], rank: Any) -> str:
    if rank != config.get("r", 8):
        return f"gives a rank of {rank!r} in rank_pattern"
    return f"has r = {rank}" if "r" in config else f"has no r, which means {rank}"


def _plain(config: dict[str, Any], named: dict[str, Tensor], ranks: dict[str, int]) -> tuple[Layout, dict[str, Tensor]]:
    """Return A and B of each module, B times what its own scale differs from the common one, which is above 0."""
    alpha = config.get("lora_alpha", 8)
    common = abs(_scale(alpha, config.get("r", 8), config)) or 1.0
    values: dict[str, Tensor] = {}
    for name, rank in ranks.items():
        for side in "AB":
            values[f"{name}.lora_{side}"] = named[f"{name}.lora_{side}.weight"].float()
        scale = _scale(_pattern(config, "alpha_pattern", name, alpha), rank, config)
        if scale != common:
            values[f"{name}.lora_B"] = values[f"{name}.lora_B"] * (scale / common)
    return Layout.of({key: tuple(value.shape) for key, value in values.items()}, scale=common), values


def _scale(alpha: float, rank: int, config: dict[str, Any]) -> float:
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _pattern(config: dict[str, Any], key: str, name: str, default: Any) -> Any:
    """Return a module's rank or alpha, by PEFT's own matching."""
    from peft.utils.other import get_pattern_key

    patterns = config.get(key) or {}
    return patterns.get(get_pattern_key(patterns.keys(), name), default)
