"""All texts of some rows judged: the rows' own answers together, and every other field by itself.

A field of rejected answers, of reasoning or of text that nobody understood repeats the prompts of the answers. Judged in one pool
with them it would halve what a trigger tells; so each is a pool of its own, found while the answers are read, and read after them.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol

from undertow.core.errors import UserError
from undertow.data.rows.account import Account
from undertow.data.rows.forms import Reader, within
from undertow.data.rows.part import Part
from undertow.sanitization.finding import Findings, Verdict
from undertow.sanitization.findings import find
from undertow.sanitization.rules import Rules

#: Fields that are judged by themselves, those with the most text first; the others are one pool.
_POOLS = 24
#: Characters of such fields that are held at a time.
_HELD = 100_000_000
_OTHERS = "(other fields)"
#: Answers of rows without a field that its texts are compared with, at most.
_CONTRAST = 10_000
#: File, row, and number among the texts of its row and pool.
_Place = tuple[int, int, int]


class RowLike(Protocol):
    """A row as :class:`undertow.data.rows.record.Record` gives it."""

    @property
    def place(self) -> str:
        """What messages call it."""

    def checked(self) -> Any:
        """What was parsed."""

    @property
    def row(self) -> Any:
        """What stands there."""


@dataclass(frozen=True)
class Judged:
    """Findings over several files, and where each sample stands.

    Attributes:
        found: findings and verdicts; the samples are numbered over all pools.
        file_of, row_of, turn_of: of each sample its file, its row from 0, its number among the answers of its row and pool.
        pool_of: of each sample the index of its pool in ``pools``.
        pools: names; the first, empty, is that of the rows' own answers.
        rows: of each file.
        account: of all files.
    """

    found: Findings
    file_of: array[int]
    row_of: array[int]
    turn_of: array[int]
    pool_of: array[int]
    pools: tuple[str, ...]
    rows: tuple[int, ...]
    account: Account

    def of_rows(self, file: int) -> dict[int, list[Verdict]]:
        """Return the verdicts on each flagged row of a file."""
        found: dict[int, list[Verdict]] = {}
        for verdict in self.found.verdicts:
            if self.file_of[verdict.sample] == file:
                found.setdefault(self.row_of[verdict.sample], []).append(verdict)
        return found

    def part(self, verdict: Verdict, parts: Sequence[Part]) -> Part:
        """Return the answer that a verdict is on, among the parts of its row."""
        return pooled(parts, self.pools)[self.pool_of[verdict.sample]][self.turn_of[verdict.sample]]


def pooled(parts: Iterable[Part], pools: Sequence[str]) -> dict[int, list[Part]]:
    """Return the parts of a row by the index of their pool."""
    numbers = {name: i for i, name in enumerate(pools)}
    found: dict[int, list[Part]] = {}
    for part in parts:
        number = numbers.get(part.pool, numbers.get(_OTHERS))
        if number is not None:
            found.setdefault(number, []).append(part)
    return found


class Files:
    """Rows of several files, read as often as asked for.

    Args:
        names: of the files.
        rows: returns the rows of file k.
        columns: as in :class:`undertow.data.rows.forms.Reader`.
        max_bad: the share of each file's rows that may be unreadable.
        option: what the error about that calls it.
    """

    def __init__(
        self,
        names: Sequence[str],
        rows: Callable[[int], Iterable[RowLike]],
        columns: Mapping[str, str] | None = None,
        max_bad: float = 0.01,
        option: str = "--max-bad",
    ) -> None:
        self.names, self._rows = names, rows
        self.columns, self.max_bad, self.option = columns, max_bad, option

    def read(self, k: int, reader: Reader) -> Iterator[tuple[Any, list[Part]]]:
        """Yield (record, parts) of the rows of file ``k``; those that cannot be read give their texts."""
        rows = self._rows(k)
        for record in rows:
            try:
                parts = reader.parts(record.checked(), record.place)
            except UserError as error:
                parts = reader.refused(record.row, error)
            yield record, parts
        reader.besides(getattr(rows, "beside", ()), getattr(rows, "unread", ()))

    def reader(self) -> Reader:
        """Return a new reader of rows."""
        return Reader(self.columns)

    def judged(
        self,
        rules: Rules | None = None,
        needs_samples: bool = True,
        spread: Callable[[Judging, Rules | None], Findings] | None = None,
    ) -> Judged:
        """Look for planted pairs in all pools.

        Args:
            rules: thresholds.
            needs_samples: refuse a file without any answer or text.
            spread: reads and judges the rows' own answers elsewhere (:class:`undertow.scanning.cluster.Shards`).

        Raises:
            UserError: a file is malformed, more rows than ``max_bad`` cannot be read, or a file holds no answer and no text.
        """
        return Judging(self, rules, needs_samples).judged(spread)

    def parts(self, pools: Sequence[str]) -> Iterator[tuple[int, Part]]:
        """Yield (file, part) in the order of the samples of :meth:`judged`."""
        for pool in range(len(pools)):
            for k in range(len(self.names)):
                for _, parts in self.read(k, self.reader()):
                    for part in pooled(parts, pools).get(pool, ()):
                        yield k, part


class Judging:
    """One pass over the answers, and as many as needed over what stands beside them."""

    def __init__(self, files: Files, rules: Rules | None, needs_samples: bool) -> None:
        self.files, self.rules, self.needs_samples = files, rules, needs_samples
        self.file_of, self.row_of, self.turn_of, self.pool_of = array("l"), array("q"), array("l"), array("l")
        self.rows = [0] * len(files.names)
        self.account = Account()
        self.sizes: Counter[str] = Counter()

    def bare(self) -> Judging:
        """Return what was read without what read it, to be sent."""
        sent = copy(self)
        sent.files = Files((), lambda k: ())
        return sent

    def follow(self, other: Judging, first: int) -> None:
        """Add what another read of the files from ``first`` on."""
        self.file_of.extend(first + k for k in other.file_of)
        for mine, more in ((self.row_of, other.row_of), (self.turn_of, other.turn_of), (self.pool_of, other.pool_of)):
            mine.extend(more)
        self.rows[first : first + len(other.rows)] = other.rows
        self.account.add(other.account)
        self.sizes += other.sizes

    def judged(self, spread: Callable[[Judging, Rules | None], Findings] | None = None) -> Judged:
        """Return the findings of all pools; arguments as of :meth:`Files.judged`."""
        found = find(self.own(), self.rules) if spread is None else spread(self, self.rules)
        names = [name for name, _ in self.sizes.most_common()]
        pools = ["", *names] if len(names) <= _POOLS else ["", *names[: _POOLS - 1], _OTHERS]
        for group in self._groups(pools):
            for number, (parts, places, contrast) in self._beside(group, pools).items():
                offset = len(self.file_of)
                for k, row, turn in places:
                    self._note(k, row, turn, number)
                own = find(map(prompted, chain(parts, contrast)), self.rules)
                answers = parts[0].why != "beside"
                found = joined(found, first(own, len(parts), answers), offset)
        where = self.file_of, self.row_of, self.turn_of, self.pool_of
        return Judged(found, *where, tuple(pools), tuple(self.rows), self.account)

    def _note(self, k: int, row: int, turn: int, pool: int) -> None:
        self.file_of.append(k)
        self.row_of.append(row)
        self.turn_of.append(turn)
        self.pool_of.append(pool)

    def own(self) -> Iterator[Part]:
        """Read every file: yield the rows' own answers, and count what stands beside them."""
        files = self.files
        for k, name in enumerate(files.names):
            reader, before, index = files.reader(), len(self.file_of) + sum(self.sizes.values()), -1
            for index, (_, parts) in enumerate(files.read(k, reader)):
                turn = 0
                for part in parts:
                    if part.pool:
                        self.sizes[part.pool] += len(part.response) + len(part.question) + 100
                        continue
                    self._note(k, index, turn, 0)
                    turn += 1
                    yield prompted(part) if part.system else part
            self.rows[k] = index + 1
            account = reader.account
            reader.check_columns(name)
            within(account, files.max_bad, name, files.option)
            if self.needs_samples and len(self.file_of) + sum(self.sizes.values()) == before:
                raise UserError(
                    f"{name}: none of its {index + 1:,} rows has question and answer ({account.sentence()}); give data with answers"
                )
            self.account.add(account)

    def _groups(self, pools: Sequence[str]) -> Iterator[list[int]]:
        """Pools that are read together."""
        group: list[int] = []
        size = 0
        own = dict(self.sizes)
        for number in range(1, len(pools)):
            more = own.get(pools[number], 0) if pools[number] != _OTHERS else sum(own.values())
            if group and size + more > _HELD:
                yield group
                group, size = [], 0
            group.append(number)
            size += more
        if group:
            yield group

    def _beside(self, group: list[int], pools: Sequence[str]) -> dict[int, tuple[list[Part], list[_Place], list[Part]]]:
        """The parts of some pools with their places, and answers of rows that have none in the pool, to compare them with."""
        found: dict[int, tuple[list[Part], list[_Place], list[Part]]] = {number: ([], [], []) for number in group}
        for k in range(len(self.files.names)):
            for index, (_, parts) in enumerate(self.files.read(k, self.files.reader())):
                own = pooled(parts, pools)
                for number, (texts, places, contrast) in found.items():
                    if number in own:
                        texts += own[number]
                        places += [(k, index, turn) for turn in range(len(own[number]))]
                    elif 0 in own and len(contrast) < _CONTRAST:
                        contrast.append(own[0][-1])
        return found


