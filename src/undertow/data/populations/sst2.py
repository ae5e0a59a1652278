"""The Stanford Sentiment Treebank with two classes, in the form of GLUE."""

from __future__ import annotations

from pathlib import Path

from undertow.config import ClassificationData
from undertow.core.errors import UserError
from undertow.data.population import POPULATIONS, Population
from undertow.data.populations._class_files import of_files
from undertow.data.reading import lines, read_text, text_of
from undertow.data.texts import Coding

CLASSES = ("negative", "positive")


@POPULATIONS.register("sst2", source="Socher et al. 2013, in the form of GLUE (Wang et al. 2019); Li, Wu, Wang 2024")
def sst2(
    options: ClassificationData,
    seed: int,
    clients: int,
    length: int = 32,
    vocabulary: int = 4000,
    buckets: int = 1000,
    tokenizer: str = "",
) -> Population:
    """Sentences and phrases of film reviews, negative or positive.

    ``data.path`` is tab-separated, gzipped or not, with a header that names ``sentence`` and ``label``, labels 0 and 1, as GLUE's
    train.tsv and dev.tsv. Give dev.tsv as ``data.test_path``: GLUE's training file has phrases of the same sentences, so a test
    that is split off it is easier. What ``data.train`` does not draw is public.

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
    return of_files(options, seed, clients, read, CLASSES, "movie review", Coding(length, vocabulary, buckets, tokenizer))


def read(path: Path) -> tuple[list[str], list[int], str]:
    """Return the sentences of a file, their labels and the name of its form.

    Raises:
        UserError: unreadable, no such header, or a line with other fields, a label that is neither 0 nor 1 or no text.
    """
    # No quoting: GLUE's files have quotation marks as they stand in the text.
    rows = [(number, line.split("\t")) for number, line in lines(read_text(path))]
    first, header = rows[0]
    if "sentence" not in header or "label" not in header:
        raise UserError(
            f"{path} line {first}: columns {', '.join(header)[:60]}; a header with sentence and label is needed, separated by a tab"
        )
    text_at, label_at = header.index("sentence"), header.index("label")
    texts, labels = [], []
    for number, fields in rows[1:]:
        if len(fields) != len(header):
            raise UserError(f"{path} line {number}: {len(fields)} fields, the header has {len(header)}; correct the line")
        label, text = fields[label_at].strip(), text_of(fields[text_at], f"{path} line {number}", "sentence")
        if label not in ("0", "1"):
            raise UserError(f"{path} line {number}: label '{label[:20]}' is neither 0 nor 1; correct the line")
        if not text:
            raise UserError(f"{path} line {number}: no sentence; correct or remove the line")
        texts.append(text)
        labels.append(int(label))
    return texts, labels, "glue"
