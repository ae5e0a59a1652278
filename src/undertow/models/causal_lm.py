"""A frozen causal language model of any transformers architecture, from the package, a folder or the hub."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from undertow.config import Lora, Model
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.data.generated import world
from undertow.data.tokenizer import cannot_load, load_tokenizer, locate, pretrained
from undertow.models.arithmetic import weights_dtype
from undertow.models.general import TreeModel, keep_inputs_contiguous, plain_head, tree_model
from undertow.models.gguf import check_whole, read_gguf
from undertow.models.head import GivenLogits, Head
from undertow.models.llama.check import packed_llama
from undertow.models.llama.family import Unsupported
from undertow.models.llama.packed import PackedLlama
from undertow.models.lora import adapter_layout, find_targets, named_linears
from undertow.models.memory import check_memory, free_bytes, predicted_bytes
from undertow.models.steps import Steps


@dataclass(frozen=True)
class CausalLM:
    """A base and what belongs to it.

    Attributes:
        name: as the user gave it.
        path: what transformers loads: a folder, a .gguf file or a hub id.
        model: the transformers model, frozen, in eval mode.
        tokenizer: its tokenizer.
        device: where it lives.
        layout: of one adapter, columns in model order.
        asked: keys (``subject|relation``) whose questions the base read in pre-training, if its builder left a list.
        known: keys of all facts it read, or None where nobody says.
        logits_to_keep: whether the architecture can compute the last positions' logits only.
        packed: the fast form for batched training, or None where the general path must do.
        general_because: why it must.
        head: the output head, or what stands for one that is no plain linear.
        trees: the general path's form that shares prefixes by its mask, or None where samples are padded.
        stops: tokens that end an answer beside the tokenizer's and the model's own: those by which a chat template ends a turn.
        dtype_because: what was measured of the weights' type: why ``auto`` took it, or that it is slow here.
        answers: folder in which what the untouched base answers is kept; None: nowhere.
    """

    name: str
    path: str
    model: Any
    tokenizer: Any
    device: torch.device
    layout: Layout
    asked: frozenset[str]
    known: frozenset[str] | None
    logits_to_keep: bool
    packed: PackedLlama | None = None
    general_because: str = ""
    head: Head = field(default_factory=GivenLogits)
    trees: TreeModel | None = None
    stops: frozenset[int] = frozenset()
    dtype_because: str = ""
    answers: Path | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the config and of all weights and buffers as they are in memory."""
        found = hashlib.sha256(self.model.config.to_json_string().encode())
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()

    @property
    def parameters(self) -> int:
        """Number of weights of the base."""
        return int(sum(p.numel() for p in self.model.parameters()))

    @property
    def bytes(self) -> int:
        """Memory of the base's weights."""
        return int(sum(p.numel() * p.element_size() for p in self.model.parameters()))

    @property
    def positions(self) -> int | None:
        """Longest text the base was made for, in tokens, if its config says.

        Some rotary positions (``dynamic``, ``longrope``) change for a whole batch once one of its texts passes a limit: then a
        text's logits depend on its neighbours, so that longer ones are not read.
        """
        config = self.model.config
        limits = [getattr(config, "max_position_embeddings", None)]
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        for one in (rope, *(part for part in rope.values() if isinstance(part, dict))):
            if one.get("rope_type", one.get("type")) in ("longrope", "dynamic"):
                limits += [one.get("original_max_position_embeddings"), getattr(config, "original_max_position_embeddings", None)]
        return min((int(limit) for limit in limits if limit), default=None)

    @property
    def end_ids(self) -> list[int]:
        """Token ids that end an answer."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        extra = configured if isinstance(configured, list) else [configured] if configured is not None else []
        return sorted({self.tokenizer.eos_token_id, *extra, *self.stops})

    @property
    def pad_id(self) -> int:
        """Token id that fills a batch; always masked."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None or pad >= self.vocabulary else pad)

    @property
    def vocabulary(self) -> int:
        """Tokens that the embedding has rows for."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @cached_property
    def steps(self) -> Steps:
        """How the modules themselves read on, tried.

        Raises:
            UserError: the model is not supported; see :meth:`Steps.try_model`.
        """
        found = Steps(self.name, self.model, self.layout, self.head, self.pad_id)
        found.try_model()
        return found

    def facts(self) -> dict[str, Any]:
        """What a report says about the base."""
        config = self.model.config
        return {
            "name": self.name,
            "architecture": type(self.model).__name__,
            "parameters": self.parameters,
            "layers": getattr(config, "num_hidden_layers", None),
            "hidden": getattr(config, "hidden_size", None),
            "vocabulary": getattr(config, "vocab_size", None),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            **({"dtype_because": self.dtype_because} if self.dtype_because else {}),
            "adapter_parameters": self.layout.size,
            "training_path": "packed"
            if self.packed
            else f"general{', prefixes shared' if self.trees else ''}: {self.general_because}",
            "decoding_path": "packed" if self.packed else self.steps.told,
            "asked_in_pretraining": len(self.asked),
        }


def choose_device(name: str) -> torch.device:
    """Return the device named, or for ``auto`` the first GPU if there is one, else the CPU; ``balanced`` begins on the first GPU.

    Raises:
        UserError: not a device, or a GPU where torch sees none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "balanced":
        name = "cuda"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"model.device = '{name}' is no device; use auto, cpu, cuda, cuda:N or balanced") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"model.device = '{name}' is not supported; use auto, cpu, cuda, cuda:N or balanced")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"model.device = '{name}', but torch sees {torch.cuda.device_count()} GPUs; set model.device=cpu")
    return device


