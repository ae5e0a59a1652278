"""Inputs that a network is far too sure of: noise pushed up in margin (MMAC), and one perturbation that moves many inputs to a
class.

Words have no gradient. There the output of the network's first embedding is pushed instead, which is ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from undertow.core.errors import UserError
from undertow.models.bounds import Bounds, bounded
from undertow.models.net import Net

#: Momentum of the steps that push noise up in margin, as in the published code of MMAC.
_MOMENTUM = 0.2

#: Words that are tried at a place, and the texts of a class they are tried in.
_TRIED, _TEXTS = 256, 20


def margin(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return f_t - max over k != t of f_k for logits ``[m, C]``, C >= 2, and classes t ``[m]``."""
    others = logits.scatter(1, wanted[:, None], -torch.inf)
    return logits.gather(1, wanted[:, None])[:, 0] - others.amax(1)


@dataclass(frozen=True)
class Soft:
    """Where a network's inputs can be pushed by gradients: pixels, or the outputs of its first embedding.

    Attributes:
        net: the network.
        tensors: of its state, by name.
        embedding: name of the embedding; empty for inputs that are numbers themselves.
    """

    net: Net
    tensors: Mapping[str, Tensor]
    embedding: str

    @staticmethod
    def of(net: Net, tensors: Mapping[str, Tensor], inputs: Tensor) -> Soft:
        """Return the space of ``inputs``.

        Raises:
            UserError: words, and a network without an embedding.
        """
        if inputs.is_floating_point():
            return Soft(net, tensors, "")
        found = [name for name, part in net.module.named_modules() if isinstance(part, nn.Embedding)]
        if not found:
            raise UserError("this network has no embedding to push words in; set objective=mm-bm")
        return Soft(net, tensors, found[0])

    @property
    def table(self) -> Tensor:
        """The embedding's rows."""
        name = f"{self.embedding}.weight"
        return self.tensors.get(name, self.net.module.get_parameter(name)).detach()

    def values(self, inputs: Tensor) -> Tensor:
        """Return where ``inputs [n, ...]`` are in the space: themselves as floats, or ``[n, L, d]``."""
        if self.embedding:
            return torch.nn.functional.embedding(inputs, self.table)
        return inputs.to(next(iter(self.tensors.values())))

    def logits(self, values: Tensor, inputs: Tensor) -> Tensor:
        """Return the logits ``[n, C]`` at a place of the space; ``inputs`` say where words are padding."""
        if not self.embedding:
            return self.net.call(self.tensors, values)
        with self._replaced(values):
            return self.net.call(self.tensors, inputs)

    @contextmanager
    def _replaced(self, values: Tensor) -> Iterator[None]:
        handle = self.net.module.get_submodule(self.embedding).register_forward_hook(lambda module, given, output: values)
        try:
            yield
        finally:
            handle.remove()


class Probes(ABC):
    """Inputs with large margins, that bounds are to bring down."""

    @abstractmethod
    def renew(self, bounds: Bounds, draw: np.random.Generator) -> dict[str, Any]:
        """Look for inputs, and return a report.

        Args:
            bounds: those found so far.
            draw: random numbers.
        """

    @abstractmethod
    def margins(self) -> Tensor:
        """Return the margins ``[m]``; differentiable in bounds that are set around the call."""


class Noise(Probes):
    """MMAC's x_bd: noise that the model as it is was made sure of.

    For each class t, ``each`` random inputs are pushed up in f_t - max f_k by ``steps`` of SGD with momentum 0.2, images within [0,
    1]. Of words, random rows of the embedding fill all places and stay within the embedding's own range; the rate is in units of
    its root mean square. New inputs take the place of the old ones.

    Args:
        soft: where to push.
        inputs: for their shape, at least one.
        classes: C.
        each: inputs for each class.
        steps, rate: of the pushing.
    """

    def __init__(self, soft: Soft, inputs: Tensor, classes: int, each: int, steps: int, rate: float = 0.01) -> None:
        self.soft, self.inputs, self.steps, self.rate = soft, inputs, steps, rate
        self.wanted = torch.arange(classes, device=inputs.device).repeat_interleave(each)
        self.values = self.ids = torch.empty(0)

    def renew(self, bounds: Bounds, draw: np.random.Generator) -> dict[str, Any]:
        """Make new noise on the model without bounds, and push it."""
        shape = (len(self.wanted), *self.inputs.shape[1:])
        if self.soft.embedding:
            table = self.soft.table
            unit = float(table.square().mean().sqrt())
            self.ids = torch.ones(shape, dtype=self.inputs.dtype, device=self.inputs.device)
            values = table[torch.from_numpy(draw.integers(0, len(table), shape)).to(table.device)]
            low, high = table.amin(0), table.amax(0)
        else:
            unit, self.ids = 1.0, self.inputs[:1]
            values = self.soft.values(torch.from_numpy(draw.random(shape)).to(self.inputs.device))
            low, high = values.new_zeros(()), values.new_ones(())
        speed = torch.zeros_like(values)
        for _ in range(self.steps):
            values.requires_grad_()
            (slope,) = torch.autograd.grad(margin(self.soft.logits(values, self.ids), self.wanted).sum(), values)
            with torch.no_grad():
                speed = _MOMENTUM * speed + slope
                values = torch.clamp(values + self.rate * unit * speed, low, high)
        self.values = values.detach()
        with torch.no_grad():
            return {"margin": float(self.margins().mean())}

    def margins(self) -> Tensor:
        """Return f_t - max f_k of each input."""
        return margin(self.soft.logits(self.values, self.ids), self.wanted)


