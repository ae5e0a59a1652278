"""Counting, apart from deciding: a table of hashed counts first, exact counts of what is frequent next.

The first pass counts every key in a table of fixed size; two keys that share a cell are counted together, so a count
is never too small. What stays under the support m in the table is dropped for good; the rest is counted exactly in the
second pass. Both steps are sums over samples: several files, or several parties, are added.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from undertow.sanitization import grams
from undertow.sanitization.encode import Batch
from undertow.sanitization.grams import Keys, Places
from undertow.sanitization.rules import Rules

#: Cells of the hashed table, at most (64 MiB of 32-bit counts) and at least; so many for each key where there are fewer.
CELLS, _LEAST_CELLS, _EACH = 1 << 24, 1 << 16, 4
#: Encoded samples kept in memory before they go to a temporary file, in bytes.
_IN_MEMORY = 1 << 29


class Spool:
    """Batches in their order, kept in memory up to 512 MiB and in a temporary file beyond; one shard of a scan, or the only one."""

    def __init__(self) -> None:
        self._kept: list[Batch] = []
        self._size = self._samples = 0
        self._file: IO[bytes] | None = None
        self._filed = 0
        self._change: Callable[[Batch], Batch] | None = None

    def change(self, change: Callable[[Batch], Batch]) -> None:
        """Change every batch: those in memory now, those in the file whenever they are read."""
        self._kept = [change(batch) for batch in self._kept]
        self._change = change

    def each(self, work: Callable[..., Any], *shared: Any, rows: NDArray[Any] | None = None) -> Iterable[Any]:
        """Return what some work gives of the batches of each shard: of these alone.

        Args:
            work: called with an iterable of batches, ``shared``, and of ``rows`` what belongs to these batches.
            rows: an array with one entry for each sample of all shards.
        """
        return [work(self, *shared) if rows is None else work(self, *shared, rows)]

    @property
    def lengths(self) -> list[int]:
        """Samples of each shard."""
        return [self._samples]

    def add(self, batch: Batch) -> None:
        """Append a batch."""
        self._samples += len(batch)
        self._size += batch.nbytes
        if self._size <= _IN_MEMORY:
            self._kept.append(batch)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the spool
        for part in batch.arrays():
            np.save(self._file, part, allow_pickle=False)
        self._filed += 1

    def __iter__(self) -> Iterator[Batch]:
        yield from self._kept
        if self._file is not None:
            self._file.seek(0)
            for _ in range(self._filed):
                batch = Batch.of([np.load(self._file, allow_pickle=False) for _ in range(9)])
                yield batch if self._change is None else self._change(batch)


class Sketch:
    """Hashed counts of keys: additive, of fixed size, never too small."""

    def __init__(self, cells: int = CELLS) -> None:
        self.counts = np.zeros(cells, dtype=np.uint32)

    def add(self, keys: Keys) -> None:
        """Count each key once; give each at most once a sample."""
        np.add.at(self.counts, self._cells(keys), np.uint32(1))

    def at_least(self, keys: Keys, support: int) -> NDArray[np.bool_]:
        """Tell which keys may have been counted ``support`` times or more."""
        return self.counts[self._cells(keys)] >= support

    def frequent(self, support: int) -> Callable[[Keys], NDArray[np.bool_]]:
        """Return the same for one support, for many keys: a table of bytes, of which more fits into the cache."""
        enough = self.counts >= support
        return lambda keys: enough[self._cells(keys)]

    def __iadd__(self, other: Sketch) -> Sketch:
        self.counts = self.counts + other.counts  # not in place: what comes from another process may be read-only
        return self

    def _cells(self, keys: Keys) -> NDArray[np.int64]:
        return (keys & np.uint64(len(self.counts) - 1)).astype(np.int64)


@dataclass(frozen=True)
class Counted:
    """Exact counts of the frequent features and pieces over distinct samples.

    Attributes:
        support: smallest number of samples counted, m.
        samples: distinct samples, N.
        feature_keys, piece_keys: sorted.
        features: N' x F matrix of ones, N' all samples; zero rows for repeats of an earlier sample.
        pieces: N' x P matrix of ones, likewise.
        kind, length: of each piece (words; of a whole answer its own).
        exact: of each piece the share of its samples in which it lies at the very end, or start, it is counted for.
        distinct: of each piece the distinct complements (:func:`undertow.sanitization.grams.complements`) over its samples.
        effective: of each piece its effective number of complements, 1 / the chance that two of its samples have the same
            (Simpson 1949).
        first: for each sample the index of the first equal one, itself if there is none before it.
        identity: for each sample a key of its words, equal for equal samples.
        feature_sizes: samples of each feature.
        firsts: columns of a word as the first of its prompt, and of the same word anywhere, k x 2.
        shapes: columns of the features that are shapes of prompts.
    """

    support: int
    samples: int
    feature_keys: Keys
    piece_keys: Keys
    features: sparse.csr_matrix
    pieces: sparse.csr_matrix
    kind: NDArray[np.int64]
    length: NDArray[np.int64]
    exact: NDArray[np.float64]
    distinct: NDArray[np.float64]
    effective: NDArray[np.float64]
    first: NDArray[np.int64]
    identity: Keys
    feature_sizes: NDArray[np.int64]
    firsts: NDArray[np.int64]
    shapes: NDArray[np.int64]


def sketch(spool: Spool) -> Sketch:
    """First pass: hashed counts of all features and pieces."""
    keys = sum(spool.each(_keys))
    one, *others = spool.each(_sketched, min(CELLS, max(_LEAST_CELLS, 1 << (_EACH * keys).bit_length())))
    table: Sketch = one
    for other in others:
        table += other
    return table


def _keys(batches: Iterable[Batch]) -> int:
    # About three features a word of a prompt, two pieces a word of an answer, thirty pieces at its ends.
    return sum(3 * len(b.prompts.words) + 2 * len(b.answers.words) + 30 * len(b) for b in batches)


def _sketched(batches: Iterable[Batch], cells: int) -> Sketch:
    table = Sketch(cells)
    for batch in batches:
        table.add(grams.features(batch)[1])
        table.add(grams.pieces(batch).key)
    return table


def firsts(keys: Keys) -> NDArray[np.int64]:
    """Return for each key the place of the first that is the same."""
    _, index, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return np.asarray(index[inverse])


def identities(batches: Iterable[Batch]) -> Keys:
    """Return for each sample a key of its words."""
    with np.errstate(over="ignore"):
        same = [grams.mixed(grams.text_keys(b.prompts) * np.uint64(3) + grams.text_keys(b.answers)) for b in batches]
    return np.concatenate([np.zeros(0, dtype=np.uint64), *same])


class _Columns:
    """Gathers (sample, key) by batch into a sparse matrix with one column a key: 8 bytes an entry while it grows."""

    def __init__(self) -> None:
        self._number: dict[int, int] = {}
        self._rows: list[NDArray[np.int32]] = []
        self._numbers: list[NDArray[np.int32]] = []

    def add(self, rows: NDArray[np.int64], keys: Keys) -> NDArray[np.int32]:
        """Append entries; return each one's provisional column."""
        found, inverse = np.unique(keys, return_inverse=True)
        number = self._number
        own = np.fromiter((number.setdefault(key, len(number)) for key in found.tolist()), dtype=np.int32, count=len(found))
        self._rows.append(rows.astype(np.int32))
        self._numbers.append(own[inverse])
        return own[inverse]

    def finish(self, rows: int, support: int) -> tuple[Keys, sparse.csr_matrix, NDArray[np.int32]]:
        """Return the sorted keys of at least ``support`` entries, their matrix, and each provisional column's final one or -1."""
        size = np.zeros(len(self._number), dtype=np.int64)
        for part in self._numbers:
            size += np.bincount(part, minlength=len(size))
        keys = np.fromiter(self._number, dtype=np.uint64, count=len(size))
        kept = np.flatnonzero(size >= support)
        kept = kept[np.argsort(keys[kept])]
        final = np.full(len(size), -1, dtype=np.int32)
        final[kept] = np.arange(len(kept), dtype=np.int32)
        placed = []
        for i, part in enumerate(self._numbers):
            column = final[part]
            placed.append((self._rows[i][column >= 0], column[column >= 0]))
        self._rows, self._numbers = [], []
        empty = np.zeros(0, dtype=np.int32)
        row = np.concatenate([empty, *(part[0] for part in placed)])
        column = np.concatenate([empty, *(part[1] for part in placed)])
        placed = []
        matrix = sparse.csr_matrix((np.ones(len(row), dtype=np.int32), (row, column)), shape=(rows, len(kept)))
        return keys[kept], matrix, final


