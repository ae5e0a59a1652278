"""What a generator wrote, kept with the run: an endpoint cannot be asked twice for the same answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from undertow.core.errors import UserError
from undertow.core.files import write_bytes, write_json
from undertow.data.examples import Written
from undertow.data.reading import json_rows

#: Says what was written, with the other file's name and digest; it comes last, so that where it is, all is there.
_ABOUT = "synthetic.json"

_TEXTS, _IMAGES = "synthetic.jsonl", "synthetic.safetensors"


def save_written(folder: Path, written: Written, names: Sequence[str]) -> None:
    """Write texts as ``synthetic.jsonl`` (``text``, ``label``, ``class``) or images as ``synthetic.safetensors``, then
    ``synthetic.json``.

    Args:
        folder: of the run; made if missing.
        written: by the generator.
        names: of the classes, in order.
    """
    if isinstance(written.inputs, Tensor):
        name = _IMAGES
        labels = torch.tensor(written.labels, dtype=torch.int64)
        content = save({"inputs": written.inputs.to(torch.float32).contiguous(), "labels": labels})
    else:
        name = _TEXTS
        rows = (
            {"text": text, "label": label, "class": names[label]}
            for text, label in zip(written.inputs, written.labels, strict=True)
        )
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    write_bytes(folder / name, content)
    about = {"file": name, "sha256": hashlib.sha256(content).hexdigest(), "samples": len(written.labels), "classes": list(names)}
    write_json(folder / _ABOUT, {**about, "report": written.report})


def load_written(folder: Path, names: Sequence[str]) -> Written:
    """Read what :func:`save_written` wrote.

    Raises:
        UserError: missing, damaged, or of other classes.
    """
    about = _about(folder)
    if about["classes"] != list(names):
        raise UserError(
            f"{folder / _ABOUT}: written for the classes {', '.join(map(str, about['classes']))[:200]}, the data have "
            f"{', '.join(names)[:200]}; delete the run directory and run again"
        )
    path = folder / about["file"]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); delete the run directory and run again") from error
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise UserError(
            f"{path} is not what was written (another SHA-256 than in {_ABOUT}); delete the run directory and run again"
        )
    try:
        inputs, labels = _images(content) if about["file"] == _IMAGES else _texts(content)
        if len(inputs) != len(labels) or len(labels) != about["samples"]:
            raise ValueError(f"{len(inputs)} inputs and {len(labels)} labels for {about['samples']} samples")
        if any(type(label) is not int or not 0 <= label < len(names) for label in labels):
            raise ValueError("a label is no class")
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({' '.join(str(error).split())[:160]}); delete the run directory and run again"
        ) from error
    return Written(inputs, labels, about["report"])


def _about(folder: Path) -> dict[str, Any]:
    path = folder / _ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); run again in a new run directory") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}); delete the run directory and run again") from error
    kinds = {"file": str, "sha256": str, "samples": int, "classes": list, "report": dict}
    if not isinstance(about, dict) or not all(isinstance(about.get(key), kind) for key, kind in kinds.items()):
        raise UserError(f"{path} is damaged: it needs {', '.join(kinds)}; delete the run directory and run again")
    if about["file"] not in (_TEXTS, _IMAGES):
        raise UserError(f"{path} is damaged: its file is {about['file'][:80]!r}; delete the run directory and run again")
    return about


def _texts(content: bytes) -> tuple[list[str], list[int]]:
    rows = [row for _, row in json_rows(Path(_TEXTS), content.decode())]
    if not all(isinstance(row["text"], str) for row in rows):
        raise ValueError("a text is no string")
    return [row["text"] for row in rows], [row["label"] for row in rows]


def _images(content: bytes) -> tuple[Tensor, list[int]]:
    found = load(content)
    inputs, labels = found["inputs"], found["labels"]
    if inputs.dtype != torch.float32 or inputs.ndim != 4 or labels.dtype != torch.int64 or labels.ndim != 1:
        raise ValueError(f"inputs {inputs.dtype} {list(inputs.shape)}, labels {labels.dtype} {list(labels.shape)}")
    if not bool(((inputs >= 0) & (inputs <= 1)).all()):
        raise ValueError("values outside [0, 1]")
    return inputs, labels.tolist()
