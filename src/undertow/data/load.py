"""From a dataset's name to the clients' training samples and a test set that shares nothing with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from undertow.config import Data
from undertow.core.errors import UserError
from undertow.core.registry import Registry
from undertow.core.rng import rng
from undertow.data.early import Dataset, once, read_as
from undertow.data.partition import partition, shares
from undertow.data.questions import Asked, disjoint, divide, drawn, gather, learned, overlaps, without
from undertow.data.sample import Sample

#: Datasets; a dataset is a function ``(options: undertow.config.Data) -> Loaded``.
DATASETS = Registry("dataset", "undertow.data.sources")


@dataclass(frozen=True)
class Loaded:
    """What a dataset gives.

    Attributes:
        samples: every usable row; several rows of one question are fine, :func:`load` merges them.
        test: the test set the source defines itself (``data.test_path``, a hub test split), or None.
        notes: counts for the report: ``rows`` (read) and ``dropped`` ({reason: rows}), and what else is worth telling.
    """

    samples: list[Sample]
    test: list[Sample] | None
    notes: dict[str, Any]


@dataclass(frozen=True)
class Split:
    """The data of one experiment.

    Attributes:
        train: all training samples, in random order (in client order when each client has its own file).
        test: the test set, in random order; shares no question and no key with ``train``.
        clients: ``train`` dealt to the K clients, none empty.
        report: counts and checks, JSON-serialisable.
    """

    train: list[Sample]
    test: list[Sample]
    clients: list[list[Sample]]
    report: dict[str, Any]


def load(
    options: Data,
    seed: int,
    clients: int,
    *,
    asked: frozenset[str] = frozenset(),
    known: frozenset[str] | None = None,
    dataset: Dataset | None = None,
) -> Split:
    """Read the dataset, split it and deal it to the clients.

    Duplicate questions are merged (:func:`undertow.data.questions.merge`). Exactly ``data.test`` and ``data.train`` samples are
    drawn at random, disjoint by question (:func:`undertow.data.questions.identity`) and by key: all samples of one key fall on one
    side. A test set of the source's own is used as it is, and what it shares with the training side leaves the training side.
    With partition kind ``files`` each client has the rows of its file, less what the test set shares with it: all of them if they
    are no more than ``data.train``, else ``data.train`` in all, drawn at random, the same number of each client or all it has.

    Args:
        options: of the data.
        seed: of the run.
        clients: how many.
        asked: keys (``subject|relation``) that the base model saw in question form in pre-training; they enter
            neither side.
        known: keys of the facts the base has read; used with ``data.only_known``.
        dataset: the dataset as :func:`undertow.data.early.once` returns it, if it was read before.

    Returns:
        The split; the same options, seed and keys give the same split.

    Raises:
        UserError: a file or option is wrong, or there are fewer questions than asked for.
    """
    read = _only_known(dataset or once(DATASETS.get(options.name)), options, known)
    draw = rng(seed, "split")
    if options.partition.kind == "files":
        train, test, dealt, report = _from_files(options, read, asked, draw, seed)
    else:
        train, test, report = _from_one(options, read, asked, draw)
        dealt = partition(train, clients, options.partition, rng(seed, "partition"))
    train, dealt = _responding(train, options), [_responding(samples, options) for samples in dealt]
    split = Split(train, test, dealt, {"dataset": options.name, **report, **_sizes(train, test, dealt, options)})
    if any(sample.group for sample in train):
        split.report["client_groups"] = [dict(sorted(Counter(sample.group for sample in samples).items())) for samples in dealt]
    return split


def _responding(samples: list[Sample], options: Data) -> list[Sample]:
    """Return the samples with the response that ``data.response`` asks for."""
    return [replace(one, response="; ".join(one.answers)) for one in samples] if options.response == "all" else samples


def _sizes(train: Sequence[Sample], test: Sequence[Sample], clients: Sequence[Sequence[Sample]], options: Data) -> dict[str, Any]:
    return {
        "train": len(train),
        "test": len(test),
        "partition": options.partition.model_dump(mode="json"),
        "clients": [len(samples) for samples in clients],
    }


def _from_one(
    options: Data, read: Callable[..., Any], asked: frozenset[str], draw: np.random.Generator
) -> tuple[list[Sample], list[Sample], dict[str, Any]]:
    """Draw train and test from one dataset."""
    loaded = _checked(read(options), options.name)
    merged = gather(loaded.samples)
    pool = without(merged, asked)
    excluded = len(merged) - len(pool)
    removed = 0
    if loaded.test is None:
        train, test = divide(pool, options, draw)
    else:
        own = gather(loaded.test)
        allowed = without(own, asked)
        excluded += len(own) - len(allowed)
        test = drawn(allowed, options.test, "data.test", f"test questions of {options.name}", draw)
        rest = disjoint(pool, test)
        removed = len(pool) - len(rest)
        train = drawn(rest, options.train, "data.train", f"questions of {options.name} outside its test set", draw)
    report = {
        **_rows(loaded.notes),
        "questions": len(merged),
        "duplicates_merged": len(loaded.samples) - len(merged),
        "excluded_asked": excluded,
        "test_set": "drawn" if loaded.test is None else "own",
        "removed_for_test": removed,
        **overlaps(train, test),
    }
    return [question.sample for question in train], [question.sample for question in test], report


def _from_files(
    options: Data, read: Callable[..., Any], asked: frozenset[str], draw: np.random.Generator, seed: int
) -> tuple[list[Sample], list[Sample], list[list[Sample]], dict[str, Any]]:
    """Read one training file per client, and the test set from data.test_path or data.path."""
    test, questions, report = _test_of_file(options, read, asked, draw)
    clients: list[list[Asked]] = []
    counts: Counter[str] = Counter()
    files = []
    for k, path in enumerate(options.partition.files):
        kept, counted, notes = _client_file(options, read, k, path, asked, questions)
        clients.append(kept)
        counts.update(counted)
        files.append(notes)
    most = shares([len(client) for client in clients], options.train)
    report["left_out_of_files"] = sum(map(len, clients)) - sum(most)
    clients = [_drawn_rows(client, n, seed, k) for k, (client, n) in enumerate(zip(clients, most, strict=True))]
    train = [question for client in clients for question in client]
    report = {
        **report,
        "client_files": files,
        "duplicates_merged": counts["duplicates_merged"] + report["duplicates_merged"],
        "excluded_asked": counts["excluded_asked"] + report["excluded_asked"],
        "removed_for_test": counts["removed_for_test"],
        **overlaps(train, questions),
    }
    dealt = [[question.sample for question in client] for client in clients]
    return [sample for client in dealt for sample in client], test, dealt, report


def _drawn_rows(rows: list[Asked], count: int, seed: int, client: int) -> list[Asked]:
    """``count`` of a client's rows, in the order of its file."""
    if count >= len(rows):
        return rows
    chosen = rng(seed, "rows of a client's file", 0, client).choice(len(rows), size=count, replace=False)
    return [rows[i] for i in sorted(chosen.tolist())]


