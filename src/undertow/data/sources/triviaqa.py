"""TriviaQA (Joshi et al. 2017, arXiv:1705.03551) and Natural Questions in its open form (Lee et al. 2019).

Three kinds of file, gzipped or not, told apart by their content: the official TriviaQA JSON; lines of question,
tab, Python list of answers, as the DPR project released them; and JSON lines of question, answer and aliases.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from undertow.config import Data
from undertow.core.errors import UserError
from undertow.data.load import DATASETS, Loaded
from undertow.data.questions import distinct, genuine
from undertow.data.reading import (
    Read,
    existing_file,
    json_rows,
    load_files,
    parse_json,
    read_text,
    separated_rows,
    stem,
    text_of,
    texts_of,
)
from undertow.data.rows.separated import unwrapped
from undertow.data.sample import Sample

#: Where the official files keep accepted answers, the preferred one first.
_ANSWERS = ("Value", "Aliases", "HumanAnswers", "NormalizedAliases")

#: (place in the file, id, question, answers with the preferred one first)
_Row = tuple[str, str, str, list[str]]


@DATASETS.register("triviaqa", source="Joshi et al. 2017; FIT section 4.1")
def triviaqa(options: Data) -> Loaded:
    """Trivia questions with all accepted answers, from the official JSON, DPR's TSV or JSON lines.

    The preferred answer is the official ``Value``, the first of a TSV's list (that list has no order of
    preference) or the JSON lines' ``answer``. There is neither key nor group.

    Raises:
        UserError: a file is missing or malformed (file and line are named).
    """
    return load_files(options, _samples)


@DATASETS.register("nq", source="Kwiatkowski et al. 2019; open-domain form of Lee et al. 2019")
def natural_questions(options: Data) -> Loaded:
    """Questions people typed into a search engine, with short answers; DPR's TSV or JSON lines.

    Raises:
        UserError: as for ``triviaqa``.
    """
    return load_files(options, _samples)


def _samples(path: Path) -> Read:
    text = read_text(existing_file(path))
    found: list[Sample] = []
    dropped: Counter[str] = Counter()
    rows = 0
    for place, name, raw, answers in _rows(path, text):
        rows += 1
        question = text_of(raw, place, "question")
        accepted = distinct(genuine(answers))
        if not question:
            dropped["no question"] += 1
        elif not accepted:
            dropped["no answer"] += 1
        else:
            found.append(Sample(id=f"{stem(path)}:{name}", question=question, answers=accepted, response=accepted[0]))
    if not found:
        raise UserError(f"{path}: none of its {rows} rows has a question and an answer; give a file with answers")
    return found, {"rows": rows, "dropped": dict(dropped), "files": [path.name]}


def _rows(path: Path, text: str) -> Iterator[_Row]:
    start = text.lstrip()
    if not start.startswith(("{", "[")):
        return _tsv(path, text)
    # A named row has its question on its first line; the official file spells its top-level "Data" over many.
    first = start.split("\n", 1)[0]
    if start.startswith("[") or '"question"' in first:
        return _named(path, text)
    return _official(path, parse_json(path, text))


def _tsv(path: Path, text: str) -> Iterator[_Row]:
    for number, fields in separated_rows(path, text, "\t"):
        place = f"{path} line {number}"
        if len(fields) != 2:
            raise UserError(f"{place}: {len(fields)} columns; a line is a question, a tab and a Python list of answers")
        try:
            answers = ast.literal_eval(fields[1].strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise UserError(f"{place}: the answers are no Python list; correct the line") from error
        if not isinstance(answers, list):
            raise UserError(f"{place}: the answers are a {type(answers).__name__}, they must be a list; correct the line")
        yield place, str(number), unwrapped(fields[0]), texts_of(answers, place, "answers")


def _named(path: Path, text: str) -> Iterator[_Row]:
    for i, (place, row) in enumerate(json_rows(path, text), start=1):
        if "question" not in row or not ("answer" in row or "aliases" in row):
            raise UserError(f"{place}: columns {', '.join(row) or 'none'}; a row needs question and answer (and may have aliases)")
        answers = texts_of(row.get("answer"), place, "answer") + texts_of(row.get("aliases"), place, "aliases")
        yield place, str(i), row["question"], answers


def _official(path: Path, content: Any) -> Iterator[_Row]:
    data = content.get("Data") if isinstance(content, dict) else None
    if not isinstance(data, list):
        raise UserError(f"{path}: no list 'Data'; give an official TriviaQA file, a TSV or JSON lines with question and answer")
    seen: Counter[str] = Counter()
    for i, item in enumerate(data, start=1):
        place = f"{path} Data entry {i}"
        if not isinstance(item, dict) or "Question" not in item:
            raise UserError(f"{place}: no 'Question'; give an official TriviaQA file")
        answer = item.get("Answer") or {}  # the official test files have no answers
        if not isinstance(answer, dict):
            raise UserError(f"{place}: 'Answer' holds a {type(answer).__name__}, it must be an object; correct the entry")
        answers = [text for name in _ANSWERS for text in texts_of(answer.get(name), place, name)]
        own = text_of(item.get("QuestionId"), place, "QuestionId") or str(i)
        seen[own] += 1
        # The web files repeat a question once per document; the split merges them, ids stay apart.
        yield place, own if seen[own] == 1 else f"{own}#{seen[own]}", item["Question"], answers