def read_config(options: Model) -> tuple[str, Any]:
    """Return what transformers loads, a folder, a .gguf file or a hub id, and the base's config; no weight is read.

    Raises:
        UserError: no such model, or a config that cannot be read.
    """
    from huggingface_hub.utils import logging as hub_logging
    from transformers import AutoConfig
    from transformers.utils import logging as transformers_logging

    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it tells of each retry
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    path, where = pretrained(options.name)
    try:
        return locate(options.name), AutoConfig.from_pretrained(path, **where)
    except UserError:
        raise
    except Exception as error:  # a config of the wrong kind fails in transformers, huggingface_hub or torch, each in its way
        raise UserError(cannot_load(options.name, error)) from error


def load_base(options: Model, *, tuned: bool = True) -> CausalLM:
    """Load a base and freeze it.

    The memory its weights need is computed from its config, and compared with what is free, before any weight
    is read.

    Args:
        options: which, and where.
        tuned: whether adapters are trained on it, so that ``lora.targets`` must name modules that can be. A base that is only
            asked, or that takes a finished adapter, which names its own, needs none.

    Raises:
        UserError: no such model, a broken folder, pickled weights only, or a base larger than the memory.
    """
    path, config = read_config(options)
    device = choose_device(options.device)
    dtype, dtype_because = weights_dtype(options.dtype, getattr(config, "dtype", None), device)
    placing = {**_spread(options, config, dtype, device), **_quantized(options, config, dtype, device)}
    if path.endswith(".gguf") and placing:
        raise UserError(
            f"model '{options.name}': a GGUF file cannot be quantised again or spread; import it first: undertow base import"
        )
    if not placing:
        check_memory(options.name, config, dtype, device)
    tokenizer = load_tokenizer(options.name)
    model = _read(options.name, dtype, placing)
    _check_ends(options.name, model)
    _check_vocabulary(options.name, model, tokenizer)
    model.requires_grad_(False)
    model.eval()
    keep_inputs_contiguous(model)
    if placing:
        device = model.get_input_embeddings().weight.device
    else:
        model.to(device)
    asked, known = _keys(path)
    base = CausalLM(
        name=options.name,
        path=path,
        model=model,
        tokenizer=tokenizer,
        device=device,
        layout=adapter_layout(model, _targets(model, options.lora, tuned), options.lora),
        asked=asked,
        known=known,
        logits_to_keep="logits_to_keep" in inspect.signature(model.forward).parameters,
        dtype_because=dtype_because,
    )
    try:
        return with_paths(base)
    except UserError:
        raise
    except Exception as error:  # the first forward of weights that do not fit each other
        raise UserError(cannot_load(options.name, error)) from error


def _check_ends(name: str, model: Any) -> None:
    ends = getattr(model.generation_config, "eos_token_id", None)
    if not all(one is None or type(one) is int for one in (ends if isinstance(ends, list) else [ends])):
        raise UserError(
            f"model '{name}': eos_token_id = {ends!r} is no token id; correct its generation_config.json or config.json"
        )


def _targets(model: Any, lora: Lora, tuned: bool) -> list[str]:
    try:
        return find_targets(model, lora)
    except UserError:
        if tuned:
            raise
        return named_linears(model, Lora.model_validate({"targets": "all-linear"}))


