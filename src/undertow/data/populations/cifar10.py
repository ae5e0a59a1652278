"""CIFAR-10 from a local folder or file, in any of the forms in which it is handed on."""

from __future__ import annotations

from pathlib import Path

from undertow.config import ClassificationData
from undertow.core.errors import UserError
from undertow.data.images import deal_images
from undertow.data.pool import Source
from undertow.data.population import POPULATIONS, Population
from undertow.data.populations._colour_files import find_files, form_of, read_all

#: In the order of the official labels.
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@POPULATIONS.register("cifar10", source="Krizhevsky 2009; HTB section 4.1")
def cifar10(options: ClassificationData, seed: int, clients: int, augment: bool = False) -> Population:
    """Small colour photographs of ten classes, 32 x 32, three channels, from ``data.path``.

    A folder: the official Python form (``data_batch_1`` ... ``test_batch``, pickles that are read without running anything
    in them), the official binary form, or files called *train* and *test*, which are Parquet as on the Hugging Face hub
    (columns img or image, and label) or npz (``images`` uint8 [n, 32, 32, 3] and ``labels``; or JPEG files in ``data``
    with ``offsets`` [n + 1] and ``labels``). Or one such file, with its test set in ``data.test_path`` or split off.

    Args:
        options: of the data.
        seed: of the run.
        clients: how many.
        augment: crop (4 pixels) and flip the training batches, as HTB does.

    Raises:
        UserError: no path, nothing of the kind there, or a file that is damaged or holds something else.
    """
    if not isinstance(augment, bool):
        raise UserError(f"data.name=cifar10: augment = {augment}: it is true or false; correct it")
    if not options.path:
        raise UserError(
            "data.name=cifar10 reads local files and data.path is not set; set data.path to a folder or file of CIFAR-10"
        )
    path = Path(options.path)
    if path.is_dir():
        form, train, test = find_files(path)
    else:
        form, train, test = form_of(path, "data.path"), [path], []
    images, tested = read_all(form, train), read_all(form, test) if test else None
    if options.test_path:
        test = [Path(options.test_path)]
        tested = read_all(form_of(test[0], "data.test_path"), test)
    notes = {"source": f"CIFAR-10, {form.name} form", "files": [file.name for file in (*train, *test)]}
    return deal_images(options, seed, clients, Source("cifar10", images, tested, CLASSES, notes), augment)
