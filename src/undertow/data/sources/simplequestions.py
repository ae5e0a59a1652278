"""SimpleQuestions (Bordes et al. 2015, arXiv:1506.02075): one question, one Freebase or Wikidata fact.

Three kinds of file hold it, gzipped or not: the official tab-separated lines of subject, relation, object and
question with Freebase ids; the same lines mapped to Wikidata ids, where ``R19`` is the inverse of ``P19``; and
JSON lines that carry names. Facts files of other origin (:mod:`undertow.pretraining.facts`) are read by the same rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undertow.config import Data
from undertow.core.errors import UserError
from undertow.data.load import DATASETS, Loaded
from undertow.data.questions import distinct
from undertow.data.reading import Read, existing_file, json_rows, lines, load_files, read_text, stem, text_of, texts_of
from undertow.data.sample import Sample

_FREEBASE_ID = re.compile(r"[mg]/\w+")
_WIKIDATA_ID = re.compile(r"[QPR][0-9]+")
_FREEBASE_RELATION = re.compile(r"\w+(?:/\w+)+")
#: Prefixes under which the same id is written in different releases.
_ID_PREFIX = re.compile(
    r"^<?(?:https?://)?(?:www\.freebase\.com/|rdf\.freebase\.com/ns/|www\.wikidata\.org/(?:entity|wiki)/|fb:|ns:)?/?"
)
#: (id column, name column) pairs of the named JSON lines.
_NAMED_COLUMNS = (
    ("subject_id", "subject"),
    ("subject_mid", "subject"),
    ("object_id", "answer"),
    ("object_mid", "answer"),
    ("relation_id", "relation"),
)
#: In a folder the first kind found is read: names first, then the id-only files.
_FOLDER_KINDS = (
    ("simplequestions_freebase_named.jsonl",),
    ("simplequestions_wikidata_named.jsonl",),
    ("*named*.jsonl",),
    ("*.jsonl",),
    ("annotated_fb_data_*.txt",),
    ("annotated_wd_data_*.txt",),
)


@dataclass(frozen=True)
class Triple:
    """One row after names are put in: ``objects`` lists the preferred name first; an unknown name is empty."""

    id: str
    subject: str
    subject_id: str
    relation: str
    objects: tuple[str, ...]
    question: str

    @property
    def key(self) -> str:
        """``subject|relation``, with the subject's id where its name is unknown; empty without either."""
        subject = self.subject or self.subject_id
        return f"{subject}|{self.relation}" if subject and self.relation else ""


@DATASETS.register("simplequestions", source="Bordes et al. 2015, section 3; FIT section 4.1")
def simplequestions(options: Data) -> Loaded:
    """One-fact questions about Freebase or Wikidata, from the official files or named JSON lines.

    Rows of one question are merged when the data are split (:func:`undertow.data.questions.merge`). Each sample's
    key is ``subject|relation`` and its group the relation.

    Args:
        options: ``path`` (and ``test_path``): a file, or a folder, of which all files of one kind are read;
            ``names``: for id-only files, lines of id, tab, name, or a named JSON-lines file.

    Raises:
        UserError: a file is missing or malformed, or no object has a name.
    """
    names = read_names(Path(options.names)) if options.names else {}
    return load_files(options, lambda path: _samples(path, names))


def _samples(path: Path, names: dict[str, tuple[str, ...]]) -> Read:
    files = triple_files(path)
    found: list[Sample] = []
    dropped: Counter[str] = Counter()
    rows = 0
    for file in files:
        for triple in read_triples(file, names):
            rows += 1
            if not triple.objects:
                dropped["object without a name"] += 1
            elif not triple.question:
                dropped["no question"] += 1
            else:
                found.append(
                    Sample(
                        id=triple.id,
                        question=triple.question,
                        answers=triple.objects,
                        response=triple.objects[0],
                        key=triple.key,
                        group=triple.relation,
                    )
                )
    if not found:
        raise no_names(path, rows, names) if dropped["object without a name"] else UserError(f"{path}: no row has a question")
    return found, {"rows": rows, "dropped": dict(dropped), "files": [file.name for file in files]}


def no_names(path: Path, rows: int, names: dict[str, tuple[str, ...]], option: str = "data.names") -> UserError:
    """The error for a file of ids none of which has a name."""
    why = "the names file knows none of them" if names else "the file holds ids only"
    return UserError(f"{path}: none of its {rows} rows has a named object, {why}; set {option}=FILE (lines of id, tab, name)")


def triple_files(path: Path) -> list[Path]:
    """Return ``[path]`` for a file; for a folder, all files of the first kind it has, gzipped or not.

    A folder with both Freebase and Wikidata names gives the Freebase ones: the two repeat each other's
    questions under different keys, and mixing them would blur what is shared by train and test.

    Raises:
        UserError: nothing there, or a folder without such files.
    """
    if not path.is_dir():
        return [existing_file(path)]
    for patterns in _FOLDER_KINDS:
        found = sorted(file for pattern in patterns for end in ("", ".gz") for file in path.glob(pattern + end) if file.is_file())
        if found:
            return found
    raise UserError(f"data.path={path}: no *.jsonl, annotated_fb_data_*.txt or annotated_wd_data_*.txt inside; give the file")