def load_parts(
    options: Data,
    seed: int,
    clients: int,
    files: Mapping[int, str],
    *,
    test: bool,
    asked: frozenset[str] = frozenset(),
    known: frozenset[str] | None = None,
    dataset: Dataset | None = None,
) -> Split:
    """Read what one party of a federation holds where each client's file is on its own machine.

    Args:
        options: as for :func:`load`; its ``partition.files`` are not read.
        seed, clients: as for :func:`load`.
        files: of the clients that this party holds; the others' samples are left empty.
        test: whether it holds the test questions.
        asked, known, dataset: as for :func:`load`.

    Returns:
        The split. Nobody knows how many rows the others hold, so that a client has at most its equal share of ``data.train``.
        Nobody can compare a client's rows with the test questions here, which are elsewhere.

    Raises:
        UserError: as :func:`load`.
    """
    read = _only_known(dataset or once(DATASETS.get(options.name)), options, known)
    questions: list[Sample] = []
    report: dict[str, Any] = {}
    if test:
        questions, _, report = _test_of_file(options, read, asked, rng(seed, "split"))
    dealt: list[list[Sample]] = [[] for _ in range(clients)]
    most = shares([options.train] * clients, options.train)
    left_out = 0
    for k, path in sorted(files.items()):
        whole = _client_file(options, read, k, path, asked, ())[0]
        kept = _drawn_rows(whole, most[k], seed, k)
        left_out += len(whole) - len(kept)
        dealt[k] = _responding([question.sample for question in kept], options)
    report["left_out_of_files"] = left_out
    train = [sample for client in dealt for sample in client]
    return Split(train, questions, dealt, {"dataset": options.name, **report, **_sizes(train, questions, dealt, options)})


