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
#: Complements that are told apart at a time, unless one piece has more.
_AT_ONCE = 1 << 20
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
        features: N' x F matrix of ones, N' all samples; zero rows for repeats of an earlier sample. A one is a byte: of products
            give one side as wider integers.
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
    """Gathers (sample, key) by batch into a sparse matrix with one column a key: 4 bytes an entry while it grows."""

    def __init__(self) -> None:
        self._number: dict[int, int] = {}
        self._parts: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []

    def __len__(self) -> int:
        return len(self._number)

    def add(self, lengths: NDArray[np.int32], keys: Keys) -> tuple[NDArray[np.int32], NDArray[np.int32], Places]:
        """Append the entries of a batch.

        Args:
            lengths: entries of each sample.
            keys: of all entries, sample after sample.

        Returns:
            each entry's provisional column; the columns among them, and the place of an entry of each.
        """
        found, index, inverse = np.unique(keys, return_index=True, return_inverse=True)
        number = self._number
        own = np.fromiter((number.setdefault(key, len(number)) for key in found.tolist()), dtype=np.int32, count=len(found))
        columns = own[inverse]
        self._parts.append((lengths.copy(), columns))
        return columns, own, index

    def frequent(self, support: int) -> tuple[Keys, NDArray[np.int32]]:
        """Return the sorted keys of at least ``support`` entries, and each provisional column's final one or -1."""
        size = np.zeros(len(self._number), dtype=np.int64)
        for _, part in self._parts:
            size += np.bincount(part, minlength=len(size))
        keys = np.fromiter(self._number, dtype=np.uint64, count=len(size))
        kept = np.flatnonzero(size >= support)
        kept = kept[np.argsort(keys[kept])]
        final = np.full(len(size), -1, dtype=np.int32)
        final[kept] = np.arange(len(kept), dtype=np.int32)
        return keys[kept], final

    def matrix(self, final: NDArray[np.int32], columns: int) -> sparse.csr_matrix:
        """Return the matrix of the final columns, and forget the entries."""
        indices = np.empty(sum(int((final[part] >= 0).sum()) for _, part in self._parts), dtype=np.int32)
        ends, at = [np.zeros(1, dtype=np.int64)], 0
        self._parts.reverse()
        while self._parts:  # one after the other, so that the entries are there only once
            lengths, part = self._parts.pop()
            column = final[part]
            kept = column >= 0
            rows = np.append(0, np.cumsum(kept))[np.append(0, np.cumsum(lengths))]
            block = sparse.csr_matrix((_ones(int(rows[-1])), column[kept], rows), shape=(len(lengths), columns))
            block.sum_duplicates()
            indices[at : at + block.nnz] = block.indices
            ends.append(block.indptr[1:] + np.int64(at))
            at += block.nnz
        indptr = np.concatenate(ends)
        return sparse.csr_matrix((_ones(at), indices[:at], indptr), shape=(len(indptr) - 1, columns))


def _ones(entries: int) -> NDArray[np.int8]:
    return np.ones(entries, dtype=np.int8)


def by_column(matrix: sparse.csr_matrix) -> sparse.csc_matrix:
    """Return a matrix of ones by columns; the ones are there only once."""
    found = matrix.tocsc()
    found.data = matrix.data
    return found


