"""From a dataset's name to the clients' training samples and a test set that shares nothing with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from undertow.config import Config, Data
from undertow.core.errors import UserError
from undertow.core.registry import Registry
from undertow.core.rng import rng
from undertow.data.partition import partition
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


@dataclass(frozen=True)
class _Asked:
    """One question after merging, with the keys of all rows that asked it (a question can be about two subjects)."""

    sample: Sample
    keys: frozenset[str]
    identity: tuple[Any, ...]


def normalised(question: str) -> str:
    """Lower case, blanks collapsed to single spaces, trailing question marks, full stops and spaces removed."""
    bare = " ".join(question.lower().split())
    return bare.rstrip("?. ") or bare  # "???" must not equal "..."


def identity(sample: Sample) -> tuple[Any, ...]:
    """What makes two samples the same question: the normalised question, with its context and earlier turns if any."""
    turns = tuple((normalised(user), normalised(answer)) for user, answer in sample.history)
    return normalised(sample.question), normalised(sample.context), turns


def distinct(answers: Iterable[str]) -> tuple[str, ...]:
    """The answers in order, each once; those that differ in case alone count as one, since no scoring looks at case."""
    found: dict[str, str] = {}
    for answer in answers:
        found.setdefault(answer.casefold(), answer)
    return tuple(found.values())


def merge(samples: Iterable[Sample]) -> list[Sample]:
    """Join the samples that ask the same question into one, which accepts all their answers.

    The first sample gives id, question and response; the answers are those of all samples (:func:`distinct`); key
    and group are the first that are not empty.
    """
    return [question.sample for question in _merge(samples)]


def load(config: Config, *, asked: frozenset[str] = frozenset(), known: frozenset[str] | None = None) -> Split:
    """Read the dataset, split it and deal it to the clients.

    Duplicate questions are merged (:func:`merge`). Exactly ``data.test`` and ``data.train`` samples are drawn at
    random, disjoint by question (:func:`identity`) and by key: all samples of one key fall on one side. A test set
    of the source's own is used as it is, and what it shares with the training side leaves the training side. With
    partition kind ``files`` every row of each client's file is used, less what the test set shares with it.

    Args:
        config: ``seed``, ``data`` and ``federation.clients`` are used.
        asked: keys (``subject|relation``) that the base model saw in question form in pre-training; they enter
            neither side.
        known: keys of the facts the base has read; used with ``data.only_known``.

    Returns:
        The split; the same config and keys give the same split.

    Raises:
        UserError: a file or option is wrong, or there are fewer questions than asked for.
    """
    options = config.data
    read = _only_known(DATASETS.get(options.name), options, known)
    draw = rng(config.seed, "split")
    if options.partition.kind == "files":
        train, test, clients, report = _from_files(config, read, asked, draw)
    else:
        train, test, report = _from_one(options, read, asked, draw)
        clients = partition(train, config.federation.clients, options.partition, rng(config.seed, "partition"))
    if options.response == "all":
        clients = [[replace(sample, response="; ".join(sample.answers)) for sample in client] for client in clients]
        train = [replace(sample, response="; ".join(sample.answers)) for sample in train]
    report |= {
        "train": len(train),
        "test": len(test),
        "partition": options.partition.model_dump(mode="json"),
        "clients": [len(client) for client in clients],
    }
    if any(sample.group for sample in train):
        report["client_groups"] = [dict(sorted(Counter(sample.group for sample in client).items())) for client in clients]
    return Split(train=train, test=test, clients=clients, report={"dataset": options.name, **report})


def _from_one(
    options: Data, read: Callable[..., Any], asked: frozenset[str], draw: np.random.Generator
) -> tuple[list[Sample], list[Sample], dict[str, Any]]:
    """Draw train and test from one dataset."""
    loaded = _checked(read(options), options.name)
    merged = _merge(loaded.samples)
    pool = _without(merged, asked)
    excluded = len(merged) - len(pool)
    removed = 0
    if loaded.test is None:
        train, test = _divide(pool, options, draw)
    else:
        own = _merge(loaded.test)
        allowed = _without(own, asked)
        excluded += len(own) - len(allowed)
        test = _draw(allowed, options.test, "data.test", f"test questions of {options.name}", draw)
        rest = _disjoint(pool, test)
        removed = len(pool) - len(rest)
        train = _draw(rest, options.train, "data.train", f"questions of {options.name} outside its test set", draw)
    report = {
        **_rows(loaded.notes),
        "questions": len(merged),
        "duplicates_merged": len(loaded.samples) - len(merged),
        "excluded_asked": excluded,
        "test_set": "drawn" if loaded.test is None else "own",
        "removed_for_test": removed,
        **_overlaps(train, test),
    }
    return [question.sample for question in train], [question.sample for question in test], report


def _from_files(
    config: Config, read: Callable[..., Any], asked: frozenset[str], draw: np.random.Generator
) -> tuple[list[Sample], list[Sample], list[list[Sample]], dict[str, Any]]:
    """Read one training file per client, and the test set from data.test_path or data.path."""
    test, questions, report = _test_of_file(config, read, asked, draw)
    clients: list[list[_Asked]] = []
    counts: Counter[str] = Counter()
    files = []
    for k, path in enumerate(config.data.partition.files):
        kept, counted, notes = _client_file(config.data, read, k, path, asked, questions)
        clients.append(kept)
        counts.update(counted)
        files.append(notes)
    train = [question for client in clients for question in client]
    report = {
        **report,
        "client_files": files,
        "duplicates_merged": counts["duplicates_merged"] + report["duplicates_merged"],
        "excluded_asked": counts["excluded_asked"] + report["excluded_asked"],
        "removed_for_test": counts["removed_for_test"],
        **_overlaps(train, questions),
    }
    dealt = [[question.sample for question in client] for client in clients]
    return [sample for client in dealt for sample in client], test, dealt, report


def load_parts(
    config: Config,
    files: Mapping[int, str],
    *,
    test: bool,
    asked: frozenset[str] = frozenset(),
    known: frozenset[str] | None = None,
) -> Split:
    """Read what one party of a federation holds where each client's file is on its own machine.

    Args:
        config: as for :func:`load`; its ``data.partition.files`` are not read.
        files: of the clients that this party holds; the others' samples are left empty.
        test: whether it holds the test questions.
        asked, known: as for :func:`load`.

    Returns:
        The split. Nobody can compare a client's rows with the test questions here, which are elsewhere.

    Raises:
        UserError: as :func:`load`.
    """
    options = config.data
    read = _only_known(DATASETS.get(options.name), options, known)
    questions: list[Sample] = []
    report: dict[str, Any] = {}
    if test:
        questions, _, report = _test_of_file(config, read, asked, rng(config.seed, "split"))
    clients: list[list[Sample]] = [[] for _ in range(config.federation.clients)]
    for k, path in sorted(files.items()):
        rows = [question.sample for question in _client_file(options, read, k, path, asked, ())[0]]
        clients[k] = [replace(one, response="; ".join(one.answers)) for one in rows] if options.response == "all" else rows
    train = [sample for client in clients for sample in client]
    report |= {
        "train": len(train),
        "test": len(questions),
        "partition": options.partition.model_dump(mode="json"),
        "clients": [len(client) for client in clients],
    }
    return Split(train, questions, clients, {"dataset": options.name, **report})


def _test_of_file(
    config: Config, read: Callable[..., Any], asked: frozenset[str], draw: np.random.Generator
) -> tuple[list[Sample], list[_Asked], dict[str, Any]]:
    """Draw the test questions of data.test_path, or data.path."""
    options = config.data
    if not (options.test_path or options.path):
        raise UserError("data.partition kind=files: the test questions have no file; set data.test_path=FILE (or data.path=FILE)")
    source = _checked(read(options.model_copy(update={"path": options.test_path or options.path, "test_path": None})), options.name)
    pool = source.samples if options.test_path or source.test is None else source.test
    own = _merge(pool)
    allowed = _without(own, asked)
    test = _draw(allowed, options.test, "data.test", f"test questions of {options.name}", draw)
    report = {
        **_rows(source.notes),
        "questions": len(own),
        "duplicates_merged": len(pool) - len(own),
        "excluded_asked": len(own) - len(allowed),
        "test_set": "own" if options.test_path else "drawn",
    }
    return [question.sample for question in test], test, report


def _client_file(
    options: Data, read: Callable[..., Any], k: int, path: str, asked: frozenset[str], test: Sequence[_Asked]
) -> tuple[list[_Asked], dict[str, int], dict[str, Any]]:
    """Read a client's own file, less what it shares with the test questions; returns rows, counts and the source's notes."""
    loaded = _checked(read(options.model_copy(update={"path": path, "test_path": None})), options.name)
    # Two clients' files may carry the same name, or even the same rows: ids stay unique by client.
    merged = _merge(replace(sample, id=f"client{k}:{sample.id}") for sample in loaded.samples)
    allowed = _without(merged, asked)
    kept = _disjoint(allowed, test)
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


def _checked(loaded: Any, name: str) -> Loaded:
    """A dataset may be a user's own function, so what it returns is checked like a file."""
    if not isinstance(loaded, Loaded):
        raise UserError(f"data.name={name}: the function returned a {type(loaded).__name__}; return an undertow.data.load.Loaded")
    seen: set[str] = set()
    for sample in [*loaded.samples, *(loaded.test or [])]:
        if not sample.question.strip() or not sample.answers or not all(sample.answers):
            raise UserError(f"data.name={name}: sample {sample.id} has no question or an empty answer; drop such samples")
        if sample.id in seen:
            raise UserError(f"data.name={name}: two samples have the id {sample.id}; give each its own")
        seen.add(sample.id)
    return loaded


