"""The likeliest token of a large vocabulary without all of its float32 logits: bfloat16 products rule out all tokens but a few.

For every token v, |w_v·x - s_v| <= e, s being the product of W and x rounded to bfloat16. So the largest logit is that of a token
with s_v >= max s - 2e, and only those are multiplied in float32. Worth it where a processor multiplies faster in bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Vocabularies below this are multiplied whole: there is little to save.
LARGE = 1 << 15

#: bfloat16 keeps 8 significant bits: rounding changes a number by this share of it at most. Products are added in float32.
_ROUNDING, _ADDING = 2.0**-8, 2.0**-20

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
        best = scores.max(1).values.float()
        length = torch.linalg.vector_norm(x, dim=1)
        off = self.norm * torch.linalg.vector_norm(x - small, dim=1) + self.lost * torch.linalg.vector_norm(small.float(), dim=1)
        # e at a token near the best one; what lies further below is off by less than it lies below.
        error = off + _ADDING * self.norm * length + _ROUNDING * (best.abs() + 2 * off)
        # Compared in bfloat16, which may round the bound up: one more step down.
        bound = best - 2 * error
        bound = (bound - _ROUNDING * bound.abs()).to(torch.bfloat16)
        rows, tokens = (scores >= bound[:, None]).nonzero(as_tuple=True)
        if len(rows) > _MANY * len(x) or not bool(torch.isfinite(best).all()):
            return None
        exact = torch.cat([(x[r] * self.weight[t]).sum(1) for r, t in zip(rows.split(4096), tokens.split(4096), strict=True)])
        top = torch.full_like(best, -torch.inf).scatter_reduce(0, rows, exact, "amax")
        none = len(self.weight)
        first = torch.where(exact == top[rows], tokens, none)
        return torch.full((len(x),), none, device=x.device).scatter_reduce(0, rows, first, "amin")
