"""Synthetic data that somebody else's generator wrote, from a file."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.examples import Written
from undertow.data.partition import largest_remainder
from undertow.data.reading import existing_file, json_rows, read_text, separated_rows
from undertow.generators.contract import GENERATORS, Generator, Order
from undertow.generators.parsing import clean_text, label_key, label_numbers

#: Most bytes of the arrays in a file of images, unpacked.
_MOST_BYTES = 4 * 2**30

_COLUMNS = ("text", "label")


@GENERATORS.register("file", source="ours; the published code of arXiv 2401.10375 keeps what GPT-4 wrote in such a file")
class File(Generator):
    """Labelled texts or images from a file: what any foundation model wrote before.

    Texts: lines of JSON with ``text`` and ``label``, or a table with these two columns, named in its first line, between tabs or
    (``.csv``) commas; gzipped or not. Images: ``.npz`` with ``images``, bytes or floats in [0, 1], ``[n, h, w]``, ``[n, h, w, c]``
    or ``[n, c, h, w]``, and ``labels``; Python objects in it are refused. A label is a class's name or its number, from 0.

    Where the file holds more than ``synthetic.samples``, as many are drawn at random, classes in the proportion of the file; where
    it holds fewer, all are taken, and the report says how many are short. Rows with a label that is no class or without a text are
    left out and counted. Texts that repeat are kept, since they are the file's, and counted.

    Args:
        path: of the file.

    Raises:
        ValueError: no path.
    """

    kinds = frozenset({"text", "images"})

    def __init__(self, path: str = "") -> None:
        if not path or not isinstance(path, str):
            raise ValueError("path is not set; give a file, as in file:path=synthetic.jsonl")
        self.path = Path(path).expanduser()

    def write(self, order: Order) -> Written:
        """Return what the file holds, or a draw from it.

        Raises:
            UserError: no such file, damaged, images of another shape, or nothing in it that can be used.
        """
        existing_file(self.path, "synthetic.generator = file: path")
        inputs, labels, counts = _texts(self.path, order.names) if order.kind == "text" else _images(self.path, order)
        if not labels:
            raise UserError(
                f"{self.path}: none of its {counts['rows']} rows can be used ({counts['unknown_labels']} with a label that is "
                f"none of {', '.join(order.names)}); correct the file"
            )
        chosen = _drawn(labels, order)
        taken: list[str] | Tensor = inputs[chosen] if isinstance(inputs, Tensor) else [inputs[i] for i in chosen.tolist()]
        report = {
            "file": self.path.name,
            "asked": order.count,
            "written": len(chosen),
            "short": order.count - len(chosen),
            "usable": len(labels),
            **counts,
            "classes": [int((np.array(labels)[chosen] == c).sum()) for c in range(len(order.names))],
        }
        return Written(taken, [labels[i] for i in chosen.tolist()], report)


def _drawn(labels: Sequence[int], order: Order) -> NDArray[np.int64]:
    """Return the rows to take: all, or ``order.count`` with the classes in proportion, in the order of the file."""
    of = np.array(labels)
    if len(of) <= order.count:
        return np.arange(len(of))
    shares = np.bincount(of, minlength=len(order.names)) / len(of)
    draw = rng(order.seed, "generator file")
    found = [draw.permutation(np.flatnonzero(of == c))[:n] for c, n in enumerate(largest_remainder(order.count, shares))]
    return np.sort(np.concatenate(found))


def _texts(path: Path, names: Sequence[str]) -> tuple[list[str], list[int], dict[str, int]]:
    numbers = label_numbers(names)
    texts: list[str] = []
    labels: list[int] = []
    counts = Counter[str](dict.fromkeys(("rows", "unknown_labels", "empty_texts", "duplicates", "contradictions"), 0))
    first: dict[str, int] = {}
    for place, row in _rows(path):
        counts["rows"] += 1
        missing = [column for column in _COLUMNS if column not in row]
        if missing:
            raise UserError(f"{place}: no '{missing[0]}' (there is {', '.join(row) or 'nothing'}); give each row text and label")
        if not isinstance(row["text"], str | None):
            raise UserError(f"{place}: 'text' holds a {type(row['text']).__name__}, it must be text; correct the row")
        text = clean_text(row["text"] or "")
        if text is None:
            raise UserError(f"{place}: 'text' is not valid Unicode (lone surrogate, or a zero byte); correct the row")
        label = _number(row["label"], numbers, len(names))
        if label is None or not text:
            counts["unknown_labels" if label is None else "empty_texts"] += 1
            continue
        if text in first:
            counts["duplicates" if first[text] == label else "contradictions"] += 1
        first.setdefault(text, label)
        texts.append(text)
        labels.append(label)
    return texts, labels, dict(counts)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = read_text(path)
    if text.lstrip()[0] in "{[":
        yield from json_rows(path, text)
        return
    rows = separated_rows(path, text, "\t" if "\t" in text.split("\n", 1)[0] else ",")
    _, header = next(rows)
    columns = [name.strip().lower() for name in header]
    if any(columns.count(column) != 1 for column in _COLUMNS):
        raise UserError(
            f"{path} line 1: the columns are {', '.join(columns)[:200]}; a table needs 'text' and 'label', named in its first line"
        )
    for line, fields in rows:
        if len(fields) != len(columns):
            raise UserError(f"{path} line {line}: {len(fields)} fields for {len(columns)} columns; correct or quote the line")
        yield f"{path} line {line}", dict(zip(columns, fields, strict=True))


def _number(label: Any, numbers: dict[str, int], classes: int) -> int | None:
    """Return the class that a label names, by its name or else by its number; None where it is none."""
    if isinstance(label, bool) or not isinstance(label, str | int):
        return None
    text = str(label)
    if label_key(text) in numbers:
        return numbers[label_key(text)]
    plain = text.strip()
    if plain.isascii() and plain.isdigit() and len(plain) < 10 and int(plain) < classes:
        return int(plain)
    return None


def _images(path: Path, order: Order) -> tuple[Tensor, list[int], dict[str, int]]:
    arrays = _arrays(path)
    images, given = arrays["images"], arrays["labels"]
    if given.ndim != 1 or len(given) != (images.shape[0] if images.ndim else -1):
        raise UserError(f"{path}: 'labels' has shape {list(given.shape)} for images {list(images.shape)}; give one label an image")
    if given.dtype.kind not in "iuU":
        raise UserError(f"{path}: 'labels' holds {given.dtype}; give the numbers of classes, or their names as text")
    numbers = label_numbers(order.names)
    labels = [_number(label, numbers, len(order.names)) for label in given.tolist()]
    kept = [i for i, label in enumerate(labels) if label is not None]
    found = _channels_first(images, order.shape, path)[kept]
    scaled = torch.from_numpy(np.ascontiguousarray(found)).to(torch.float32)
    if images.dtype == np.uint8:
        scaled /= 255
    elif len(kept) and not bool(((scaled >= 0) & (scaled <= 1)).all()):
        raise UserError(f"{path}: 'images' holds numbers outside [0, 1], or none at all; give bytes, or floats from 0 to 1")
    counts = {"rows": len(labels), "unknown_labels": len(labels) - len(kept)}
    return scaled, [label for label in labels if label is not None], counts


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as packed:
            size = sum(item.file_size for item in packed.infolist())
        if size > _MOST_BYTES:
            raise UserError(f"{path}: {size:,} bytes unpacked, at most {_MOST_BYTES:,} are read; give a smaller file")
        with np.load(path, allow_pickle=False) as found:
            missing = [name for name in ("images", "labels") if name not in found.files]
            if missing:
                raise UserError(f"{path}: no array '{missing[0]}' (there is {', '.join(found.files) or 'nothing'}); name it so")
            return {name: found[name] for name in ("images", "labels")}
    except UserError:
        raise
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{path}: no .npz file that can be read ({reason}); write it with numpy.savez, without objects") from error


def _channels_first(images: NDArray[Any], shape: tuple[int, ...], path: Path) -> NDArray[Any]:
    """Return images as ``[n, channels, height, width]`` of the data's shape."""
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise UserError(f"{path}: 'images' holds {images.dtype}; give bytes (uint8), or floats from 0 to 1")
    channels, height, width = shape
    one = tuple(images.shape[1:])
    if one == (channels, height, width):
        return images
    if one == (height, width, channels):
        return images.transpose(0, 3, 1, 2)
    if one == (height, width) and channels == 1:
        return images[:, None]
    raise UserError(
        f"{path}: images {list(images.shape)} and the data have {channels} x {height} x {width}; give [n, h, w], [n, h, w, c] or "
        "[n, c, h, w]"
    )
