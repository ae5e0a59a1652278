"""A Gaussian mixture of each class in the space of the principal components: synthetic images without any download."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.examples import Written
from undertow.generators._asking import whole
from undertow.generators._public import in_turn, parts, public_images
from undertow.generators.contract import GENERATORS, Generator, Order

#: Public images that a component needs; with fewer it is noise around single images.
_A_COMPONENT = 10

#: Added to the variance of each principal component, in units of a pixel's range squared: a deviation of 0.03.
_FLOOR = 1e-3


@GENERATORS.register("mixture", source="ours; Gaussian mixtures by expectation maximisation: Dempster, Laird, Rubin 1977")
class Mixture(Generator):
    """A Gaussian mixture of each class of images, fitted to the data that no client holds: no download, seconds.

    With mu and the rows of W (orthonormal) the mean and the first d principal components of all public images,
    z = W (x - mu); for each class sum_k pi_k N(z; m_k, S_k) with full covariances is fitted, z is drawn from it, and the
    image is mu + W^T z, cut to [0, 1]. It stands in for a foundation model where there is none, for small images: what a
    blur of a class's images cannot show, it cannot write.

    A class with n public images has min(components, n // 10) Gaussians, and one at least; with 2 images that one is the line
    through both.

    Args:
        components: Gaussians of a class, from 1.
        dimensions: d, from 1; at most the public images less one, or the values of an image.

    Raises:
        ValueError: an option outside its rule.
    """

    kinds = frozenset({"images"})

    def __init__(self, components: int = 3, dimensions: int = 30) -> None:
        whole("components", components, 1, 1000)
        whole("dimensions", dimensions, 1, 4096)
        self.components, self.dimensions = components, dimensions

    def write(self, order: Order) -> Written:
        """Draw the images of each class from its mixture; classes take turns.

        Raises:
            UserError: no public images, or fewer than 2 of a class.
        """
        from sklearn.decomposition import PCA  # here: a second of loading

        public = public_images(order, "mixture")
        for name, own in zip(order.names, public, strict=True):
            if len(own) < 2:
                raise UserError(
                    f"synthetic.generator = mixture: class '{name}' has one image that no client holds, it takes 2; lower "
                    "data.train or data.test, or take file"
                )
        flat = [own.flatten(1).to(torch.float64).numpy() for own in public]
        whole_set = np.concatenate(flat)
        dimensions = min(self.dimensions, len(whole_set) - 1, whole_set.shape[1])
        space = PCA(dimensions, random_state=_state(order.seed, "generator mixture components"))
        with np.errstate(invalid="ignore"):  # images that are all equal have no variance to tell shares of
            space.fit(whole_set)
        fitted, made = [], []
        for label, (pixels, count) in enumerate(zip(flat, parts(order), strict=True)):
            components = max(1, min(self.components, len(pixels) // _A_COMPONENT))
            drawn = _drawn(space.transform(pixels), components, count, order.seed, label)
            images = np.clip(space.inverse_transform(drawn), 0, 1).astype(np.float32)
            made.append(list(torch.from_numpy(images).unflatten(1, tuple(public[label].shape[1:]))))
            fitted.append(components)
        inputs, labels = in_turn(made)
        report = {
            "asked": order.count,
            "written": len(inputs),
            "short": order.count - len(inputs),
            "public": [len(own) for own in public],
            "dimensions": dimensions,
            "variance_kept": float(np.nan_to_num(space.explained_variance_ratio_, nan=0.0).sum()),
            "components": fitted,
        }
        return Written(torch.stack(inputs), labels, report)


def _drawn(z: NDArray[np.float64], components: int, count: int, seed: int, label: int) -> NDArray[np.float64]:
    """Return ``count`` draws from a mixture fitted to ``z [n, d]``."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    if not count:
        return z[:0]
    mixture = GaussianMixture(
        components, covariance_type="full", reg_covar=_FLOOR, random_state=_state(seed, "generator mixture fit", label)
    )
    with warnings.catch_warnings():  # images that are equal make fewer clusters than components
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(z)
    mixture.set_params(random_state=_state(seed, "generator mixture draw", label))
    points: NDArray[np.float64] = mixture.sample(count)[0]
    # it gives one component after another
    return rng(seed, "generator mixture order", client=label).permutation(points)


def _state(seed: int, purpose: str, label: int = 0) -> int:
    return int(rng(seed, purpose, client=label).integers(2**31))