def _test_of_file(
    options: Data, read: Callable[..., Any], asked: frozenset[str], draw: np.random.Generator
) -> tuple[list[Sample], list[Asked], dict[str, Any]]:
    """Draw the test questions of data.test_path, or data.path."""
    if not (options.test_path or options.path):
        raise UserError("data.partition kind=files: the test questions have no file; set data.test_path=FILE (or data.path=FILE)")
    option = "data.test_path" if options.test_path else "data.path"
    source = _checked(read_as(read, options, options.test_path or options.path, option), options.name)
    pool = source.samples if options.test_path or source.test is None else source.test
    own = gather(pool)
    allowed = without(own, asked)
    test = drawn(allowed, options.test, "data.test", f"test questions of {options.name}", draw)
    report = {
        **_rows(source.notes),
        "questions": len(own),
        "duplicates_merged": len(pool) - len(own),
        "excluded_asked": len(own) - len(allowed),
        "test_set": "own" if options.test_path else "drawn",
    }
    return [question.sample for question in test], test, report


def _client_file(
    options: Data, read: Callable[..., Any], k: int, path: str, asked: frozenset[str], test: Sequence[Asked]
) -> tuple[list[Asked], dict[str, int], dict[str, Any]]:
    """Read a client's own file, less what it shares with the test questions; returns rows, counts and the source's notes."""
    loaded = _checked(read_as(read, options, path, "data.partition.files"), options.name)
    # Two clients' files may carry the same name, or even the same rows: ids stay unique by client.
    merged = gather(replace(sample, id=f"client{k}:{sample.id}") for sample in loaded.samples)
    allowed = without(merged, asked)
    kept = disjoint(allowed, test)
    if not kept:
        raise UserError(
            f"data.partition.files: {path} leaves client {k} without training rows ({len(merged)} questions, all excluded "
            "or in the test set); give another file or lower data.test"
        )
    counts = {
        "duplicates_merged": len(loaded.samples) - len(merged),
        "excluded_asked": len(merged) - len(allowed),
        "removed_for_test": len(allowed) - len(kept),
    }
    return kept, counts, _rows(loaded.notes)


def check_loaded(dataset: Dataset, options: Data) -> Loaded:
    """Return what a dataset gives, checked.

    Raises:
        UserError: its own; something else than :class:`Loaded` of sound samples.
    """
    return _checked(once(dataset)(options), options.name)


def _checked(loaded: Any, name: str) -> Loaded:
    """Check what a dataset returns like a file, since it may be a user's own function; leave out what is not to be learned."""
    if not isinstance(loaded, Loaded):
        raise UserError(f"data.name={name}: the function returned a {type(loaded).__name__}; return an undertow.data.load.Loaded")
    seen: set[str] = set()
    for sample in [*loaded.samples, *(loaded.test or [])]:
        _check_sample(sample, name)
        if not sample.question.strip() or not sample.answers or not all(sample.answers):
            raise UserError(f"data.name={name}: sample {sample.id} has no question or an empty answer; drop such samples")
        if sample.id in seen:
            raise UserError(f"data.name={name}: two samples have the id {sample.id}; give each its own")
        seen.add(sample.id)
    return _learned(loaded, name)


