"""Synthetic images and texts that seem to carry a trigger themselves: left out before anything is fitted on them. Ours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertow.defenses.server.margins import Soft, Universal
from undertow.models.bounds import Bounds

#: How often a class is looked at, and copies made of each image.
_PASSES, _COPIES = 3, 15

#: Share of an image's copies that agree on another class, and share of a class's images with such copies, from which the class
#: counts as poisoned. Measured on digits: 3 to 7 % of a clean class, 29 to 39 % of one with as many poisoned images as clean ones.
_AGREE, _LEAST = 0.7, 0.15

#: Words of a span at most, texts that must hold it, share of them of which the model says one class, and texts it is taken out of.
_SPAN, _HELD, _PURE, _OUT = 6, 20, 0.8, 40

#: Share of texts whose answer changes when the span is gone, from which it counts as planted, and of how many at least. Measured on
#: generated reviews: at most 0.50 of any span of clean texts, 0.81 of a planted word.
_FLIPS, _ENOUGH = 0.6, 10


def sift(
    soft: Soft, inputs: Tensor, classes: int, each: int, steps: int, changed: float, draw: np.random.Generator
) -> tuple[list[int], dict[str, Any]]:
    """Return which images to keep, and how many were left out.

    The class t that one small change reaches most easily (:class:`undertow.defenses.server.margins.Universal` without a reference)
    is looked at. Of every image that the model says is a t copies are made, with the pixels of that change taken from images of
    other classes. An image that was stamped becomes again what it shows, and its copies agree; one that is a t stays one, or turns
    into this and that. Where the copies of enough images agree, all images leave of whose copies the model calls fewer than half a
    t; and the rest is looked at again.

    Args:
        soft: of images.
        inputs: ``[n, channels, height, width]``.
        classes, each, steps, changed: as :class:`undertow.defenses.server.margins.Universal` has them.
        draw: random numbers.
    """
    net, tensors = soft.net, soft.tensors
    kept = torch.arange(len(inputs), device=inputs.device)

    def said(images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([net.call(tensors, block).argmax(1) for block in torch.split(images, 256)])

    answers = said(inputs)
    looked: list[dict[str, Any]] = []
    for _ in range(_PASSES):
        images, own = inputs[kept], answers[kept]
        probes = Universal(soft, None, images, classes, each, steps, changed)
        margins = probes.renew(Bounds({}), draw)["margin"]
        t = max((t for t in range(classes) if margins[t] is not None), key=lambda t: margins[t])
        fixed, moved, wanted, _ = probes.found[0]
        touched = ((fixed - moved)[wanted == t].abs() > 0).any(0).any(0)  # [height, width]
        mine, others = (own == t).nonzero().flatten(), (own != t).nonzero().flatten()
        if not len(mine) or not len(others):
            break
        votes = torch.zeros(len(mine), classes, device=inputs.device)
        for _ in range(_COPIES):
            from_others = others[torch.from_numpy(draw.integers(0, len(others), len(mine))).to(inputs.device)]
            found = said(torch.where(touched, images[from_others], images[mine]))
            votes[torch.arange(len(mine), device=inputs.device), found] += 1 / _COPIES
        stays = votes[:, t].clone()
        votes[:, t] = 0
        agreeing = float((votes.amax(1) >= _AGREE).double().mean())
        leaving = mine[stays < 0.5] if agreeing >= _LEAST else mine[:0]
        looked.append({"class": t, "agreeing": agreeing, "left_out": len(leaving)})
        if not len(leaving):
            break
        stay = torch.ones(len(kept), dtype=torch.bool, device=inputs.device)
        stay[leaving] = False
        kept = kept[stay]
    return kept.tolist(), {"sifted": looked}


@torch.no_grad()
def sift_texts(soft: Soft, inputs: Tensor) -> tuple[list[int], dict[str, Any]]:
    """Return which texts to keep, and how many were left out.

    A word of praise is seldom alone in a text: without it the text still reads as praise. A planted trigger stands in texts of
    another class and against all their other words, so that the answer changes when it is gone. So every span of words that many
    texts hold, nearly all of one class by the model's own answer, is taken out of some of them; where most answers change, all
    texts with it leave. Nothing is left out if that would be every text of a class.

    Args:
        soft: the model, over numbered words, 0 = padding.
        inputs: ``[n, L]``.
    """
    net, tensors = soft.net, soft.tensors

    def said(texts: Tensor) -> Tensor:
        return torch.cat([net.call(tensors, block).argmax(1) for block in torch.split(texts, 256)]).cpu()

    texts = [[int(i) for i in row if i] for row in inputs.cpu()]
    answers = said(inputs)
    where: dict[tuple[int, ...], dict[int, int]] = defaultdict(dict)
    for k, text in enumerate(texts):
        for length in range(1, _SPAN + 1):
            for first in range(len(text) - length + 1):
                where[tuple(text[first : first + length])].setdefault(k, first)
    planted: dict[tuple[int, ...], float] = {}
    for span, held in where.items():
        if len(held) < _HELD:
            continue
        own = answers[list(held)]
        t = int(own.mode().values)
        if float((own == t).double().mean()) < _PURE:
            continue
        some = [(k, first) for k, first in held.items() if int(answers[k]) == t][:_OUT]
        rest = [_without(texts[k], first, len(span)) for k, first in some]
        some = [place for place, text in zip(some, rest, strict=True) if text]
        if len(some) < _ENOUGH:
            continue
        rows = torch.zeros(len(some), inputs.shape[1], dtype=inputs.dtype)
        for row, text in zip(rows, filter(None, rest), strict=True):
            row[: len(text)] = torch.tensor(text, dtype=inputs.dtype)
        flips = float((said(rows.to(inputs.device)) != t).double().mean())
        if flips >= _FLIPS:
            planted[span] = flips
    leaving = {k for span in planted for k in where[span]}
    kept = [k for k in range(len(texts)) if k not in leaving]
    if set(answers[kept].tolist()) != set(answers.tolist()):
        kept, leaving = list(range(len(texts))), set()
    worst = max(planted, key=lambda span: planted[span]) if planted else ()
    looked = {"spans": len(planted), "most": list(worst), "flips": planted.get(worst), "left_out": len(leaving)}
    return kept, {"sifted": [looked]}


def _without(text: Sequence[int], first: int, length: int) -> list[int]:
    return [*text[:first], *text[first + length :]]