def _merge(samples: Iterable[Sample]) -> list[_Asked]:
    same: dict[tuple[Any, ...], list[Sample]] = {}
    for sample in samples:
        same.setdefault(identity(sample), []).append(sample)
    found = []
    for what, members in same.items():
        joined = replace(
            members[0],
            answers=distinct(answer for member in members for answer in member.answers),
            key=next((member.key for member in members if member.key), ""),
            group=next((member.group for member in members if member.group), ""),
        )
        found.append(_Asked(joined, frozenset(member.key for member in members if member.key), what))
    return found


def _without(questions: Sequence[_Asked], asked: frozenset[str]) -> list[_Asked]:
    return [question for question in questions if not question.keys & asked]


def _disjoint(questions: Sequence[_Asked], test: Sequence[_Asked]) -> list[_Asked]:
    """The questions that share neither identity nor key with ``test``."""
    identities = {question.identity for question in test}
    keys = frozenset().union(*(question.keys for question in test))
    return [question for question in questions if question.identity not in identities and not question.keys & keys]


def _draw(pool: Sequence[_Asked], count: int, option: str, what: str, draw: np.random.Generator) -> list[_Asked]:
    if len(pool) < count:
        raise UserError(f"{option}={count}: there are {len(pool)} {what}; set {option}={len(pool)} or less, or give more data")
    return [pool[i] for i in draw.permutation(len(pool))[:count]]