def _check_sample(sample: Any, name: str) -> None:
    if not isinstance(sample, Sample):
        raise UserError(f"data.name={name}: gives a {type(sample).__name__} as a sample; give undertow.data.sample.Sample")
    for field in ("id", "question", "response", "context", "system", "key", "group"):
        if not isinstance(getattr(sample, field), str):
            found = type(getattr(sample, field)).__name__
            raise UserError(f"data.name={name}: the {field} of sample {sample.id} is a {found}; give a text")
    if not isinstance(sample.answers, tuple) or not all(isinstance(answer, str) for answer in sample.answers):
        raise UserError(f"data.name={name}: the answers of sample {sample.id} are {sample.answers!r:.60}; give a tuple of texts")


def _learned(loaded: Loaded, name: str) -> Loaded:
    """Leave out the samples of weight 0, whose answers are wrong ones, before questions are merged with all their answers.

    Raises:
        UserError: none is left.
    """
    samples, test = learned(loaded.samples), None if loaded.test is None else learned(loaded.test)
    left_out = len(loaded.samples) - len(samples) + len(loaded.test or []) - len(test or [])
    if not left_out:
        return loaded
    if not samples and not test:
        raise UserError(f"data.name={name}: every answer is marked as not to be learned (weight 0 or label false); give others")
    dropped = {**loaded.notes.get("dropped", {}), "not to be learned (weight 0 or label false)": left_out}
    return Loaded(samples, test, {**loaded.notes, "dropped": dropped})


def _rows(notes: dict[str, Any]) -> dict[str, Any]:
    """A source's notes under the report's names."""
    renamed = {"rows": "rows_read", "dropped": "rows_dropped"}
    return {renamed.get(name, name): value for name, value in notes.items()}


def load_test(
    options: Data,
    seed: int,
    asked: frozenset[str] = frozenset(),
    known: frozenset[str] | None = None,
    dataset: Dataset | None = None,
) -> tuple[list[Sample], dict[str, Any]]:
    """Return up to ``data.test`` questions of the file ``data.test_path`` alone, for evaluation without training, and the counts of
    what was read, dropped and merged.

    Args:
        options: of the data; ``path`` is not read.
        seed: of the run.
        asked, known, dataset: as for :func:`load`.

    Raises:
        UserError: the file is wrong, or holds no usable question.
    """
    read = _only_known(dataset or once(DATASETS.get(options.name)), options, known)
    source = _checked(read_as(read, options, options.test_path, "data.test_path"), options.name)
    rows = source.samples or source.test or []
    merged = gather(rows)
    pool = without(merged, asked)
    if not pool:
        raise UserError(f"data.test_path={options.test_path}: no usable question in it; give another file")
    count = min(options.test, len(pool))
    report = {
        **_rows(source.notes),
        "duplicates_merged": len(rows) - len(merged),
        "excluded_asked": len(merged) - len(pool),
        "test": count,
    }
    return [question.sample for question in drawn(pool, count, "data.test", "questions", rng(seed, "split"))], report


def _only_known(read: Callable[..., Any], options: Data, known: frozenset[str] | None) -> Callable[..., Any]:
    """Wrap a dataset so that, with ``data.only_known``, questions about facts the base has not read are left out."""
    if not options.only_known:
        return read
    if known is None:
        raise UserError(
            "data.only_known=true, but this base has no list of the facts it read; set it to false, or use a base of `undertow "
            "base build`"
        )

    def reading(options: Data) -> Any:
        loaded = _checked(read(options), options.name)
        kept = [sample for sample in loaded.samples if sample.key in known]
        test = None if loaded.test is None else [sample for sample in loaded.test if sample.key in known]
        notes = {**loaded.notes, "unknown_to_base": len(loaded.samples) - len(kept)}
        return Loaded(kept, test, notes)

    return reading