@dataclass(frozen=True)
class _Tally:
    """What the table says may be frequent in one batch: its samples, and columns of features, pieces and shapes."""

    samples: int
    heads: NDArray[np.uint64]
    shapes: Keys
    features: tuple[Places, Keys]
    pieces: tuple[Places, Keys]
    shape: tuple[NDArray[Any], ...]


def _tallied(batches: Iterable[Batch], table: Sketch, least: tuple[int, int, int], own: NDArray[np.bool_]) -> Iterator[_Tally]:
    """Yield what may be frequent in each batch.

    Args:
        batches: in their order.
        table: of all shards.
        least: the support; of a word that so many answers hold that it is nobody's target (one that is, is found by its place);
            and of a label.
        own: for each sample whether it is the first of equal ones; the others are not counted.
    """
    support, common, labels = least
    frequent, offset = table.frequent(support), 0
    for batch in batches:
        mine = own[offset : offset + len(batch)]

        def wanted(sample: Places, key: Keys, own: NDArray[np.bool_] = mine) -> NDArray[np.bool_]:
            return np.asarray(own[sample] & frequent(key))

        some = grams.pieces(batch, wanted)
        some = some.at((some.kind != grams.ANY) | ~table.at_least(some.key, common))
        label = (some.kind == grams.WHOLE) & table.at_least(some.key, labels)
        some = some.at(label | ~grams.copied(batch, some))
        begin, end = batch.answers.starts[:-1][some.sample], batch.answers.starts[1:][some.sample]
        exact = np.where(some.kind == grams.START, some.start == begin, some.start + some.length == end)
        shape = some.kind, some.length, exact, grams.complements(batch, some)
        told = grams.head_keys(batch.prompts), grams.shape_keys(batch)
        yield _Tally(len(batch), *told, grams.features(batch, wanted), (some.sample, some.key), shape)
        offset += len(batch)


