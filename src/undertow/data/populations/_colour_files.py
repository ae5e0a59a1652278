"""Reading 32 x 32 colour images with ten classes from the forms in which CIFAR-10 is handed on."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undertow.core.errors import UserError
from undertow.data.images import Images
from undertow.data.populations._batches import read_batch

_SIDE = 32
_CLASSES = 10
_RECORD = 1 + 3 * _SIDE * _SIDE


@dataclass(frozen=True)
class Form:
    """One form: its name, how the files are called, and how one file is read."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    read: Callable[[Path], Images]
    sharded: bool = True


def find_files(folder: Path) -> tuple[Form, list[Path], list[Path]]:
    """Find the images in a folder or in the folders directly inside it; the first form of :data:`FORMS` that is there wins.

    Returns:
        The form, its training files and its test files (none if the folder has none), by name. Of several npz files on
        one side, which are no shards but versions of the same images, only the one with the most images counts.

    Raises:
        UserError: no folder of the kind.
    """
    places = [folder, *sorted(place for place in folder.iterdir() if place.is_dir())]
    for form in FORMS:
        for place in places:
            train = _matching(place, form.train)
            if train:
                test = [path for path in _matching(place, form.test) if path not in train]
                return (form, train, test) if form.sharded else (form, _largest(train), _largest(test))
    raise UserError(
        f"data.path={folder}: no CIFAR-10 inside; it holds data_batch_1 ... test_batch, data_batch_1.bin ..., or *train* and "
        "*test* files in .parquet or .npz form (unpack an archive first)"
    )


def form_of(path: Path, option: str) -> Form:
    """Return the form of one file by its ending.

    Raises:
        UserError: no such file, or an archive.
    """
    if not path.is_file():
        raise UserError(f"{option}={path}: no such file or folder; give the path of CIFAR-10")
    if path.suffix in (".gz", ".tgz", ".tar", ".zip"):
        raise UserError(f"{option}={path}: an archive; unpack it and give the folder")
    endings = {".npz": "npz", ".parquet": "parquet", ".bin": "binary"}
    return next(form for form in FORMS if form.name == endings.get(path.suffix, "python"))


def read_all(form: Form, files: Sequence[Path]) -> Images:
    """Read the files, at least one, one after another.

    Raises:
        UserError: a file cannot be read or is not what its form says.
    """
    parts = []
    for path in files:
        try:
            parts.append(form.read(path))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the file and its permissions") from error
    return Images(np.concatenate([part.pixels for part in parts]), np.concatenate([part.labels for part in parts]))


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _largest(files: list[Path]) -> list[Path]:
    """The npz file with the most labels, the first of equals."""
    if len(files) < 2:
        return files
    counts = []
    for path in files:
        with _opened(path) as arrays:
            counts.append(_array(path, arrays, "labels").size)
    return [files[int(np.argmax(counts))]]


def _checked(path: Path, pixels: NDArray[np.uint8], labels: Any) -> Images:
    """Check the labels; ``pixels`` is uint8 ``[n, 3, 32, 32]``."""
    try:
        values = np.asarray(labels)
    except ValueError:
        values = np.zeros(0)
    if values.ndim != 1 or len(values) != len(pixels) or not len(values):
        raise UserError(f"{path}: {len(pixels)} images with labels of shape {values.shape}; each image needs one label")
    if not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"{path}: labels are {values.dtype}, they must be whole numbers from 0 to {_CLASSES - 1}; correct the file")
    wrong = np.flatnonzero((values < 0) | (values >= _CLASSES))
    if len(wrong):
        raise UserError(
            f"{path}: image {wrong[0]} has the label {values[wrong[0]]}, CIFAR-10 has 0 to {_CLASSES - 1}; correct the file"
        )
    return Images(np.ascontiguousarray(pixels), values.astype(np.int64))


def _python(path: Path) -> Images:
    pixels, labels = read_batch(path)
    if not all(type(label) is int for label in labels):
        raise UserError(f"{path}: a label is not a whole number; fetch the official file again")
    return _checked(path, pixels.reshape(-1, 3, _SIDE, _SIDE), labels)


def _binary(path: Path) -> Images:
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if not len(content) or len(content) % _RECORD:
        raise UserError(f"{path}: {len(content)} bytes, records of {_RECORD} are expected; fetch the official file again")
    records = content.reshape(-1, _RECORD)
    return _checked(path, records[:, 1:].reshape(-1, 3, _SIDE, _SIDE), records[:, 0])