def _read(name: str, dtype: torch.dtype, placing: dict[str, Any]) -> Any:
    """Return the transformers model with its weights."""
    from transformers import AutoModelForCausalLM

    path, where = pretrained(name)
    try:
        if "gguf_file" in where:
            return read_gguf(name).to(dtype)
        model, found = AutoModelForCausalLM.from_pretrained(
            path, **where, dtype=dtype, use_safetensors=True, output_loading_info=True, **placing
        )
    except UserError:
        raise
    except Exception as error:  # safetensors, transformers and torch have their own types for what is damaged
        raise UserError(cannot_load(name, error)) from error
    if getattr(model, "_hf_peft_config_loaded", False):  # transformers joins what it finds beside a base
        raise UserError(
            f"model '{name}': an adapter lies beside the base (adapter_config.json), and would be taken for a part of it; move it "
            "to a folder of its own, which `evaluate` and `audit` take"
        )
    check_whole(name, found)
    return model


def _check_vocabulary(name: str, model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer of another model: tokens of ordinary text for which the embedding has no row.

    Special ones are let pass, as Gemma's of images: texts are read without them.
    """
    try:
        rows = int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError) as error:
        raise UserError(f"model '{name}': {type(model).__name__} has no table of token embeddings and is not supported") from error
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    beyond = [index for index in tokenizer.get_vocab().values() if index >= rows and index not in special]
    if beyond or tokenizer.eos_token_id >= rows:
        raise UserError(
            f"model '{name}': its tokenizer has token ids up to {max([*beyond, tokenizer.eos_token_id])}, its embedding "
            f"{rows} rows; give the tokenizer that it was trained with, or resize the embedding and train it"
        )


def with_paths(base: CausalLM) -> CausalLM:
    """Return a base with the fastest forms of its model that compute what it does."""
    model = base.model
    try:
        packed = packed_llama(model, base.layout, base.pad_id)
        return replace(base, packed=packed, head=packed.head, trees=None, general_because="")
    except Unsupported as reason:
        head = plain_head(model, base.layout)
        trees = tree_model(model, base.layout, head, base.pad_id)
        made = replace(base, packed=None, general_because=str(reason), head=head, trees=trees)
        made.steps  # noqa: B018  # tried now, not in the middle of a run
        return made


def _spread(options: Model, config: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return how to lay the layers over several GPUs: where the user asks, or where one is too small and there are more."""
    if options.device == "balanced":
        return {"device_map": "balanced"}
    several = device.type == "cuda" and options.device == "auto" and torch.cuda.device_count() > 1
    if several and options.quantize == "none" and predicted_bytes(config, dtype) > 0.8 * free_bytes(device):
        return {"device_map": "balanced"}
    return {}


def _quantized(options: Model, config: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return how to load the base in 8 or 4 bits.

    Raises:
        UserError: bitsandbytes is not installed, or cannot hold this base.
    """
    if options.quantize == "none":
        return {}
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantize = '{options.quantize}' needs bitsandbytes, which is not installed; run: pip install "
            "-e '.[quantized]' in the clone"
        )
    kind: dict[str, Any] = (
        {"load_in_8bit": True} if options.quantize == "8bit" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    )
    if options.quantize == "4bit":
        kind["bnb_4bit_compute_dtype"] = dtype
    placed = {} if options.device == "balanced" else {"device_map": {"": str(device)}}
    return {"quantization_config": BitsAndBytesConfig(**kind), **placed}


def read_keys(options: Model) -> tuple[frozenset[str], frozenset[str] | None]:
    """Return the keys a base was asked and those it has read (None: not known), without loading it.

    Raises:
        UserError: no such model, or a damaged list.
    """
    return _keys(locate(options.name))


def _keys(path: str) -> tuple[frozenset[str], frozenset[str] | None]:
    """Return the keys a base was asked and those it has read, from the file its builder left beside the weights."""
    file = Path(path) / "keys.json"  # a GGUF file has none
    if not file.is_file():
        return frozenset(), None
    try:
        keys = json.loads(file.read_text(encoding="utf-8"))
        if "world" not in keys:
            return frozenset(map(str, keys["asked"])), frozenset(map(str, keys["known"]))
        fingerprint = keys["world"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged; build the base again") from error
    if fingerprint != world.fingerprint():
        raise UserError(f"{file}: the base has read another built-in world than this version's; run: undertow base build")
    asked, known = world.keys()
    return frozenset(asked), frozenset(known)
