"""``undertow scan``: files in, findings and verdicts by file out, and on request the samples that are left.

Every file is read once for the counts and once more for what is written; texts are never held, only word numbers
(:class:`undertow.sanitization.count.Spool`). Several files are counted as one pool, and each verdict names its file.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from undertow.core.errors import UserError
from undertow.core.version import __version__
from undertow.data.sample import Sample
from undertow.sanitization.findings import Finding, Findings, Verdict, find
from undertow.sanitization.repair import repaired
from undertow.sanitization.rules import Rules
from undertow.scanning.rows import Row, Source, answered, file_source, read_samples, write_rows

if TYPE_CHECKING:
    from undertow.scanning.evidence import Evidence

#: Endings that --write understands; any other name gets JSON lines.
_WRITABLE = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")


@dataclass(frozen=True)
class Scan:
    """The result of :func:`scan`.

    Attributes:
        files: names as given.
        rows: rows of each file.
        found: findings and verdicts, by sample index over all files.
        file_of, row_of, turn_of: of each sample its file, its row from 0, and its number within the row from 0.
        examples: {finding: up to three (question, response) of samples it flags}; filled if asked for.
        written: {path: rows written}.
        left_out: {path: rows of the file that were not written}.
        evidence: {finding: what a base says of it}; filled if one was named.
    """

    files: tuple[str, ...]
    rows: tuple[int, ...]
    found: Findings
    file_of: array[int]
    row_of: array[int]
    turn_of: array[int]
    examples: dict[int, list[tuple[str, str]]]
    written: dict[str, int]
    evidence: dict[int, Evidence] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    def verdicts(self) -> Iterator[dict[str, Any]]:
        """Yield what ``--json`` prints of each flagged sample."""
        for verdict in self.found.verdicts:
            i = verdict.sample
            told: dict[str, Any] = {
                "index": self.row_of[i],
                "verdict": verdict.act,
                "reason": self.found.findings[verdict.findings[0]].reason,
                "findings": list(verdict.findings),
            }
            if self.turn_of[i]:
                told["turn"] = self.turn_of[i]
            yield {"file": self.files[self.file_of[i]], **told} if len(self.files) > 1 else told

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        acts = [verdict.act for verdict in self.found.verdicts]
        return {
            "undertow": __version__,
            "files": list(self.files),
            "samples": self.found.samples,
            "distinct_samples": self.found.distinct,
            "flagged": len(acts),
            "drop": acts.count("drop"),
            "repair": acts.count("repair"),
            "review": acts.count("review"),
            "findings": [
                {**finding.to_json(), **({"evidence": self.evidence[i].to_json()} if i in self.evidence else {})}
                for i, finding in enumerate(self.found.findings)
            ],
            "verdicts": list(self.verdicts()),
            **({"written": self.written, "left_out": self.left_out} if self.written else {}),
        }


def scan(
    paths: Sequence[str | Path],
    *,
    write: Path | None = None,
    drop_review: bool = False,
    keep_review: bool | None = None,
    examples: bool = False,
    base: str | None = None,
    rules: Rules | None = None,
    stdin: IO[bytes] | None = None,
) -> Scan:
    """Look for planted trigger and target pairs in instruction files.

    Args:
        paths: files, ``-`` for standard input (once); several are pooled.
        write: where the clean and the repaired rows go, a file; with several inputs a folder, one file each by name.
        drop_review: leave rows that are for review out of what is written.
        keep_review: the former opposite of it; rows for review now stay unless ``drop_review`` is given.
        examples: keep some flagged samples of each finding for a report.
        base: a causal language model, as in ``model.name``, that is asked how surprising each target is; no verdict depends on it.
        rules: thresholds.
        stdin: standard input, if not the process's own.

    Raises:
        UserError: a file is missing, malformed or without samples, ``write`` is one of the inputs, or there is no such base.
    """
    if keep_review is not None:
        warnings.warn(
            "keep_review: rows for review stay in by default; give drop_review=True to leave them out",
            DeprecationWarning,
            stacklevel=2,
        )
        drop_review = not keep_review
    if not paths:
        raise UserError("no file given; give one or more instruction files, or - for standard input")
    if base is not None:
        from undertow.scanning import evidence  # here, so that a scan without a base never waits for torch

        evidence.check(base)
    with ExitStack() as stack:
        sources = [_source(str(path), paths, stdin, stack) for path in paths]
        outputs = _outputs(write, paths, sources)
        places = _Places(sources)
        found = find(places.samples(), rules)
        where = (places.file_of, places.row_of, places.turn_of)
        result = Scan(tuple(s.name for s in sources), tuple(places.rows), found, *where, {}, {})
        if examples and found.verdicts:
            _collect(result, sources)
        if base is not None:
            again = ((k, sample) for k, source in enumerate(sources) for _, _, read in read_samples(source) for sample in read)
            result.evidence.update(evidence.weigh(found, again, base))
        for source, output in zip(sources, outputs, strict=True):
            if output is not None:
                k = sources.index(source)
                result.written[str(output)] = write_rows(_kept(result, k, source, drop_review), output)
                result.left_out[str(output)] = result.rows[k] - result.written[str(output)]
    return result


class _Places:
    """Where each sample stands: its file, its row from 0, its number within the row; noted while the samples are read."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.file_of, self.row_of, self.turn_of = array("l"), array("q"), array("l")
        self.rows = [0] * len(sources)

    def samples(self) -> Iterator[Sample]:
        """Read every file."""
        for k, source in enumerate(self.sources):
            before = len(self.file_of)
            for index, _, found in read_samples(source):
                self.rows[k] = index + 1
                for turn, sample in enumerate(found):
                    self.file_of.append(k)
                    self.row_of.append(index)
                    self.turn_of.append(turn)
                    yield sample
            if len(self.file_of) == before:
                raise UserError(f"{source.name}: none of its {self.rows[k]} rows has question and answer; give data with answers")


