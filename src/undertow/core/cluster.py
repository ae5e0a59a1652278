"""The connection to a Ray cluster (extra ``ray``)."""

from __future__ import annotations

import importlib
from typing import Any

from undertow.core.errors import UserError


def connect(address: str) -> Any:
    """Return the package ``ray``, connected to a cluster; once connected, a process stays so.

    Args:
        address: ``auto``, ``local`` (a new instance on this machine) or ``ray://host:port``.

    Raises:
        UserError: Ray is not installed, or nobody answers.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise UserError(f"--ray {address} needs the package ray ({error}): pip install -e '.[ray]' in the clone") from error
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"--ray {address}: no cluster answers ({reason}); start one with `ray start --head`, or give --ray local"
            ) from error
    return ray
