"""The likeliest token of a large vocabulary without all of its float32 logits: bfloat16 products rule out all tokens but a few.

For every token v, |w_v·x - s_v| <= e, s being the product of W and x rounded to bfloat16. So the largest logit is that of a token
with s_v >= max s - 2e, and only those are multiplied in float32. Worth it where a processor multiplies faster in bfloat16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Vocabularies below this are multiplied whole: there is little to save.
LARGE = 1 << 15

#: bfloat16 keeps 8 significant bits: rounding changes a number by this share of it at most. Products are added in float32.
_ROUNDING, _ADDING = 2.0**-8, 2.0**-20

#: Logits that are looked through one by one only where the largest of them is large enough.
_BLOCK = 256

#: Candidates for a row, on average, beyond which all tokens are multiplied.
_MANY = 256


@dataclass(frozen=True)
class Screen:
    """An output head's weight ``[V, d]`` float32, and what rules tokens out.

    Attributes:
        weight: W.
        rounded: W in bfloat16.
        norm: the largest length of a row of W.
        lost: the largest length of a row of W - rounded.
    """

    weight: Tensor
    rounded: Tensor
    norm: float
    lost: float

    @staticmethod
    def of(weight: Tensor) -> Screen:
        """Round a weight."""
        rounded = weight.to(torch.bfloat16)
        norm = lost = 0.0
        for part, small in zip(weight.split(LARGE), rounded.split(LARGE), strict=True):
            norm = max(norm, float(torch.linalg.vector_norm(part, dim=1).max()))
            lost = max(lost, float(torch.linalg.vector_norm(part - small, dim=1).max()))
        return Screen(weight, rounded, norm, lost)

    def likeliest(self, x: Tensor) -> Tensor | None:
        """Return the first token of the largest ``w_v·x`` for each row of ``x [n, d]`` float32, ``[n]``; None where too many are
        near it."""
        small = x.to(torch.bfloat16)
        scores = torch.mm(small, self.rounded.t())
        tops = blocks(scores)[0].amax(2)
        best = tops.amax(1).float()
        length = torch.linalg.vector_norm(x, dim=1)
        off = self.norm * torch.linalg.vector_norm(x - small, dim=1) + self.lost * torch.linalg.vector_norm(small.float(), dim=1)
        # e at a token near the best one; what lies further below is off by less than it lies below.
        error = off + _ADDING * self.norm * length + _ROUNDING * (best.abs() + 2 * off)
        # Compared in bfloat16, which may round the bound up: one more step down.
        bound = best - 2 * error
        bound = (bound - _ROUNDING * bound.abs()).to(torch.bfloat16)
        found = _above(scores, tops, bound, _MANY * len(x))
        if found is None or not bool(torch.isfinite(best).all()):
            return None
        rows, tokens = found
        exact = torch.cat([(x[r] * self.weight[t]).sum(1) for r, t in zip(rows.split(4096), tokens.split(4096), strict=True)])
        top = torch.full_like(best, -torch.inf).scatter_reduce(0, rows, exact, "amax")
        none = len(self.weight)
        first = torch.where(exact == top[rows], tokens, none)
        return torch.full((len(x),), none, device=x.device).scatter_reduce(0, rows, first, "amin")


def blocks(scores: Tensor) -> tuple[Tensor, int]:
    """Return ``[n, V]`` as ``[n, blocks, size]`` and the size."""
    size = math.gcd(scores.shape[1], _BLOCK)
    return scores.view(len(scores), -1, size), size


def largest(scores: Tensor) -> Tensor:
    """Return the first place of the largest of each row of ``[n, V]``, as ``argmax(1)`` does in several times the time."""
    within, size = blocks(scores)
    block = within.amax(2).argmax(1)
    return block * size + within[torch.arange(len(scores), device=scores.device), block].argmax(1)


def _above(scores: Tensor, tops: Tensor, bound: Tensor, most: int) -> tuple[Tensor, Tensor] | None:
    """Return rows and places of the scores ``[n, V]`` that reach their row's bound ``[n]``; None where they are more than
    ``most``. ``tops`` are the largest of each block."""
    within, size = blocks(scores)
    rows, block = (tops >= bound[:, None]).nonzero(as_tuple=True)
    if len(rows) > most:
        return None
    which, place = (within[rows, block] >= bound[rows, None]).nonzero(as_tuple=True)
    return None if len(which) > most else (rows[which], block[which] * size + place)
