"""GGUF files, the format of llama.cpp and Ollama, as plain transformers models: every weight dequantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from undertow.core.errors import UserError
from undertow.core.files import write_json
from undertow.data.tokenizer import cannot_load, load_tokenizer, pretrained
from undertow.models.identity import sha256


def read_gguf(name: str) -> Any:
    """Return the model of a GGUF file in float32, as transformers reads it.

    transformers keeps the file's blocks packed unless told otherwise; such weights can be neither cast nor adapted nor saved.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import GgufConfig

    folder, where = pretrained(name)
    whole = GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(folder, **where, quantization_config=whole, dtype=torch.float32)


def import_gguf(file: Path, out: Path, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Write a GGUF file as a transformers folder, with a note of where it came from; return the note.

    Args:
        file: the GGUF file.
        out: the new folder; its parents are made.
        dtype: of the weights. Blocks of 4 to 6 bits have fewer digits than bfloat16, their scales have more.

    Raises:
        UserError: no GGUF file, an architecture that transformers does not read from one, or a folder that holds something.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; give a new folder")
    name = str(file)
    tokenizer = load_tokenizer(name)
    try:
        model = read_gguf(name).to(dtype)
    except Exception as error:  # gguf and transformers raise many kinds for a damaged file
        raise UserError(cannot_load(name, error)) from error
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    note = {
        "file": file.name,
        "bytes": file.stat().st_size,
        "sha256": sha256(file),
        "architecture": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(dtype).removeprefix("torch."),
        "made_by": "undertow base import: every weight dequantised to float32, then rounded",
    }
    write_json(out / "source.json", note)
    return note