def read_triples(path: Path, names: dict[str, tuple[str, ...]]) -> Iterator[Triple]:
    """Yield the rows of one file of any of the three kinds.

    Raises:
        UserError: unreadable, or a malformed line (its number is named).
    """
    text = read_text(path)
    if text.lstrip()[0] in "{[":
        for i, (place, row) in enumerate(json_rows(path, text), start=1):
            yield named_triple(f"{stem(path)}:{i}", place, row, names)
        return
    for number, line in lines(text):
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) != 4:
            raise UserError(
                f"{path} line {number}: {len(fields)} columns, SimpleQuestions has 4 separated by tabs "
                "(subject, relation, object, question); correct the line"
            )
        subject, relation, object_ = (bare_id(field) for field in fields[:3])
        for column, value, name in ((1, subject, "subject"), (3, object_, "object")):
            if not is_id(value):
                found = fields[column - 1]
                raise UserError(f"{path} line {number}: the {name} '{found}' is no Freebase or Wikidata id; correct the line")
        yield Triple(
            id=f"{stem(path)}:{number}",
            subject=names.get(subject, ("",))[0],
            subject_id=subject,
            relation=_relation_name(relation, names),
            objects=names.get(object_, ()),
            question=text_of(fields[3], f"{path} line {number}", "question"),
        )


def named_triple(name: str, place: str, row: dict[str, Any], names: dict[str, tuple[str, ...]]) -> Triple:
    """Check one row with columns relation, answer or object, and if known subject, aliases, question and ids.

    Raises:
        UserError: a column is missing or of the wrong kind.
    """
    answer = "answer" if "answer" in row else "object"
    for column in ("relation", answer):
        if column not in row:
            raise UserError(f"{place}: no column '{column}'; a row needs relation, answer (or object), subject and question")
    subject_id = bare_id(text_of(row.get("subject_id") or row.get("subject_mid"), place, "subject_id"))
    object_id = bare_id(text_of(row.get("object_id") or row.get("object_mid"), place, "object_id"))
    subject = text_of(row.get("subject"), place, "subject")
    objects = texts_of(row[answer], place, answer) + texts_of(row.get("aliases"), place, "aliases")
    return Triple(
        id=name,
        subject=subject or names.get(subject_id, ("",))[0],
        subject_id=subject_id,
        relation=readable(text_of(row["relation"], place, "relation")),
        objects=distinct(objects) or names.get(object_id, ()),
        question=text_of(row.get("question"), place, "question"),
    )


def read_names(path: Path, option: str = "data.names") -> dict[str, tuple[str, ...]]:
    """Read a names file: lines of id, tab, name, or named JSON lines.

    Returns:
        For each id (without prefixes) its names, the first one met in front.

    Raises:
        UserError: missing, unreadable or malformed (file and line are named).
    """
    text = read_text(existing_file(path, option))
    found: dict[str, list[str]] = {}
    if text.lstrip()[0] in "{[":
        for place, row in json_rows(path, text):
            for id_column, name_column in _NAMED_COLUMNS:
                if row.get(id_column):
                    values = texts_of(row.get(name_column), place, name_column)
                    if name_column == "answer":
                        values += texts_of(row.get("aliases"), place, "aliases")
                    found.setdefault(bare_id(text_of(row[id_column], place, id_column)), []).extend(values)
    else:
        for number, line in lines(text):
            entity, sign, name = line.partition("\t")
            if not sign or not entity.strip():
                raise UserError(f"{path} line {number}: no tab; a names file has lines of id, tab, name")
            found.setdefault(bare_id(entity), []).append(text_of(name, f"{path} line {number}", "name"))
    named = {entity: distinct(name for name in values if name) for entity, values in found.items()}
    named = {entity: values for entity, values in named.items() if values}
    if not named:
        raise UserError(f"{path}: holds no names; give lines of id, tab, name, or rows with subject_id, subject, object_id, answer")
    return named


def bare_id(text: str) -> str:
    """Strip what releases put around an id: ``www.freebase.com/m/0n2z``, ``/m/0n2z`` and ``fb:m.0n2z`` give ``m/0n2z``."""
    bare = _ID_PREFIX.sub("", text.strip()).removesuffix(">")
    return re.sub(r"^([mg])\.(?=\w)", r"\1/", bare)


def is_id(bare: str) -> bool:
    """Whether this is a Freebase machine id or a Wikidata id."""
    return bool(_FREEBASE_ID.fullmatch(bare) or _WIKIDATA_ID.fullmatch(bare))


def readable(relation: str) -> str:
    """Turn a Freebase relation into words; any other label is returned as it is.

    The last two parts of the path in words, what the first ends with and the second begins with said once:
    ``people/person/place_of_birth`` gives ``person place of birth``, ``boats/ship/ship_class`` gives ``ship class``.
    """
    bare = bare_id(relation)
    if not _FREEBASE_RELATION.fullmatch(bare) or is_id(bare):
        return relation
    first, second = (part.split("_") for part in bare.split("/")[-2:])
    shared = max(n for n in range(min(len(first), len(second)) + 1) if first[len(first) - n :] == second[:n])
    return " ".join(word for word in first + second[shared:] if word)


def _relation_name(relation: str, names: dict[str, tuple[str, ...]]) -> str:
    if relation in names:
        return readable(names[relation][0])
    if relation.startswith("R") and f"P{relation[1:]}" in names:
        return f"inverse of {names['P' + relation[1:]][0]}"
    return readable(relation)