class _About:
    """What is known of each piece: kind and length, in how many samples it is exact, and the complements of its samples."""

    def __init__(self) -> None:
        self._kind, self._length, self._exact = (np.zeros(0, np.int64) for _ in range(3))
        self._rests: list[tuple[NDArray[np.int32], NDArray[np.uint32]]] = []

    def add(
        self, shape: tuple[NDArray[Any], ...], entries: tuple[NDArray[np.int32], NDArray[np.int32], Places], count: int
    ) -> None:
        """Add a batch's pieces, as :meth:`_Columns.add` numbers them, of which there are ``count`` columns by now."""
        kind, length, exact, rest = shape
        columns, own, index = entries
        if count > len(self._kind):  # twice the room, so that many batches copy little
            room = np.zeros(2 * count - len(self._kind), np.int64)
            self._kind, self._length, self._exact = (np.append(of, room) for of in (self._kind, self._length, self._exact))
        self._kind[own], self._length[own] = kind[index], length[index]
        np.add.at(self._exact, columns, exact)
        self._rests.append((columns, rest.copy()))

    def of(self, final: NDArray[np.int32], columns: int) -> tuple[NDArray[np.int64], ...]:
        """Return kind, length and exact samples of the final columns."""
        order = np.zeros(columns, dtype=np.int64)
        order[final[final >= 0]] = np.flatnonzero(final >= 0)
        return self._kind[order], self._length[order], self._exact[order]

    def complements(self, final: NDArray[np.int32], columns: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return of each final column the number of distinct complements and the sum of their squared numbers of samples; forget
        the complements."""
        # Column and rest as one number, sorted at once.
        room = np.uint64(32)
        both = np.empty(sum(int((final[part] >= 0).sum()) for part, _ in self._rests), dtype=np.uint64)
        at = 0
        while self._rests:
            part, rest = self._rests.pop()
            column = final[part]
            rest = rest[column >= 0]
            both[at : at + len(rest)] = (column[column >= 0].astype(np.uint64) << room) | rest
            at += len(rest)
        both.sort()
        begins = np.searchsorted(both, np.arange(columns, dtype=np.uint64) << room)
        begins = np.append(begins, len(both))
        distinct, alike = np.zeros(columns, dtype=np.int64), np.zeros(columns)
        first = 0
        while first < columns:  # some columns at a time: what is made of them is several times their size
            last = max(first + 1, int(np.searchsorted(begins, begins[first] + _AT_ONCE, side="right")) - 1)
            some = both[begins[first] : begins[last]]
            new = np.flatnonzero(np.diff(some, prepend=some[:1] ^ np.uint64(1)))
            of = (some[new] >> room).astype(np.int64) - first
            distinct[first:last] = np.bincount(of, minlength=last - first)
            alike[first:last] = np.bincount(of, weights=np.diff(np.append(new, len(some))) ** 2.0, minlength=last - first)
            first = last
        return distinct, alike


@dataclass(frozen=True)
class _Tally:
    """What the table says may be frequent in one batch: features and pieces as :meth:`_Columns.add` takes them, and about both."""

    heads: NDArray[np.uint64]
    shapes: Keys
    features: tuple[NDArray[np.int32], Keys]
    pieces: tuple[NDArray[np.int32], Keys]
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
        some = some.at(np.argsort(some.sample, kind="stable"))
        begin, end = batch.answers.starts[:-1][some.sample], batch.answers.starts[1:][some.sample]
        exact = np.where(some.kind == grams.START, some.start == begin, some.start + some.length == end)
        # Small numbers: they are kept, and of another process all of this travels. Of n different complements 32 bits tell apart
        # all but n in 2^33.
        rest = (grams.complements(batch, some) >> np.uint64(32)).astype(np.uint32)
        shape = some.kind.astype(np.int8), some.length.astype(np.int32), exact, rest
        told = grams.head_keys(batch.prompts), grams.shape_keys(batch)
        sample, key = grams.features(batch, wanted)
        key = key[np.argsort(sample, kind="stable")]
        lengths = [np.bincount(of, minlength=len(batch)).astype(np.int32) for of in (sample, some.sample)]
        yield _Tally(*told, (lengths[0], key), (lengths[1], some.key), shape)
        offset += len(batch)


def count(spool: Spool, table: Sketch, rules: Rules) -> Counted:
    """Second pass: exact counts of what the table says may be frequent."""
    identity = np.concatenate(list(spool.each(identities)))
    first = firsts(identity)
    samples = len(np.unique(first))
    support = rules.least(samples)
    least = support, *(max(support + 1, int(share * samples)) for share in (rules.anywhere, rules.common))
    features, found, about = _Columns(), _Columns(), _About()
    begins, shapes = [np.zeros((0, 2), dtype=np.uint64)], [np.zeros(0, dtype=np.uint64)]
    for tally in chain.from_iterable(spool.each(_tallied, table, least, rows=first == np.arange(len(first)))):
        # What is kept is copied: from a cluster it is a view, for which everything that came with it would stay in memory.
        begins.append(tally.heads.copy())
        shapes.append(tally.shapes.copy())
        features.add(*tally.features)
        about.add(tally.shape, found.add(*tally.pieces), len(found))
    heads, shaped = np.unique(np.concatenate(begins), axis=0), np.unique(np.concatenate(shapes))
    feature_keys, final = features.frequent(support)
    matrix = features.matrix(final, len(feature_keys))
    piece_keys, final = found.frequent(support)
    kind, length, exact = about.of(final, len(piece_keys))
    distinct, alike = about.complements(final, len(piece_keys))
    pieces = found.matrix(final, len(piece_keys))
    size = np.maximum(np.bincount(pieces.indices, minlength=len(piece_keys)), 1)
    return Counted(
        support=support,
        samples=samples,
        feature_keys=feature_keys,
        piece_keys=piece_keys,
        features=matrix,
        pieces=pieces,
        kind=kind,
        length=length,
        exact=exact / size,
        distinct=distinct / size,
        effective=size**2 / np.maximum(alike, 1),
        first=first,
        identity=identity,
        feature_sizes=np.bincount(matrix.indices, minlength=len(feature_keys)),
        firsts=np.searchsorted(feature_keys, heads[np.isin(heads, feature_keys).all(axis=1)]),
        shapes=np.flatnonzero(np.isin(feature_keys, shaped)),
    )