def _parquet(path: Path) -> Images:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path}: Parquet needs the package pyarrow: pip install -e '.[images]' in the clone") from error
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, ValueError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({_one_line(error)}); fetch it again") from error
    image = next((name for name in ("img", "image") if name in table.column_names), None)
    label = next((name for name in ("label", "labels") if name in table.column_names), None)
    if image is None or label is None:
        has = ", ".join(table.column_names)
        raise UserError(f"{path}: columns {has[:80]}; a column img (or image) and a column label are needed; give another file")
    coded: list[bytes] = []
    for i, row in enumerate(table.column(image).to_pylist()):
        content = row.get("bytes") if isinstance(row, dict) else row
        if not isinstance(content, bytes):
            raise UserError(f"{path} row {i}: no image bytes in column {image}; give a file that holds the images themselves")
        coded.append(content)
    return _checked(path, _decoded(path, coded), table.column(label).to_pylist())


def _npz(path: Path) -> Images:
    with _opened(path) as arrays:
        labels = _array(path, arrays, "labels")
        if "images" in arrays:
            images = _array(path, arrays, "images")
            if images.dtype != np.uint8 or images.shape[1:] != (_SIDE, _SIDE, 3):
                raise UserError(
                    f"{path}: 'images' is {images.dtype} {images.shape}, it must be uint8 (n, {_SIDE}, {_SIDE}, 3); correct the "
                    "file"
                )
            return _checked(path, images.transpose(0, 3, 1, 2), labels)
        data, offsets = _array(path, arrays, "data"), _array(path, arrays, "offsets")
    if data.dtype != np.uint8 or data.ndim != 1:
        raise UserError(f"{path}: 'data' is {data.dtype} {data.shape}, it must be uint8 in one dimension; correct the file")
    if offsets.shape != (labels.size + 1,) or not np.issubdtype(offsets.dtype, np.integer):
        raise UserError(
            f"{path}: 'offsets' is {offsets.dtype} {offsets.shape}, {labels.size} labels need {labels.size + 1} whole numbers; "
            "correct the file"
        )
    if offsets[0] != 0 or offsets[-1] != len(data) or (np.diff(offsets.astype(np.int64)) <= 0).any():
        raise UserError(f"{path}: 'offsets' must rise from 0 to the {len(data)} bytes of 'data'; correct the file")
    coded = [data[a:b].tobytes() for a, b in pairwise(offsets)]
    return _checked(path, _decoded(path, coded), labels)


def _opened(path: Path) -> Any:
    try:
        opened = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable npz file ({_one_line(error)}); fetch it again") from error
    if not hasattr(opened, "files"):
        raise UserError(f"{path}: one array, not an npz file of several; give one with images and labels")
    return opened


def _array(path: Path, arrays: Any, name: str) -> NDArray[Any]:
    if name not in arrays:
        raise UserError(
            f"{path}: no array '{name}' (it has {', '.join(arrays.files)[:80]}); an npz file has images and labels, or data, "
            "offsets and labels"
        )
    try:
        found = arrays[name]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: array '{name}' cannot be read ({_one_line(error)}); fetch the file again") from error
    if not isinstance(found, np.ndarray):
        raise UserError(f"{path}: '{name}' is no array; correct the file")
    return found


def _decoded(path: Path, coded: Sequence[bytes]) -> NDArray[np.uint8]:
    """Decode JPEG or PNG images; returns uint8 ``[n, 3, 32, 32]``."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UserError(f"{path}: coded images need Pillow, not installed here; run: pip install pillow") from error
    pixels = np.empty((len(coded), _SIDE, _SIDE, 3), dtype=np.uint8)
    for i, content in enumerate(coded):
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
                if image.size != (_SIDE, _SIDE):
                    raise UserError(
                        f"{path} image {i}: {image.size[0]} x {image.size[1]}, CIFAR-10's are 32 x 32; give another file"
                    )
                pixels[i] = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{path} image {i}: not a readable JPEG or PNG ({_one_line(error)}); fetch the file again") from error
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


#: In the order in which a folder is searched.
FORMS = (
    Form("python", ("data_batch_[1-5]",), ("test_batch",), _python),
    Form("binary", ("data_batch_[1-5].bin",), ("test_batch.bin",), _binary),
    Form("parquet", ("*train*.parquet",), ("*test*.parquet",), _parquet),
    Form("npz", ("*train*.npz",), ("*test*.npz",), _npz, sharded=False),
)
