"""GGUF files of tiny random models, as llama.cpp's converter writes them: names, order of rotary halves, offsets of norms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

#: What transformers calls an architecture whose name in the file is another.
NAMES = {"gemma3_text": "gemma3", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gpt_neox": "gptneox", "mistral": "llama"}

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def tiny(kind: str, vocabulary: int, **values: Any) -> Any:
    """Return a random model of a kind that GGUF files hold."""
    from architectures import tiny_config

    config: PretrainedConfig = tiny_config(kind, vocabulary)
    for name, value in values.items():
        setattr(config, name, value)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def write(model: Any, file: Path, tokenizer: Any, more: dict[str, Any] | None = None, tensors: Any = None) -> Path:
    """Write a model and a byte-level tokenizer as a GGUF file.

    Args:
        model: of transformers.
        file: to write.
        tokenizer: with merges.
        more: further metadata, under the architecture's prefix.
        tensors: further tensors by name.
    """
    config = model.config
    kind = config.model_type
    name = NAMES.get(kind, kind)
    writer = GGUFWriter(file, name)
    writer.add_name(f"tiny {kind}")
    for key, field in GGUF_CONFIG_MAPPING[{"gemma3_text": "gemma3"}.get(kind, kind)].items():
        if field is None or field == -1:
            continue
        value = _field(config, field)
        if value is not None and key != "vocab_size":
            _add(writer, f"{name}.{key}", value)
    for key, value in (more or {}).items():
        _add(writer, f"{name}.{key}", value)
    _add_tokenizer(writer, tokenizer)
    processor = TENSOR_PROCESSORS.get(name, TensorProcessor)(config=config.to_dict())
    state, shared = model.state_dict(), config.tie_word_embeddings
    for short, full in get_gguf_hf_weights_map(model, processor).items():
        if full in state and not (short == "output.weight" and shared):
            writer.add_tensor(short, np.ascontiguousarray(_as_written(state[full].float().numpy(), short, name, config)))
    for short, array in (tensors or {}).items():
        writer.add_tensor(short, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _field(config: Any, field: str) -> Any:
    if field == "rope_theta":
        return (config.rope_parameters.get("full_attention") or config.rope_parameters)["rope_theta"]
    return getattr(config, field, None)


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)


def _add_tokenizer(writer: GGUFWriter, tokenizer: Any) -> None:
    inner = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in inner["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)


def _as_written(array: Any, short: str, name: str, config: Any) -> Any:
    """Undo what transformers does to a tensor of a GGUF file when it reads it."""
    if name == "llama" and (".attn_q." in short or ".attn_k." in short):
        heads = config.num_attention_heads if ".attn_q." in short else config.num_key_value_heads
        return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    if name in ("gemma2", "gemma3", "nemotron") and "norm.weight" in short:
        return array + 1
    if name == "gpt2" and any(part in short for part in ("attn_qkv.w", "ffn_down.w", "ffn_up.w", "attn_output.w")):
        return array.T
    if name == "bloom" and "attn_qkv" in short:
        heads = config.n_head
        return array.reshape(heads, 3, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
    if name == "mamba" and "ssm_conv1d.weight" in short:
        return array[:, 0]
    if name == "mamba" and "ssm_a" in short:
        return -np.exp(array)
    return array
