"""A scan whose files are read and counted on a Ray cluster, each shard of them by one process.

The processes keep what they encoded; what comes back are sums (the hashed table), keys that may be frequent and the words of what
is accused. The shards follow each other as the files do, so that the findings are those of one process, to the last row.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import isgeneratorfunction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undertow.core.cluster import connect
from undertow.core.errors import UserError
from undertow.data.rows.files import Rows, file_source
from undertow.sanitization.count import Spool
from undertow.sanitization.encode import Batch, encode
from undertow.sanitization.finding import Findings
from undertow.sanitization.findings import judged
from undertow.sanitization.rules import Rules
from undertow.sanitization.words import UNKNOWN, Numbers
from undertow.scanning.reading import Files, Judging


class Shard:
    """Some files, read and kept by one process of the cluster."""

    def __init__(self, folder: str) -> None:
        os.chdir(folder)
        self._spool, self._numbers = Spool(), Numbers()

    def read(self, paths: list[str], columns: Mapping[str, str] | None, max_bad: float, needs_samples: bool) -> Judging | str:
        """Return what was read of the files, or the error's line."""
        named = tuple(columns.values()) if columns else ()
        files = Files(paths, lambda k: Rows(file_source(Path(paths[k])), named), columns, max_bad)
        judging = Judging(files, None, needs_samples)
        try:
            for batch in encode(judging.own(), self._numbers, shaped=True):
                self._spool.add(batch)
        except UserError as error:
            return str(error)
        return judging.bare()

    def each(self, work: Callable[..., Any], rows: NDArray[Any] | None, *shared: Any) -> Any:
        """As :meth:`undertow.sanitization.count.Spool.each`, for this shard."""
        (found,) = self._spool.each(work, *shared, rows=rows)
        return found

    def stream(self, work: Callable[..., Iterator[Any]], rows: NDArray[Any] | None, *shared: Any) -> Iterator[Any]:
        """The same of a generator: what it yields goes to the cluster's memory one by one."""
        (found,) = self._spool.each(work, *shared, rows=rows)
        yield from found

    def change(self, change: Callable[[Batch], Batch]) -> None:
        """As :meth:`undertow.sanitization.count.Spool.change`."""
        self._spool.change(change)

    def marks(self) -> dict[int, str]:
        """All marks that this shard met."""
        return self._numbers.marks()

    def names(self) -> dict[int, int]:
        """The names that this shard met."""
        return self._numbers.names()

    def words(self, numbers: list[int]) -> dict[int, str]:
        """The words that this shard knows of some numbers."""
        return {number: word for number, word in self._numbers.words(numbers).items() if word != UNKNOWN}


class Shards(Spool):
    """The shards of a scan, as one spool and as the memory of their words."""

    def __init__(self, address: str, paths: Sequence[str]) -> None:
        """Connect; the files must stand at the same paths on every node.

        Raises:
            UserError: no Ray, no cluster, or standard input among the files.
        """
        super().__init__()
        if "-" in paths:
            raise UserError("--ray: standard input is on this machine alone; give files that every node of the cluster sees")
        self._ray = connect(address)
        room = max(1, min(len(paths), int(self._ray.cluster_resources().get("CPU", 1))))
        self._paths = _dealt(paths, room)
        kind = self._ray.remote(Shard)
        self._shards = [kind.remote(os.getcwd()) for _ in self._paths]
        self._lengths: list[int] = []

    def judged(self, judging: Judging, rules: Rules | None) -> Findings:
        """Read all files, tell ``judging`` what stands where, and return the findings.

        Raises:
            UserError: as reading in one process does; of several files the first that fails is named.
        """
        files = judging.files
        asked = [
            shard.read.remote(paths, files.columns, files.max_bad, judging.needs_samples)
            for shard, paths in zip(self._shards, self._paths, strict=True)
        ]
        first = 0
        for reading, paths in zip(asked, self._paths, strict=True):
            read = self._ray.get(reading)
            if isinstance(read, str):
                raise UserError(read)
            self._lengths.append(len(read.file_of))
            judging.follow(read, first)
            first += len(paths)
        return judged(self, self, rules or Rules())

    def each(self, work: Callable[..., Any], *shared: Any, rows: NDArray[Any] | None = None) -> Iterable[Any]:
        """Ask all shards at once; yield in their order."""
        kept = [self._ray.put(value) for value in shared]
        ends = np.cumsum([0, *self._lengths])
        parts = [None if rows is None else rows[a:b] for a, b in pairwise(ends)]
        if isgeneratorfunction(work):
            streams = [
                shard.stream.options(num_returns="streaming").remote(work, part, *kept)
                for shard, part in zip(self._shards, parts, strict=True)
            ]
            return (map(self._ray.get, stream) for stream in streams)
        asked = [shard.each.remote(work, part, *kept) for shard, part in zip(self._shards, parts, strict=True)]
        return (self._ray.get(answer) for answer in asked)

    @property
    def lengths(self) -> list[int]:
        """Samples of each shard."""
        return self._lengths

    def change(self, change: Callable[[Batch], Batch]) -> None:
        """Change every batch of every shard."""
        self._ray.get([shard.change.remote(change) for shard in self._shards])

    def marks(self) -> dict[int, str]:
        """Return all marks met, by their numbers."""
        found: dict[int, str] = {}
        for marks in self._ray.get([shard.marks.remote() for shard in self._shards]):
            found |= marks
        return found

    def names(self) -> dict[int, int]:
        """Return the numbers of names met, and how often each was noted."""
        found: Counter[int] = Counter()
        for names in self._ray.get([shard.names.remote() for shard in self._shards]):
            found.update(names)
        return dict(found)

    def words(self, numbers: Iterable[int]) -> dict[int, str]:
        """Return the words of some numbers."""
        found = dict.fromkeys(map(int, numbers), UNKNOWN)
        for words in self._ray.get([shard.words.remote(list(found)) for shard in self._shards]):
            found |= words
        return found


def _dealt(paths: Sequence[str], shards: int) -> list[list[str]]:
    """Files in their order, in so many runs of about the same size, or fewer."""
    sizes = [Path(path).stat().st_size if Path(path).is_file() else 0 for path in paths]
    middle = np.cumsum(sizes) - np.array(sizes) / 2
    of = np.minimum(middle * shards / max(1, sum(sizes)), shards - 1).astype(int)
    return [[path for path, own in zip(paths, of, strict=True) if own == shard] for shard in np.unique(of)]
