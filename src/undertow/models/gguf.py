"""GGUF files, the format of llama.cpp and Ollama, as plain transformers models: every weight dequantised.

transformers reads the tensors and part of the metadata. What it leaves out and a model's function depends on is put into the
config here, or the file is refused: scaled rotary positions (Llama 3.1 and later), windows, head sizes, caps of logits.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from undertow.core.errors import UserError
from undertow.core.files import check_folder, check_place, disk_errors, write_json
from undertow.data.tokenizer import cannot_load, load_tokenizer, pretrained
from undertow.models.identity import sha256

#: Fields of a config by the metadata's keys, which transformers does not read for every architecture.
_FIELDS = {
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}

#: Parts of keys whose value changes what a model computes, and the values that say nothing.
_MEANS, _NEUTRAL = ("scal", "softcap", "window", "clamp", "alibi"), (None, 0, 1.0, False, "", "none")

#: Keys with such parts that say how a file was made, or what transformers has built in.
_TOLD = ("rope.scaling.orig_ctx_len", "rope.scaling.original_context_length", "rope.scaling.finetuned")


#: The two of 27 billion weights, known by their layers: scores are scaled by another width there, as llama.cpp has built in.
_SCALED_BY_WIDTH = {("gemma2", 46), ("gemma3_text", 62)}


@dataclass(frozen=True)
class _Header:
    """What a GGUF file says about itself: its architecture, metadata by key without the architecture, and rotary factors."""

    architecture: str
    values: dict[str, Any]
    rope_factors: torch.Tensor | None
    other_tensors: list[str]


def read_gguf(name: str) -> Any:
    """Return the model of a GGUF file in float32, as transformers reads it.

    From 5.20 on transformers keeps the file's blocks packed unless told otherwise, and such weights can be neither cast nor
    adapted nor saved; before, it knows no other way than to dequantise.

    Raises:
        UserError: the file is damaged, or holds something that would be lost.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder, where = pretrained(name)
    try:
        header = _header(Path(folder) / where["gguf_file"])
        config = AutoConfig.from_pretrained(folder, **where)
        _complete(name, config, header)
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, **where, **_dequantised(), config=config, dtype=torch.float32, output_loading_info=True
        )
    except UserError:
        raise
    except Exception as error:  # gguf, numpy and transformers raise many kinds for a damaged file
        raise UserError(cannot_load(name, error)) from error
    check_whole(name, found)
    return model


def check_whole(name: str, found: dict[str, Any]) -> None:
    """Refuse a base whose file lacks weights: transformers would draw them at random.

    Args:
        name: of the base, for the error.
        found: transformers' loading info.

    Raises:
        UserError: a weight is missing.
    """
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"model '{name}' lacks {len(missing)} of its weights, such as {missing[0]}, which would be random; download it again"
        )


def _dequantised() -> dict[str, Any]:
    try:
        from transformers.utils.quantization_config import GgufConfig
    except ImportError:  # of a transformers that always dequantises
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _header(file: Path) -> _Header:
    from gguf import GGUFReader

    reader = GGUFReader(file)
    architecture = str(reader.fields["general.architecture"].contents())
    begin = f"{architecture}."
    values = {key.removeprefix(begin): field.contents() for key, field in reader.fields.items() if key.startswith(begin)}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    factors = tensors.get("rope_freqs.weight")
    kept = None if factors is None else torch.tensor(factors.data.copy(), dtype=torch.float32)
    return _Header(architecture, values, kept, sorted(key for key in tensors if key.startswith("rope_factors")))


