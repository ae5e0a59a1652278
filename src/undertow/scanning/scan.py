"""``undertow scan``: files in, findings and verdicts by file out, and on request the rows that are left.

Every file is read once for the counts, once more for the fields that stand beside the answers if there are any, and once for what
is written; texts are never held, only word numbers (:class:`undertow.sanitization.count.Spool`). Several files are counted as one
pool, and each verdict names its file. What is written is scanned again.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from array import array
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

from undertow.core.errors import UserError
from undertow.core.files import check_file, check_folder
from undertow.core.version import __version__
from undertow.data.rows.account import Account
from undertow.data.rows.files import Rows, Source, file_source
from undertow.sanitization.finding import Findings
from undertow.sanitization.rules import Rules
from undertow.scanning.cleaning import Cleaning
from undertow.scanning.reading import Files, Judged, Judging, pooled
from undertow.scanning.writing import check_output

if TYPE_CHECKING:
    from undertow.scanning.evidence import Evidence

#: Endings that --write understands; any other name gets JSON lines.
_WRITABLE = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")


class Example(NamedTuple):
    """A flagged sample as a report shows it: its texts, the number of its file, and its row there, from 0."""

    question: str
    response: str
    file: int
    row: int


@dataclass(frozen=True)
class Scan:
    """The result of :func:`scan`.

    Attributes:
        files: names as given.
        judged: findings and verdicts, by sample index over all files, and where each sample stands.
        examples: {finding: up to three of the samples it flags}; filled if asked for.
        written: {path: rows written}.
        left_out: {path: rows of the file that were not written}.
        evidence: {finding: what a base says of it}; filled if one was named.
        accepted: findings that a baseline knows: they are told, and count for nothing in :meth:`reaches`.
    """

    files: tuple[str, ...]
    judged: Judged
    examples: dict[int, list[Example]] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    evidence: dict[int, Evidence] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    accepted: frozenset[int] = frozenset()

    def accept(self, fingerprints: Container[str]) -> Scan:
        """Return the result with the findings of these fingerprints accepted."""
        known = (i for i, finding in enumerate(self.found.findings) if finding.fingerprint in fingerprints)
        return replace(self, accepted=frozenset(known))

    @property
    def found(self) -> Findings:
        """Findings and verdicts."""
        return self.judged.found

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of each file."""
        return self.judged.rows

    @property
    def file_of(self) -> array[int]:
        """The file of each sample."""
        return self.judged.file_of

    @property
    def row_of(self) -> array[int]:
        """The row of each sample in its file, from 0."""
        return self.judged.row_of

    @property
    def account(self) -> Account:
        """What became of every field of the files."""
        return self.judged.account

    def verdicts(self) -> Iterator[dict[str, Any]]:
        """Yield what ``--json`` prints of each flagged sample."""
        judged = self.judged
        for verdict in self.found.verdicts:
            i = verdict.sample
            told: dict[str, Any] = {
                "index": judged.row_of[i],
                "verdict": verdict.act,
                "reason": self.found.findings[verdict.findings[0]].reason,
                "findings": list(verdict.findings),
            }
            if judged.turn_of[i]:
                told["turn"] = judged.turn_of[i]
            if judged.pool_of[i]:
                told["field"] = judged.pools[judged.pool_of[i]]
            yield {"file": self.files[judged.file_of[i]], **told} if len(self.files) > 1 else told

    def reaches(self, confidence: Literal["act", "review"]) -> bool:
        """Tell whether a finding that is not accepted drops or repairs samples (``act``), or flags any (``review``)."""
        return any(
            (confidence == "review" or verdict.act != "review") and not self.accepted.issuperset(verdict.findings)
            for verdict in self.found.verdicts
        )

    def _told(self, i: int) -> dict[str, Any]:
        told = self.found.findings[i].to_json()
        if i in self.accepted:
            told["accepted"] = True
        if i in self.evidence:
            told["evidence"] = self.evidence[i].to_json()
        return told

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        acts = [verdict.act for verdict in self.found.verdicts]
        return {
            "undertow": __version__,
            "files": list(self.files),
            "samples": self.found.samples,
            "distinct_samples": self.found.distinct,
            "account": self.account.to_json(),
            "flagged": len(acts),
            "drop": acts.count("drop"),
            "repair": acts.count("repair"),
            "review": acts.count("review"),
            "findings": [self._told(i) for i in range(len(self.found.findings))],
            "verdicts": list(self.verdicts()),
            **({"written": self.written, "left_out": self.left_out} if self.written else {}),
        }


