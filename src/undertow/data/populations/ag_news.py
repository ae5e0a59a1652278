"""AG News in the three forms in which it is handed on."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from undertow.config import ClassificationData
from undertow.core.errors import UserError
from undertow.data.population import POPULATIONS, Population
from undertow.data.populations._class_files import of_files
from undertow.data.reading import read_text, separated_rows, text_of
from undertow.data.texts import Coding

#: In the official order, there numbered from 1.
CLASSES = ("World", "Sports", "Business", "Sci/Tech")


@dataclass(frozen=True)
class _Form:
    """A way of writing the rows: what parts the fields, how many there are, which of them is the class and how it is written."""

    name: str
    delimiter: str
    fields: int
    label: int
    values: Sequence[str]

    def fits(self, row: Sequence[str]) -> bool:
        return len(row) == self.fields and row[self.label].strip() in self.values


_FORMS = (
    _Form("official", ",", 3, 0, ("1", "2", "3", "4")),
    _Form("text,number", ",", 2, 1, ("0", "1", "2", "3")),
    _Form("text<TAB>name", "\t", 2, 1, CLASSES),
)


@POPULATIONS.register("ag-news", aliases=("ag_news",), source="Zhang, Zhao, LeCun 2015, section 4; Li, Wu, Wang 2024")
def ag_news(
    options: ClassificationData,
    seed: int,
    clients: int,
    length: int = 48,
    vocabulary: int = 8000,
    buckets: int = 2000,
    tokenizer: str = "",
) -> Population:
    """News with the classes World, Sports, Business and Sci/Tech.

    ``data.path`` is gzipped or not and of one of three forms, told by its first rows: class 1 to 4, title, description with commas,
    as the official train.csv and test.csv; text, class 0 to 3 with commas; or text and class name with a tab. A line of column
    names before them is skipped. What ``data.train`` does not draw is public.

    Args:
        options: of the data.
        seed: of the run.
        clients: how many.
        length: words or tokens a text.
        vocabulary: words of the dictionary, made of the public texts.
        buckets: numbers that all other words share.
        tokenizer: of a transformers model, in place of words.

    Raises:
        UserError: a file is missing or has other lines, or a parameter does not fit.
    """
    return of_files(options, seed, clients, read, CLASSES, "news article", Coding(length, vocabulary, buckets, tokenizer))


def read(path: Path) -> tuple[list[str], list[int], str]:
    """Return the texts of a file, title and description joined by a blank, their class numbers from 0 and the name of its form.

    Raises:
        UserError: unreadable, none of the forms, or a line that is not of the form of the first.
    """
    content = read_text(path)
    form, skipped = _form_of(path, content)
    rows = list(separated_rows(path, content, form.delimiter))
    texts, labels = [], []
    for number, fields in rows[skipped:]:
        place = f"{path} line {number}"
        if not form.fits(fields):
            raise UserError(f"{place}: not {form.fields} fields with a class of {', '.join(form.values)}; correct the line")
        parts = [text_of(field, place, "text") for i, field in enumerate(fields) if i != form.label]
        text = " ".join(part for part in parts if part)
        if not text:
            raise UserError(f"{place}: no text; correct or remove the line")
        texts.append(text)
        labels.append(form.values.index(fields[form.label].strip()))
    return texts, labels, form.name


def _form_of(path: Path, content: str) -> tuple[_Form, int]:
    """Return the form that the first or, below column names, the second row fits, and how many rows to skip."""
    for form in _FORMS:
        try:
            first = list(islice(csv.reader(io.StringIO(content, newline=""), delimiter=form.delimiter), 2))
        except csv.Error:
            continue
        for skipped, row in enumerate(first):
            if form.fits(row):
                return form, skipped
    raise UserError(
        f"{path} line 1: no row of AG News; write class 1-4,title,description, or text,class 0-3, or text<TAB>class name"
    )