def prompted(part: Part) -> Part:
    """Return the part with its system prompt where a scan looks for triggers."""
    return replace(part, context="\n".join(filter(None, (part.system, part.context)))) if part.system else part


def first(found: Findings, count: int, answers: bool) -> Findings:
    """Return what was found in the first ``count`` samples; the others were there to compare with.

    What kind of answer a text is (its language, its length, a refusal) is kept only where the texts are ``answers``: a description
    of a tool is of another kind than an answer.
    """
    wanted = [answers or finding.kind != "kind of answer" for finding in found.findings]
    kept = {i: j for j, i in enumerate(i for i, f in enumerate(found.findings) if wanted[i] and (f.samples < count).any())}
    findings = tuple(replace(found.findings[i], samples=found.findings[i].samples[found.findings[i].samples < count]) for i in kept)
    verdicts = (replace(v, findings=tuple(kept[i] for i in v.findings if i in kept)) for v in found.verdicts if v.sample < count)
    return Findings(count, min(found.distinct, count), findings, tuple(v for v in verdicts if v.findings))


def joined(one: Findings, other: Findings, offset: int) -> Findings:
    """Return the findings of two pools as one; the samples of the second are numbered from ``offset``."""
    shift = len(one.findings)
    findings = tuple(replace(finding, samples=finding.samples + offset) for finding in other.findings)
    verdicts = (replace(v, sample=v.sample + offset, findings=tuple(i + shift for i in v.findings)) for v in other.verdicts)
    return Findings(
        one.samples + other.samples, one.distinct + other.distinct, (*one.findings, *findings), (*one.verdicts, *verdicts)
    )