def scan(
    paths: Sequence[str | Path],
    *,
    write: str | Path | None = None,
    drop_review: bool = False,
    keep_review: bool | None = None,
    examples: bool = False,
    base: str | None = None,
    rules: Rules | None = None,
    stdin: IO[bytes] | None = None,
    columns: Mapping[str, str] | None = None,
    max_bad: float = 0.01,
    ray: str | None = None,
) -> Scan:
    """Look for planted trigger and target pairs in instruction files.

    Args:
        paths: files, ``-`` for standard input (once); several are pooled.
        write: where the clean and the repaired rows go, a file; with several inputs a folder, one file each by name.
        drop_review: leave rows that are for review out of what is written.
        keep_review: the former opposite of it; rows for review now stay unless ``drop_review`` is given.
        examples: keep some flagged samples of each finding for a report.
        base: a causal language model, as in ``model.name``, that is asked for each target's token NLL; no verdict depends on it.
        rules: thresholds.
        stdin: standard input, if not the process's own.
        columns: {``prompt``, ``answer``, ``context``, ``system`` or ``history``: the column that holds it}.
        max_bad: the share of each file's rows that may be unreadable; they are reported, and scanned as plain text.
        ray: address of a Ray cluster whose nodes see the files under the same paths and count them, as in :func:`undertow.sweep`.

    Raises:
        UserError: a file is missing, malformed or without samples, ``write`` is one of the inputs or cannot be written, there is no
            such base, or what was written still holds what was found.
    """
    drop_review = _drops(drop_review, keep_review)
    write = None if write is None else Path(write)
    _check(paths, max_bad)
    _check_write(write, len(paths))
    if base is not None:
        from undertow.scanning import evidence  # here, so that a scan without a base never waits for torch

        evidence.check(base)
    spread = None if ray is None else _spread(ray, paths)
    with ExitStack() as stack:
        sources = [_source(str(path), paths, stdin, stack) for path in paths]
        outputs = _outputs(write, paths, sources)
        named = tuple(columns.values()) if columns else ()
        files = Files([source.name for source in sources], lambda k: Rows(sources[k], named), columns, max_bad)
        files.reader()  # refuses wrong columns before anything is read
        result = Scan(tuple(source.name for source in sources), files.judged(rules, spread=spread))
        if examples and result.found.verdicts:
            _collect(result, files)
        if base is not None:
            again = ((k, part.sample()) for k, part in files.parts(result.judged.pools))
            result.evidence.update(evidence.weigh(result.found, again, base))
        if outputs:
            counts = Cleaning(files, sources, result.judged, drop_review, rules).write(outputs)
            for output, count, rows in zip(map(str, outputs), counts, result.rows, strict=True):
                result.written[output], result.left_out[output] = count, rows - count
    return result


def _drops(drop_review: bool, keep_review: bool | None) -> bool:
    if keep_review is None:
        return drop_review
    told = "keep_review: rows for review stay in by default; give drop_review=True to leave them out"
    warnings.warn(told, DeprecationWarning, stacklevel=3)
    return not keep_review


def _spread(ray: str, paths: Sequence[str | Path]) -> Callable[[Judging, Rules | None], Findings]:
    from undertow.scanning.cluster import Shards  # here, so that a scan in one process does without Ray

    return Shards(ray, [str(path) for path in paths]).judged


def _check(paths: Sequence[str | Path], max_bad: float) -> None:
    if not paths:
        raise UserError("no file given; give one or more instruction files, or - for standard input")
    if not 0 <= max_bad <= 1:
        raise UserError(f"--max-bad {max_bad:g}: it is a share of the rows; give a number from 0 to 1")


def _check_write(write: Path | None, count: int) -> None:
    """Refuse a place that the rows left of so many files cannot be written to."""
    if count == 1:
        check_file("--write", write)
    elif write is not None and write.is_file():
        raise UserError(f"--write {write}: a file, and {count} files are scanned; give a folder")
    else:
        check_folder("--write", write)


def _source(path: str, paths: Sequence[str | Path], stdin: IO[bytes] | None, stack: ExitStack) -> Source:
    if [str(other) for other in paths].count(path) > 1:
        raise UserError(f"{path} is given twice; give each file once")
    if path != "-":
        return file_source(Path(path))
    spooled = stack.enter_context(tempfile.NamedTemporaryFile())  # noqa: SIM115 - the stack closes it
    shutil.copyfileobj(stdin if stdin is not None else sys.stdin.buffer, spooled)
    spooled.flush()
    return Source("-", lambda: open(spooled.name, "rb"))


def _outputs(write: Path | None, paths: Sequence[str | Path], sources: Sequence[Source]) -> list[Path]:
    """Where each file's clean rows go, if anywhere; checked before anything is read."""
    if write is None:
        return []
    if len(sources) == 1:
        outputs = [write]
    else:
        outputs = [write / _clean_name(str(path)) for path in paths]
        if len(set(outputs)) < len(outputs):
            raise UserError(f"--write {write}: two of the files have the same name; scan them one by one")
    for output in outputs:
        check_output("--write", output, [str(path) for path in paths])
        if len(sources) == 1 and output.suffix.lower() not in _WRITABLE:
            raise UserError(f"--write {output}: rows are written as {', '.join(_WRITABLE)}; give a name with one of these endings")
    return list(outputs)


def _clean_name(path: str) -> str:
    name = "stdin.jsonl" if path == "-" else Path(path).name.removesuffix(".gz")
    return name if Path(name).suffix.lower() in _WRITABLE else f"{Path(name).stem}.jsonl"


def _collect(result: Scan, files: Files, each: int = 3) -> None:
    """Read the files once more for the texts of the first flagged samples of each finding."""
    judged = result.judged
    wanted: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for i, finding in enumerate(result.found.findings):
        for sample in finding.samples[:each].tolist():
            place = (judged.file_of[sample], judged.row_of[sample])
            wanted.setdefault(place, []).append((i, judged.pool_of[sample], judged.turn_of[sample]))
    for k in range(len(files.names)):
        last = max((row for file, row in wanted if file == k), default=-1)
        if last < 0:
            continue
        for index, (_, parts) in enumerate(files.read(k, files.reader())):
            for i, pool, turn in wanted.get((k, index), ()):
                part = pooled(parts, judged.pools)[pool][turn]
                result.examples.setdefault(i, []).append(Example(part.question, part.response, k, index))
            if index >= last:
                break
