"""Which base an adapter belongs to: hashes of weights, kept beside the adapter and compared when it is read."""

from __future__ import annotations

import hashlib
import json
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from undertow.core.errors import NoteWarning, UserError

#: The file beside an adapter's own two.
FILE = "base.json"


def hashes(path: str) -> dict[str, str]:
    """Return the SHA-256 of a base's weights and of the file it was imported from, each where known.

    Of weights: over names, types, shapes and bytes of all tensors in the order of their names, whatever files they lie in. Of a
    GGUF file: over the file, and a folder imported from it remembers that.

    Args:
        path: of the base, as :class:`~undertow.models.causal_lm.CausalLM` has it: a folder, a GGUF file or a hub id.
    """
    place = Path(path)
    if place.is_file():
        return {"source": _of_file(place, place.stat().st_mtime_ns)}
    folder = place if place.is_dir() else _cached(path)
    files = _weight_files(folder) if folder else []
    found = {"weights": _of_weights(tuple((file, file.stat().st_mtime_ns) for file in files))} if files else {}
    try:
        source = json.loads((place / "source.json").read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return found
    return {**found, "source": str(source)}


def identity(name: str, path: str, model: Any) -> dict[str, Any]:
    """Return which base an adapter is trained on: what is kept in ``base.json`` beside it.

    Args:
        name: of the base, as the user gave it.
        path: where it lies.
        model: the transformers model.
    """
    config = model.config
    return {
        "name": name,
        "architecture": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": getattr(config, "vocab_size", None),
        "revision": getattr(config, "_commit_hash", None),
        "sha256": hashes(path),
    }


def check_identity(folder: Path, path: str, config: Any = None) -> None:
    """Refuse an adapter that says it was trained on another base, and warn of one that names another and has no hash.

    Names are compared by their last part: folders lie elsewhere on other machines.

    Args:
        folder: of the adapter.
        path: of the base that it is to be used with.
        config: the base's own, which may tell another name of it.

    Raises:
        UserError: hashes of both are known and none is the same, or the file is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        named = _named(folder)
        if named and _last(named) not in {_last(path), _last(str(getattr(config, "_name_or_path", "") or path))}:
            told = f"{folder} says that it was trained on {named}, and is measured on {path}: another model, if these differ"
            warnings.warn(told, NoteWarning, stacklevel=2)
        return
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        name, wanted = str(told["name"]), {kind: str(value) for kind, value in told["sha256"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is damaged; copy the adapter again") from error
    found = hashes(path) if wanted else {}
    common = wanted.keys() & found.keys()
    if common and all(wanted[kind] != found[kind] for kind in common):
        kind = sorted(common)[-1]
        raise UserError(
            f"{folder} was trained on another base: {name} (SHA-256 of its {kind}: {wanted[kind][:12]}, of this base's: "
            f"{found[kind][:12]}); give that base, or delete {file.name} to try it on this one"
        )


def _named(folder: Path) -> str:
    """Return the base that an adapter's config names, or ""."""
    try:
        named = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    return named if isinstance(named, str) else ""


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers reads weights from; others of their kind may lie beside them."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return sorted(folder.glob("*.safetensors"))
    return sorted(file for name in named if (file := folder / Path(str(name)).name).is_file())


def sha256(file: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@lru_cache(maxsize=8)
def _of_file(file: Path, changed: int) -> str:
    return sha256(file)


@lru_cache(maxsize=8)
def _of_weights(files: tuple[tuple[Path, int], ...]) -> str:
    whole = hashlib.sha256()
    places: dict[str, Path] = {}
    for file, _ in files:
        try:
            with safe_open(file, framework="pt") as opened:
                places |= dict.fromkeys(opened.keys(), file)
        except SafetensorError as error:
            raise UserError(f"{file} is damaged ({error}); copy the base again") from error
    for name in sorted(places):
        with safe_open(places[name], framework="pt") as opened:
            tensor = opened.get_tensor(name).contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return whole.hexdigest()


def _cached(hub_id: str) -> Path | None:
    """Return the local copy of a hub repository."""
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(hub_id, "config.json", local_files_only=True)
    except OSError:
        return None
    return None if found is None else Path(found).parent