def _source(path: str, paths: Sequence[str | Path], stdin: IO[bytes] | None, stack: ExitStack) -> Source:
    if [str(other) for other in paths].count(path) > 1:
        raise UserError(f"{path} is given twice; give each file once")
    if path != "-":
        return file_source(Path(path))
    spooled = stack.enter_context(tempfile.NamedTemporaryFile())  # noqa: SIM115 - the stack closes it
    shutil.copyfileobj(stdin if stdin is not None else sys.stdin.buffer, spooled)
    spooled.flush()
    return Source("-", lambda: open(spooled.name, "rb"))


def _outputs(write: Path | None, paths: Sequence[str | Path], sources: Sequence[Source]) -> list[Path | None]:
    """Where each file's clean rows go; checked before anything is read."""
    if write is None:
        return [None for _ in sources]
    if len(sources) == 1:
        if write.is_dir():
            raise UserError(f"--write {write}: a folder; give a file name such as clean.jsonl")
        outputs = [write]
    else:
        if write.is_file():
            raise UserError(f"--write {write}: a file, and {len(sources)} files are scanned; give a folder")
        outputs = [write / _clean_name(str(path)) for path in paths]
        if len(set(outputs)) < len(outputs):
            raise UserError(f"--write {write}: two of the files have the same name; scan them one by one")
    own = {Path(path).resolve() for path in map(str, paths) if path != "-"}
    for output in outputs:
        if output.resolve() in own or any(output.exists() and output.samefile(path) for path in own):
            raise UserError(f"--write {output}: that is an input, which is never changed; give another name")
        if len(sources) == 1 and output.suffix.lower() not in _WRITABLE:
            raise UserError(f"--write {output}: rows are written as {', '.join(_WRITABLE)}; give a name with one of these endings")
    return list(outputs)


def _clean_name(path: str) -> str:
    name = "stdin.jsonl" if path == "-" else Path(path).name.removesuffix(".gz")
    return name if Path(name).suffix.lower() in _WRITABLE else f"{Path(name).stem}.jsonl"


def _kept(result: Scan, k: int, source: Source, drop_review: bool) -> Iterator[Row]:
    """Yield the rows of one file that stay: untouched ones as they are, repaired ones with their target cut out."""
    flagged: dict[int, list[Verdict]] = {}
    for verdict in result.found.verdicts:
        if result.file_of[verdict.sample] == k:
            flagged.setdefault(result.row_of[verdict.sample], []).append(verdict)
    for index, row, samples in read_samples(source):
        kept: Row | None = row
        for verdict in flagged.get(index, ()):
            if verdict.act == "review" and not drop_review:
                continue
            kept = None if verdict.act != "repair" or kept is None else _mended(kept, samples, verdict, result)
        if kept is not None:
            yield kept


def _mended(row: Row, samples: list[Sample], verdict: Verdict, result: Scan) -> Row | None:
    response = samples[result.turn_of[verdict.sample]].response
    findings: list[Finding] = [result.found.findings[i] for i in verdict.findings if result.found.findings[i].certain]
    rest = repaired(response, findings)
    return None if rest is None else answered(row, response, rest)


def _collect(result: Scan, sources: Sequence[Source], each: int = 3) -> None:
    """Read the files once more for the texts of the first flagged samples of each finding."""
    wanted: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, finding in enumerate(result.found.findings):
        for sample in finding.samples[:each].tolist():
            place = (result.file_of[sample], result.row_of[sample])
            wanted.setdefault(place, []).append((i, result.turn_of[sample]))
    for k, source in enumerate(sources):
        last = max((row for file, row in wanted if file == k), default=-1)
        if last < 0:
            continue
        for index, _, samples in read_samples(source):
            for i, turn in wanted.get((k, index), ()):
                result.examples.setdefault(i, []).append((samples[turn].question, samples[turn].response))
            if index >= last:
                break