class Universal(Probes):
    """Data moved by one small change for each class: ours.

    For each class t, δ_t maximises the mean over inputs x, of which the model says another class, of

        f_t - max f_k  -  max(0, 1 + the same margin of the reference)

    so that what also makes the reference, a model that the server trained on its own data alone, say t counts for nothing: a stroke
    that makes a 3 an 8, a word of praise. Images become x + δ_t within [0, 1], where δ_t is 0 but for the share ``changed`` of the
    pixels. In a text ``changed`` of its places, one at least, side by side and none of them padding, get other words, the same for
    all texts: the best word for the first place, then for the next. Of all words those with the steepest slope are tried, as
    Wallace et al. 2019 (arXiv 1908.07125, Eq. 3) look for universal triggers. A margin f_t - max f_k counts where it is above -1,
    and with the weight C·softmax(m / deviation of m), m the classes' means of what was maximised: most for the class that is
    reached too easily. What was found before stays, and new changes are looked for under the bounds so far.

    Args:
        soft: where to change inputs.
        reference: the same for the reference, with a module of its own; None without.
        inputs: data to move.
        classes: C.
        each: inputs for each class, at most.
        steps: of gradient ascent on images; over the first half a δ_t shrinks from all pixels to its share.
        changed: share of the pixels or words, above 0, at most 1.
    """

    def __init__(
        self, soft: Soft, reference: Soft | None, inputs: Tensor, classes: int, each: int, steps: int, changed: float
    ) -> None:
        self.soft, self.reference, self.inputs, self.classes, self.each = soft, reference, inputs, classes, each
        self.steps, self.changed = steps, changed
        with torch.no_grad():
            said = torch.cat([soft.net.call(soft.tensors, block).argmax(1) for block in torch.split(inputs, 256)]).cpu().numpy()
        self.others = [np.flatnonzero(said != t) for t in range(classes)]
        self.found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def renew(self, bounds: Bounds, draw: np.random.Generator) -> dict[str, Any]:
        """Add a change for each class under the bounds so far; the report has the mean of what was maximised for each, or None."""
        with bounded(self.soft.net.module, bounds):
            return self._renew(draw)

    def _renew(self, draw: np.random.Generator) -> dict[str, Any]:
        # A class that the model says for all data has none to move there.
        chosen = {t: draw.permutation(rows)[: self.each] for t, rows in enumerate(self.others) if len(rows)}
        wanted = torch.cat([torch.full((len(rows),), t) for t, rows in chosen.items()]).to(self.inputs.device)
        moved = self.inputs[torch.from_numpy(np.concatenate(list(chosen.values()))).to(self.inputs.device)]

        if self.soft.embedding:
            moved = words(self.soft, self.reference, moved, wanted, self.changed, draw)
            fixed = self.soft.values(moved)
        else:
            fixed = self._pixels(moved, wanted, draw)
        with torch.no_grad():
            reached = beyond(self.soft, self.reference, fixed, moved, wanted)
        means = torch.stack([reached[wanted == t].mean() for t in chosen])
        spread = means.std(correction=0)
        weight = reached.new_zeros(self.classes)
        weight[list(chosen)] = len(chosen) * torch.softmax(means / spread if float(spread) > 0 else torch.zeros_like(means), 0)
        self.found.append((fixed, moved, wanted, weight[wanted]))
        named = dict(zip(chosen, means.tolist(), strict=True))
        return {"margin": [named.get(t) for t in range(self.classes)]}

    def _pixels(self, moved: Tensor, wanted: Tensor, draw: np.random.Generator) -> Tensor:
        """Return images with a change for each class, found by gradient ascent in steps of falling length."""
        change = _Pixels(self.soft.values(moved), self.inputs, self.changed)
        delta = change.start(self.classes, draw)
        for step in range(self.steps):
            delta.requires_grad_()
            (slope,) = torch.autograd.grad(
                beyond(self.soft, self.reference, change.made(delta[wanted]), moved, wanted).sum(), delta
            )
            with torch.no_grad():
                length = torch.linalg.vector_norm(slope.flatten(1), dim=1).clamp(min=1e-12).view(-1, *[1] * (slope.dim() - 1))
                delta = change.allowed(delta + (1 - step / self.steps) * change.stride * slope / length, step, self.steps)
        return change.made(delta.detach()[wanted])

    def margins(self) -> Tensor:
        """Return the weighed margins above -1 of all inputs found."""
        return torch.cat(
            [weight * margin(self.soft.logits(fixed, moved), wanted).clamp(min=-1) for fixed, moved, wanted, weight in self.found]
        )


