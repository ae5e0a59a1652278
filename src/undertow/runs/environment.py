"""What a run ran on: for its record, and so that a reader can tell two runs apart."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from undertow.config import Config
from undertow.core.version import __version__


def versions(config: Config, device: torch.device, command: str) -> dict[str, Any]:
    """Return versions, machine, device, threads, source revision, the command, and the config: its digest, and its values as the
    seal (:mod:`undertow.runs.seal`)."""
    packages = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
    return {
        "undertow": __version__,
        "git": _revision(),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "config_digest": config.digest(),
        "config": config.values(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _revision() -> str | None:
    """Return the commit of the source tree this runs from, if it is one.

    An installed package may lie inside somebody else's repository; its commit would say nothing about this code.
    """
    folder = Path(__file__).resolve().parent
    git = ["git", "-C", str(folder)]
    try:
        top = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, timeout=5)
        if top.returncode or folder != Path(top.stdout.strip()).resolve() / "src" / "undertow":
            return None
        told = subprocess.run([*git, "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None if told.returncode == 0 else None