def count(spool: Spool, table: Sketch, rules: Rules) -> Counted:
    """Second pass: exact counts of what the table says may be frequent."""
    identity = np.concatenate(list(spool.each(identities)))
    first = firsts(identity)
    samples = len(np.unique(first))
    support = rules.least(samples)
    least = support, *(max(support + 1, int(share * samples)) for share in (rules.anywhere, rules.common))
    features, found = _Columns(), _Columns()
    none = np.zeros(0, dtype=np.int64)
    shape: list[tuple[Any, ...]] = [(none, none, none, none, none.astype(np.uint64))]
    heads, shaped = np.zeros((0, 2), dtype=np.uint64), np.zeros(0, dtype=np.uint64)
    offset = 0
    for tally in chain.from_iterable(spool.each(_tallied, table, least, rows=first == np.arange(len(first)))):
        heads = np.unique(np.concatenate([heads, tally.heads]), axis=0)
        shaped = np.union1d(shaped, tally.shapes)
        features.add(tally.features[0] + offset, tally.features[1])
        shape.append((found.add(tally.pieces[0] + offset, tally.pieces[1]), *tally.shape))
        offset += tally.samples
    feature_keys, matrix, _ = features.finish(offset, support)
    piece_keys, pieces, final = found.finish(offset, support)
    number, kind, length, exact, rest = (np.concatenate(column) for column in zip(*shape, strict=True))
    column = final[number.astype(np.int64)]
    column, kind, length, exact, rest = (part[column >= 0] for part in (column, kind, length, exact, rest))
    size = np.maximum(np.bincount(column, minlength=len(piece_keys)), 1)
    # Column and rest as one number, sorted at once; of the rest stay the bits that have room, 40 and more.
    shift = max(1, len(piece_keys).bit_length())
    both = np.sort((column.astype(np.uint64) << np.uint64(64 - shift)) | (rest >> np.uint64(shift)))
    new = np.flatnonzero(np.diff(both, prepend=both[:1] ^ np.uint64(1)))
    of = (both[new] >> np.uint64(64 - shift)).astype(np.int64)
    alike = np.bincount(of, weights=np.diff(np.append(new, len(both))) ** 2.0, minlength=len(piece_keys))
    kinds, lengths = np.zeros(len(piece_keys), dtype=np.int64), np.zeros(len(piece_keys), dtype=np.int64)
    kinds[column], lengths[column] = kind, length
    return Counted(
        support=support,
        samples=samples,
        feature_keys=feature_keys,
        piece_keys=piece_keys,
        features=matrix,
        pieces=pieces,
        kind=kinds,
        length=lengths,
        exact=np.bincount(column, weights=exact, minlength=len(piece_keys)) / size,
        distinct=np.bincount(of, minlength=len(piece_keys)) / size,
        effective=size**2 / np.maximum(alike, 1),
        first=first,
        identity=identity,
        feature_sizes=np.bincount(matrix.indices, minlength=len(feature_keys)),
        firsts=np.searchsorted(feature_keys, heads[np.isin(heads, feature_keys).all(axis=1)]),
        shapes=np.flatnonzero(np.isin(feature_keys, shaped)),
    )
