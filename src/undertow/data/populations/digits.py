"""Handwritten digits that come with scikit-learn: real scans, small enough for a first run without any download."""

from __future__ import annotations

import numpy as np

from undertow.config import ClassificationData
from undertow.core.errors import UserError
from undertow.data.images import Images, deal_images
from undertow.data.pool import Source
from undertow.data.population import POPULATIONS, Population


@POPULATIONS.register("digits", source="Alpaydin and Kaynak 1998, UCI optdigits (its test part), as scikit-learn ships it")
def digits(options: ClassificationData, seed: int, clients: int) -> Population:
    """1,797 scanned digits, 8 x 8, one channel; the test set is split off (``data.train=1400 data.test=397`` uses all).

    Each pixel counts the ink in a 4 x 4 field of the scan, 0 to 16, here divided by 16.

    Raises:
        UserError: ``data.path`` or ``data.test_path`` is set, or there are fewer images than clients.
    """
    for option, value in (("data.path", options.path), ("data.test_path", options.test_path)):
        if value:
            raise UserError(f"{option}={value}: data.name=digits reads no file, scikit-learn brings the images; leave it out")
    from sklearn.datasets import load_digits  # here: half a second of loading

    found = load_digits()
    images = Images(found.images.astype(np.uint8)[:, None], found.target.astype(np.int64), full=16)
    source = Source("digits", images, None, [str(n) for n in range(10)], {"source": "scikit-learn load_digits"})
    return deal_images(options, seed, clients, source)
