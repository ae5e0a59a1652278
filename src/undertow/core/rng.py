"""Every random draw comes from here: a generator named by what it is for, never a global state.

Two draws with different names are independent; the same name gives the same numbers, whatever was
drawn before. That is what makes a resumed run equal, bit for bit, to one that was never killed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def _words(seed: int, purpose: str, round: int, client: int) -> list[int]:
    digest = hashlib.sha256(f"{seed}|{purpose}|{round}|{client}".encode()).digest()
    return [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4)]


def rng(seed: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """Return the numpy generator of one named purpose.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for, such as ``"partition"``.
        round: communication round, 0 for what happens once.
        client: client index, 0 for what the server does.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(_words(seed, purpose, round, client))))


def torch_rng(seed: int, purpose: str, round: int = 0, client: int = 0) -> torch.Generator:
    """Return the CPU torch generator of one named purpose; arguments as :func:`rng`."""
    import torch  # here, so that what needs no model starts without its second of loading

    words = _words(seed, purpose, round, client)
    generator = torch.Generator(device="cpu")
    generator.manual_seed(words[0] | (words[1] & 0x7FFFFFFF) << 32)
    return generator