def beyond(soft: Soft, reference: Soft | None, values: Tensor, inputs: Tensor, wanted: Tensor) -> Tensor:
    """Return f_t - max f_k less what of it, and of one more, the reference says too, ``[m]``.

    Args:
        soft: the model.
        reference: None, or the reference; words go through its own embedding.
        values: where the inputs are in the model's space.
        inputs: the same inputs as they are; of images their shape alone counts.
        wanted: the classes t, ``[m]``.
    """
    own = margin(soft.logits(values, inputs), wanted)
    if reference is None:
        return own
    there = reference.values(inputs) if reference.embedding else values
    return own - (1 + margin(reference.logits(there, inputs), wanted)).clamp(min=0)


def words(soft: Soft, reference: Soft | None, texts: Tensor, wanted: Tensor, changed: float, draw: np.random.Generator) -> Tensor:
    """Return texts with the same few other words for each class, that move them there beyond the reference.

    Place by place, the :data:`_TRIED` words of the steepest slope of the model's margin are tried, and the one stays that makes the
    mean of :func:`beyond` over the texts of its class largest, if it is larger than before.

    Args:
        soft: the model, over numbered words, 0 = padding.
        reference: None, or the reference.
        texts: ``[m, L]``.
        wanted: their classes, ``[m]``.
        changed: share of the words of a text, of mean length, that are replaced, side by side; at least one.
        draw: of the places.
    """
    real = (texts != 0).sum(1).cpu().numpy()
    kept = max(1, round(changed * float(real.mean())))
    first = torch.tensor([int(draw.integers(0, max(1, int(n) - kept + 1))) for n in real], device=texts.device)
    inside = torch.arange(texts.shape[1], device=texts.device)
    found = texts.clone()
    table = soft.table

    def reached(rows: Tensor, made: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [
                beyond(soft, reference, soft.values(block), block, own)
                for block, own in zip(torch.split(made, 512), torch.split(wanted[rows], 512), strict=True)
            ]
        return torch.cat(parts)

    for slot in range(kept):
        here = (inside == (first + slot)[:, None]) & (texts != 0)
        values = soft.values(found).requires_grad_()
        (slope,) = torch.autograd.grad(margin(soft.logits(values, found), wanted).sum(), values)
        for t in wanted.unique():
            rows = (wanted == t).nonzero().flatten()
            steep = table @ slope[rows][here[rows]].sum(0)
            steep[0] = -torch.inf  # padding is no word
            tried = steep.topk(min(_TRIED, len(table) - 1)).indices
            few = rows[:_TEXTS]
            made = torch.where(here[few], tried[:, None, None], found[few]).flatten(0, 1)  # [words * texts, L]
            scores = reached(few.repeat(len(tried)), made).view(len(tried), -1).mean(1)
            if float(scores.max()) > float(reached(few, found[few]).mean()):
                found[rows] = torch.where(here[rows], tried[scores.argmax()], found[rows])
    return found


class _Pixels:
    """Changes of images: x + δ within [0, 1]."""

    def __init__(self, images: Tensor, inputs: Tensor, changed: float) -> None:
        self.images = images
        self.pixels = self.images[0, 0].numel()
        self.kept = max(1, round(changed * self.pixels))
        self.stride = 0.2 * float(torch.linalg.vector_norm(inputs.flatten(1), dim=1).mean())

    def start(self, classes: int, draw: np.random.Generator) -> Tensor:
        """Return where the search begins, ``[classes, ...]``."""
        return torch.from_numpy(0.01 * draw.standard_normal((classes, *self.images.shape[1:]))).to(self.images)

    def allowed(self, delta: Tensor, step: int, steps: int) -> Tensor:
        """Return the nearest change that is allowed in a step."""
        left = self.kept + int((self.pixels - self.kept) * max(0.0, 1 - 2 * (step + 1) / steps))
        size = delta.abs().amax(1, keepdim=True)
        least = size.flatten(1).topk(left).values[:, -1].view(-1, 1, 1, 1)
        return (delta * (size >= least)).clamp(-1, 1)

    def made(self, delta: Tensor) -> Tensor:
        """Return the changed images; gradients pass as if there were no range, or a pixel beyond it would never come back."""
        free = self.images + delta
        return free + (free.clamp(0, 1) - free).detach()