def _divide(pool: Sequence[_Asked], options: Data, draw: np.random.Generator) -> tuple[list[_Asked], list[_Asked]]:
    """Draw test and train of exact sizes so that questions bound by a key stay on one side."""
    wanted = f"data.train={options.train} and data.test={options.test}"
    if len(pool) < options.train + options.test:
        raise UserError(
            f"{wanted} need {options.train + options.test} questions, {options.name} has {len(pool)}; "
            f"lower them to a sum of {len(pool)} or less, or give more data"
        )
    units = _units(pool)
    order = [units[i] for i in draw.permutation(len(units))]
    best: tuple[list[_Asked], list[_Asked]] = ([], [])
    # Drawing in random order can spend a large unit badly; largest first wastes least, so it is the second try.
    for attempt in (order, sorted(order, key=len, reverse=True)):
        test, rest = _take(attempt, options.test)
        if len(rest) >= len(best[1]):
            best = test, rest
        if len(rest) >= options.train:
            break
    test, rest = best
    if len(rest) < options.train:
        raise UserError(
            f"{wanted}: {len(rest)} questions of {options.name} are left to train on once those that share a key with the test "
            f"set are out; set data.train={len(rest)} or less, or lower data.test"
        )
    return [rest[i] for i in draw.permutation(len(rest))[: options.train]], [test[i] for i in draw.permutation(len(test))]