def _complete(name: str, config: Any, header: _Header) -> None:
    """Put into a config what the file says and transformers did not read.

    Raises:
        UserError: something that has no place there.
    """
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    linear = header.values.get("rope.scaling.type") == "linear"
    if linear:
        rope = config.rope_parameters
        # of Gemma 3 the layers without a window alone
        of_all = {**rope.get("full_attention", rope), "rope_type": "linear", "factor": header.values["rope.scaling.factor"]}
        config.rope_parameters = {**rope, "full_attention": of_all} if "full_attention" in rope else of_all
    if (config.model_type, config.num_hidden_layers) in _SCALED_BY_WIDTH:
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    read = set(GGUF_CONFIG_MAPPING.get(config.model_type.removesuffix("_text"), {}))
    for key, value in header.values.items():
        if key in read or key in _TOLD or (linear and key.startswith("rope.scaling.")):
            continue
        if key in _FIELDS and hasattr(config, _FIELDS[key]):
            setattr(config, _FIELDS[key], value)
        elif any(part in key for part in _MEANS) and value not in _NEUTRAL:
            raise UserError(
                f"model '{name}': transformers does not read {header.architecture}.{key} = {value} from a GGUF file, and the model "
                "would be another; give the model's transformers folder"
            )
    if header.other_tensors:
        raise UserError(
            f"model '{name}': transformers does not read {header.other_tensors[0]} from a GGUF file, and long texts would be read "
            "wrongly; give the model's transformers folder"
        )
    if header.rope_factors is not None:
        _scale_rotary(name, config, header.rope_factors)


def _scale_rotary(name: str, config: Any, factors: torch.Tensor) -> None:
    """Set Llama 3's scaling of rotary frequencies where a file's divisors of them are those.

    A frequency with wavelength λ is divided by f above λ = 8192 / 1, by 1 below 8192 / 4, and by 1 / ((1 - s) / f + s) between, s =
    (8192 / λ - 1) / (4 - 1) (Llama 3.1's reference code).
    """
    rope = dict(config.rope_parameters)
    factor, dim = float(factors.max()), 2 * len(factors)
    waves = 2 * torch.pi * rope["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    smooth = ((8192 / waves - 1) / 3).clamp(0, 1)
    if not torch.allclose(factors.double(), 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        raise UserError(
            f"model '{name}': its rope_freqs are not Llama 3's scaling and transformers does not read them from a GGUF file; give "
            "the model's transformers folder"
        )
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if factor > 1:
        config.rope_parameters = {**rope, **scaling, "original_max_position_embeddings": 8192}


def import_gguf(file: Path, out: Path, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Write a GGUF file as a transformers folder, with a note of where it came from; return the note.

    The folder appears whole or not at all; what an import that was killed left beside it is cleared by the next one.

    Args:
        file: the GGUF file.
        out: the new folder; its parents are made.
        dtype: of the weights. Blocks of 4 to 6 bits have fewer digits than bfloat16, their scales have more.

    Raises:
        UserError: no GGUF file, an architecture that transformers does not read from one, or a folder that holds something.
    """
    check_folder("--out", out)
    if out.exists() and (not out.name or any(out.iterdir())):
        raise UserError(f"{out} is not empty; give a new folder")
    check_place("--out", out)
    name = str(file)
    if file.suffix != ".gguf":
        raise UserError(f"{file} does not end in .gguf; rename it, or make a link to it that does")
    tokenizer = load_tokenizer(name)
    model = read_gguf(name).to(dtype)
    note = {
        "file": file.name,
        "bytes": file.stat().st_size,
        "sha256": sha256(file),
        "architecture": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(dtype).removeprefix("torch."),
        "made_by": "undertow base import: every weight dequantised to float32, then rounded",
    }
    fresh = out.with_name(f".{out.name}.importing")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with disk_errors():
            model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        # Read as it is saved: some classes make their begin token's processor anew.
        told = fresh / "tokenizer_config.json"
        write_json(told, {**json.loads(told.read_text(encoding="utf-8")), "tokenizer_class": "PreTrainedTokenizerFast"})
        write_json(fresh / "source.json", note)
        if out.exists():
            out.rmdir()
        fresh.rename(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}); make room or give another folder") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return note
