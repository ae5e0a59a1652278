"""Where a language model lies, be it the built-in one, a folder, a GGUF file or on the hub, and its tokenizer."""

from __future__ import annotations

import json
import os
import re
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from undertow.core.errors import UserError

#: More layers or experts than any model has.
_MOST_PARTS = 10_000


def builtin_path() -> Path:
    """Folder of the base that comes with the package."""
    return Path(str(resources.files("undertow") / "models" / "builtin" / "base"))


def locate(name: str) -> str:
    """Return the folder, .gguf file or hub id that ``name``, as ``model.name``, stands for.

    Raises:
        UserError: no such folder, one without a model, or with a config of more layers or experts than any model has.
    """
    if name == "builtin":
        folder = builtin_path()
        if not (folder / "config.json").is_file():
            raise UserError(
                "the built-in base is missing from this installation; reinstall undertow, or build one with `undertow base build "
                "--out DIR` and set model.name=DIR"
            )
        return str(folder)
    folder = Path(name).expanduser()
    if name.endswith(".gguf"):
        return _gguf(name, folder)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            hint = "; its build is not finished: run the same `undertow base build` again" if (folder / "building").is_dir() else ""
            raise UserError(f"model '{name}': the folder has no config.json{hint or '; give a transformers model folder'}")
        _check_counts(name, folder / "config.json")
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"model '{name}': no such folder; give a transformers folder, a hub id (owner/name) or builtin")
    return name


def _check_counts(name: str, path: Path) -> None:
    """Refuse a config with more parts than any model has: transformers would make them one by one for hours, before any check of
    memory."""
    try:
        values = json.loads(path.read_bytes())
    except ValueError:
        return  # whoever reads it next says what is wrong with it
    groups = [values] if isinstance(values, dict) else []
    for group in groups:
        groups += [inner for inner in group.values() if isinstance(inner, dict)]
        for field, value in group.items():
            if isinstance(value, int) and value > _MOST_PARTS and re.search(r"(layers?|blocks?|experts?)$", field):
                raise UserError(
                    f"model '{name}': {field} = {value:,} in its config.json, at most {_MOST_PARTS:,} are read; correct it"
                )


def _gguf(name: str, file: Path) -> str:
    if not file.is_file():
        raise UserError(f"model '{name}': no such file; give a .gguf file, a transformers folder, a hub id or builtin")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError(f"model '{name}' is no GGUF file: it does not begin with 'GGUF'; download it again")
    if find_spec("gguf") is None:
        raise UserError(f"model '{name}' needs the package gguf: pip install -e '.[gguf]' in the clone")
    return str(file)


def pretrained(name: str) -> tuple[str, dict[str, Any]]:
    """Return what transformers' ``from_pretrained`` takes for a base: a folder or hub id, and where and which file to look for.

    Code that comes with a base is never run. It must be said: left open, transformers asks on standard output, and takes a "y".

    Raises:
        UserError: as :func:`locate`.
    """
    path = locate(name)
    if path.endswith(".gguf"):
        return str(Path(path).parent), {"local_files_only": True, "trust_remote_code": False, "gguf_file": Path(path).name}
    return path, {"local_files_only": Path(path).is_dir(), "trust_remote_code": False}


def cannot_load(name: str, error: Exception) -> str:
    """Return the message for a model that transformers failed to load."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in reason:
        return f"model '{name}': it needs Python code that comes with it, which is never run; give a base that transformers knows"
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    if not Path(name).expanduser().exists() and name != "builtin":
        how = (
            "HF_HUB_OFFLINE is set and it is not in the local cache"
            if offline
            else "it is neither a folder nor reachable on the hub"
        )
        return f"model '{name}': {how}; give a local transformers folder or download it first ({reason[:160]})"
    return f"model '{name}' cannot be loaded: {reason[:300]}; check the folder (config.json, tokenizer, *.safetensors)"


def load_tokenizer(name: str, ends: bool = True) -> Any:
    """Load the tokenizer of a base.

    Args:
        name: as ``model.name``: a transformers folder, a hub id, a .gguf file or ``builtin``.
        ends: whether it must have a token that ends a text; those of encoders need none.

    Raises:
        UserError: no such model, a damaged file, or no token that ends a text.
    """
    from transformers import AutoTokenizer

    path, where = pretrained(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **where)
        if "gguf_file" in where:
            _as_told(tokenizer, Path(path) / where["gguf_file"])
    except Exception as error:  # tokenizers raises a bare Exception for a damaged file
        raise UserError(cannot_load(name, error)) from error
    if ends and tokenizer.eos_token_id is None:
        raise UserError(f"model '{name}': its tokenizer has no end-of-sequence token, answers could never end; add eos_token")
    return tokenizer


def _as_told(tokenizer: Any, file: Path) -> None:
    """Give the tokenizer of a GGUF file the special tokens that the file names, and the begin token before a text where it says so.

    transformers does not look at the second, and before 5.20 has names of its own for the first.
    """
    from gguf import GGUFReader
    from tokenizers.processors import TemplateProcessing

    fields = GGUFReader(file).fields
    for name, key in (("bos_token", "bos_token_id"), ("eos_token", "eos_token_id"), ("pad_token", "padding_token_id")):
        field = fields.get(f"tokenizer.ggml.{key}")
        token = None if field is None else tokenizer.convert_ids_to_tokens(int(field.contents()))
        if token is not None and token != getattr(tokenizer, name):
            setattr(tokenizer, name, token)
    field, begin = fields.get("tokenizer.ggml.add_bos_token"), tokenizer.bos_token_id
    if field is None or not field.contents() or begin is None or tokenizer("a")["input_ids"][:1] == [begin]:
        return
    token = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, begin)]
    )