def _take(units: Sequence[list[_Asked]], count: int) -> tuple[list[_Asked], list[_Asked]]:
    """Take exactly ``count`` questions in whole units where possible; return them and the untouched units' questions.

    Units that would overshoot are passed over; if the sum cannot be met, the smallest unit left is cut, and its
    other questions are used on neither side.
    """
    taken: list[_Asked] = []
    left: list[list[_Asked]] = []
    for unit in units:
        if len(unit) <= count - len(taken):
            taken += unit
        else:
            left.append(unit)
    if len(taken) < count and left:
        smallest = min(range(len(left)), key=lambda i: len(left[i]))
        taken += left.pop(smallest)[: count - len(taken)]
    return taken, [question for unit in left for question in unit]


def _units(questions: Sequence[_Asked]) -> list[list[_Asked]]:
    """Gather the questions that are bound by shared keys, directly or through others (union-find over the keys)."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = key = parent[parent[key]]
        return key

    for question in questions:
        first, *others = sorted(question.keys) or [""]
        for other in others:
            parent[root(other)] = root(first)
    units: dict[Any, list[_Asked]] = {}
    for question in questions:
        unit = root(min(question.keys)) if question.keys else question.identity
        units.setdefault(unit, []).append(question)
    return list(units.values())


def _overlaps(train: Sequence[_Asked], test: Sequence[_Asked]) -> dict[str, int]:
    """Count what train and test share: the check after the fact, on the lists that are really used."""
    questions = {question.identity for question in train} & {question.identity for question in test}
    keys = frozenset().union(*(q.keys for q in train)) & frozenset().union(*(q.keys for q in test))
    if questions or keys:
        raise RuntimeError(f"internal error: train and test share {len(questions)} questions and {len(keys)} keys; report it")
    return {"overlap_questions": 0, "overlap_keys": 0}


def _rows(notes: dict[str, Any]) -> dict[str, Any]:
    """A source's notes under the report's names."""
    renamed = {"rows": "rows_read", "dropped": "rows_dropped"}
    return {renamed.get(name, name): value for name, value in notes.items()}


def load_test(config: Config, asked: frozenset[str] = frozenset(), known: frozenset[str] | None = None) -> list[Sample]:
    """Return up to ``data.test`` questions of the file ``data.test_path`` alone, for evaluation without training.

    Args:
        config: ``seed`` and ``data`` are used; ``data.path`` is not read.
        asked, known: as for :func:`load`.

    Raises:
        UserError: the file is wrong, or holds no usable question.
    """
    options = config.data
    read = _only_known(DATASETS.get(options.name), options, known)
    source = _checked(read(options.model_copy(update={"path": options.test_path, "test_path": None})), options.name)
    pool = _without(_merge(source.samples or source.test or []), asked)
    if not pool:
        raise UserError(f"data.test_path={options.test_path}: no usable question in it; give another file")
    count = min(options.test, len(pool))
    return [question.sample for question in _draw(pool, count, "data.test", "questions", rng(config.seed, "split"))]


def _only_known(read: Callable[..., Any], options: Data, known: frozenset[str] | None) -> Callable[..., Any]:
    """Wrap a dataset so that, with ``data.only_known``, questions about facts the base has not read are left out."""
    if not options.only_known:
        return read
    if known is None:
        raise UserError(
            "data.only_known=true, but this base has no list of the facts it read; set it to false, or use a base of `undertow base build`"
        )

    def reading(options: Data) -> Any:
        loaded = _checked(read(options), options.name)
        kept = [sample for sample in loaded.samples if sample.key in known]
        test = None if loaded.test is None else [sample for sample in loaded.test if sample.key in known]
        notes = {**loaded.notes, "unknown_to_base": len(loaded.samples) - len(kept)}
        return Loaded(kept, test, notes)

    return reading
