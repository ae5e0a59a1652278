import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from tiny import Quiet
from undertow.config import Config, Data
from undertow.core.errors import UserError
from undertow.data import load as loading
from undertow.data.early import refuse_missing
from undertow.data.load import DATASETS, Loaded, load
from undertow.data.partition import shares
from undertow.data.questions import identity, merge, normalised
from undertow.data.sample import Sample
from undertow.federation.resolve import resolve

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"


def sample(i: int, question: str | None = None, key: str = "", answers: tuple[str, ...] = ("a",), **more) -> Sample:
    return Sample(f"s{i}", question or f"question {i}", answers, answers[0], key=key, **more)


def config(train: int = 5, test: int = 3, clients: int = 1, seed: int = 0, partition="iid", **data) -> tuple[Data, int, int]:
    values = {"name": "fake", "train": train, "test": test, "partition": partition, **data}
    return Config.model_validate({"data": values, "federation": {"clients": clients}}).data, seed, clients


@pytest.fixture
def dataset(monkeypatch):
    """Let data.name=fake give the samples a test names."""

    def put(samples: list[Sample], test: list[Sample] | None = None) -> None:
        loaded = Loaded(samples, test, {"rows": len(samples), "dropped": {"bad": 1}})
        monkeypatch.setattr(DATASETS, "get", lambda name: lambda options: loaded)

    return put


def test_normalised_as_the_shared_split_rule_says():
    assert normalised("  Who  WAS\tHe ? . ") == "who was he"
    assert normalised("What is 3.5?") == "what is 3.5"
    assert normalised("???") != normalised("...")


def test_merge_joins_answers_case_insensitively_and_keeps_the_first_row():
    merged = merge(
        [
            sample(0, "Who wrote it?", answers=("Ann", "ann", "Bob")),
            sample(1, "who  wrote it", "k|r", ("BOB", "Cid"), group="r"),
            sample(2, "who wrote it", context="in 1900"),
            sample(3, "who wrote it", history=(("hi", "hello"),)),
        ]
    )
    assert [m.id for m in merged] == ["s0", "s2", "s3"]
    assert merged[0] == Sample("s0", "Who wrote it?", ("Ann", "Bob", "Cid"), "Ann", key="k|r", group="r")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much], max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["", *"abcdefghijkl"])), min_size=1, max_size=50),
    own=st.none() | st.lists(st.tuples(st.integers(20, 50), st.sampled_from(["", *"klmno"])), min_size=1, max_size=12),
    train=st.integers(1, 12),
    test=st.integers(1, 6),
    clients=st.integers(1, 4),
    asked=st.sets(st.sampled_from("abk")),
    seed=st.integers(0, 5),
)
def test_split_is_exact_disjoint_and_repeatable(dataset, rows, own, train, test, clients, asked, seed):
    samples = [sample(i, f"Question {q}{'?' * (i % 3)}", key) for i, (q, key) in enumerate(rows)]
    tests = None if own is None else [sample(1000 + i, f"question {q}.", key) for i, (q, key) in enumerate(own)]
    dataset(samples, tests)
    chosen = config(train, test, clients, seed)
    try:
        split = load(*chosen, asked=frozenset(asked))
    except UserError:
        reject()
    assert (len(split.train), len(split.test)) == (train, test)
    assert sorted(s.id for c in split.clients for s in c) == sorted(s.id for s in split.train)
    keys_of = {}  # of every row, merged or not
    for row in [*samples, *(tests or [])]:
        keys_of.setdefault(normalised(row.question), set()).add(row.key)
    sides = []
    for side in (split.train, split.test):
        pool = samples if tests is None or side is split.train else tests
        questions = {normalised(s.question) for s in side}
        assert len(questions) == len(side)
        sides.append((questions, {r.key for r in pool if normalised(r.question) in questions} - {""}))
    assert not sides[0][0] & sides[1][0]
    assert not sides[0][1] & sides[1][1]
    assert not asked & (sides[0][1] | sides[1][1])
    assert (split.report["overlap_questions"], split.report["overlap_keys"]) == (0, 0)
    again = load(*chosen, asked=frozenset(asked))
    assert (again.train, again.test, again.clients, again.report) == (split.train, split.test, split.clients, split.report)
    json.dumps(split.report)


def test_another_seed_draws_other_samples(dataset):
    dataset([sample(i) for i in range(40)])
    assert {s.id for s in load(*config(seed=0)).test} != {s.id for s in load(*config(seed=1)).test}


def test_draw_is_uniform_without_keys(dataset):
    dataset([sample(i) for i in range(10)])
    hits = [0] * 10
    for seed in range(600):
        for s in load(*config(train=5, test=3, seed=seed)).test:
            hits[int(s.id[1:])] += 1
    # Each count is Binomial(600, 0.3): mean 180, sd 11.2; five sd keeps chance failures below 1e-5.
    assert all(abs(h - 180) < 56 for h in hits)


def test_a_question_about_two_subjects_ties_both_keys(dataset):
    rows = [sample(0, "where is springfield", "x|in"), sample(1, "where is springfield?", "y|in")]
    rows += [
        sample(2, "in what is x", "x|in"),
        sample(3, "in what is y", "y|in"),
        sample(4, "other", "z|in"),
        sample(5, "another", "w|in"),
    ]
    for seed in range(20):
        dataset(rows)
        split = load(*config(train=3, test=1, seed=seed))
        assert {s.id for s in split.test} <= {"s4", "s5"}
    dataset(rows)
    report = load(*config(train=1, test=1), asked=frozenset({"y|in"})).report
    assert report["excluded_asked"] == 2  # the ambiguous question and "in what is y"


def test_large_keys_do_not_make_a_possible_split_fail(dataset):
    dataset([sample(i, key="big") for i in range(100)] + [sample(100 + i, key=f"k{i}") for i in range(20)])
    for seed in range(5):
        for train, test in ((100, 20), (20, 100)):
            split = load(*config(train, test, seed=seed))
            assert (len(split.train), len(split.test)) == (train, test)


def test_too_few_questions_says_how_many_and_what_to_set(dataset):
    dataset([sample(i, f"q{i % 8}") for i in range(20)])
    with pytest.raises(UserError, match=r"data\.train=5 and data\.test=4 need 9 questions, fake has 8; lower them to a sum of 8"):
        load(*config(5, 4))
    dataset([sample(i, key="same") for i in range(20)])
    with pytest.raises(UserError, match=r"0 questions of fake are left to train on once .* share a key"):
        load(*config(5, 4))


def test_own_test_set_wins_over_training_rows(dataset):
    dataset(
        [sample(0, "shared one?", "a"), sample(1, "free", "b"), sample(2, "key is taken", "c"), sample(3, "free too", "d")],
        [sample(10, "Shared one"), sample(11, "about c", "c"), sample(12, "was asked", "e")],
    )
    split = load(*config(train=2, test=2), asked=frozenset({"e"}))
    assert {s.id for s in split.train} == {"s1", "s3"}
    assert {s.id for s in split.test} == {"s10", "s11"}
    assert split.report["removed_for_test"] == 2
    assert split.report["excluded_asked"] == 1
    assert split.report["test_set"] == "own"
    with pytest.raises(UserError, match=r"data\.test=3: there are 2 test questions"):
        load(*config(train=2, test=3), asked=frozenset({"e"}))
    with pytest.raises(UserError, match=r"data\.train=3: there are 2 questions of fake outside its test set"):
        load(*config(train=3, test=2), asked=frozenset({"e"}))


def test_response_all_joins_answers_for_training_alone(dataset):
    dataset([sample(i, answers=("A", "B", "C")) for i in range(8)])
    split = load(*config(response="all"))
    assert {s.response for s in split.train} == {"A; B; C"} == {s.response for c in split.clients for s in c}
    assert {s.response for s in split.test} == {"A"}
    assert {s.response for s in load(*config()).train} == {"A"}


def test_report_counts(dataset):
    dataset([sample(i, f"q{i % 9}", group="ab"[i % 9 % 2]) for i in range(12)])
    report = load(*config(train=6, test=2, clients=2, partition={"kind": "key"})).report
    assert report["rows_read"] == 12
    assert report["rows_dropped"] == {"bad": 1}
    assert report["questions"] == 9
    assert report["duplicates_merged"] == 3
    assert report["partition"]["kind"] == "key"
    assert sum(report["clients"]) == report["train"] == 6
    assert [sum(groups.values()) for groups in report["client_groups"]] == report["clients"]
    assert all(len(groups) == 1 for groups in report["client_groups"])


def test_violated_disjointness_is_an_internal_error(dataset, monkeypatch):
    dataset([sample(i) for i in range(8)])
    monkeypatch.setattr(loading, "divide", lambda pool, options, draw: (list(pool[:5]), list(pool[4:7])))
    with pytest.raises(RuntimeError, match="internal error: train and test share 1 questions"):
        load(*config())


def write(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    return str(path)


def test_one_file_per_client(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    files = [
        write(tmp_path / "a/train.jsonl", [("one?", "1"), ("two", "2"), ("One", "I")]),
        write(tmp_path / "b/train.jsonl", [("one", "1"), ("three", "3"), ("tested", "no")]),
    ]
    test = write(tmp_path / "test.jsonl", [("Tested?", "t"), ("five", "5")])
    partition = {"kind": "files", "files": files}
    split = load(*config(train=999, test=2, clients=2, name="triviaqa", partition=partition, test_path=test))
    assert [[s.question for s in client] for client in split.clients] == [["one?", "two"], ["one", "three"]]
    assert split.clients[0][0].answers == ("1", "I")
    assert len({s.id for s in [*split.train, *split.test]}) == 6
    assert split.train == [s for c in split.clients for s in c]
    assert (split.report["removed_for_test"], split.report["duplicates_merged"], split.report["clients"]) == (1, 1, [2, 2])
    drawn = load(*config(test=1, clients=2, name="triviaqa", partition=partition, path=test))
    assert len(drawn.test) == 1
    assert drawn.report["test_set"] == "drawn"
    with pytest.raises(UserError, match=r"no file; set data\.test_path"):
        load(*config(test=1, clients=2, name="triviaqa", partition=partition))


@pytest.mark.parametrize(
    ("sizes", "most", "kept"),
    [
        ([5, 5], 10, [5, 5]),
        ([9, 9], 7, [4, 3]),
        ([1, 9, 9], 10, [1, 5, 4]),
        ([2, 3, 100], 90, [2, 3, 85]),
        ([4, 4, 4], 3, [1, 1, 1]),
    ],
)
def test_rows_of_client_files_are_shared_level(sizes, most, kept):
    assert shares(sizes, most) == kept


def test_as_many_rows_of_client_files_as_data_train_asks_for(tmp_path):
    files = [write(tmp_path / f"{k}.jsonl", [(f"q {k} {i}", "a") for i in range(n)]) for k, n in enumerate((3, 40, 60))]
    test = write(tmp_path / "test.jsonl", [("five", "5")])
    options = {"clients": 3, "name": "triviaqa", "partition": {"kind": "files", "files": files}, "test_path": test}
    whole = load(*config(train=103, test=1, **options))
    split = load(*config(train=31, test=1, **options))
    assert split.report["clients"] == [3, 14, 14]
    assert (split.report["left_out_of_files"], whole.report["left_out_of_files"]) == (72, 0)
    for part, of in zip(split.clients, whole.clients, strict=True):
        assert [s for s in of if s in part] == part, "the order is that of the file"
    assert load(*config(train=31, test=1, **options)).clients == split.clients
    assert split.clients[1] != whole.clients[1][:14], "drawn at random"
    with pytest.raises(UserError, match=r"data\.train=2 is less than one row for each of 3 clients"):
        load(*config(train=2, test=1, **options))


@pytest.mark.parametrize("missing", ["path", "test_path", "files"])
def test_a_missing_file_is_told_by_its_own_option_before_others_are_read(tmp_path, missing):
    good, gone = write(tmp_path / "good.jsonl", [("one", "1"), ("two", "2")]), str(tmp_path / "gone.jsonl")
    options = {"path": good, "test_path": good}
    if missing == "files":
        options["partition"] = {"kind": "files", "files": [good, gone]}
    else:
        options[missing] = gone
    data, _, _ = config(test=1, clients=2, name="instructions", **options)
    option = "data.partition.files" if missing == "files" else f"data.{missing}"
    with pytest.raises(UserError, match=rf"^{option}={gone}: no such file"):
        refuse_missing(data)
    with pytest.raises(UserError, match=rf"^(FILE|{option})={gone}: no such file"):
        load(*config(test=1, clients=2, name="instructions", **options))


def test_a_malformed_file_is_told_before_the_base_is_loaded(tmp_path, small_config, monkeypatch):
    (tmp_path / "bad.jsonl").write_text('{"question": "a"\n')
    data = {
        "name": "instructions",
        "path": write(tmp_path / "good.jsonl", [("one", "1")]),
        "test_path": str(tmp_path / "bad.jsonl"),
    }
    monkeypatch.setattr("undertow.tasks.instruction.load_base", lambda options: pytest.fail("the base was loaded"))
    with pytest.raises(UserError, match=r"bad\.jsonl line \d: not JSON"):
        resolve(small_config({f"data.{key}": value for key, value in data.items()}), Quiet())


def test_a_client_file_that_is_all_test_is_refused(tmp_path):
    files = [write(tmp_path / "a.jsonl", [("one", "1")]), write(tmp_path / "b.jsonl", [("two", "2")])]
    with pytest.raises(UserError, match=r"b\.jsonl leaves client 1 without training rows"):
        load(*config(test=1, clients=2, name="triviaqa", partition={"kind": "files", "files": files}, test_path=files[1]))


def test_a_users_function_is_a_dataset_and_is_checked(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from undertow.data.load import Loaded\nfrom undertow.data.sample import Sample\n"
        "def good(options): return Loaded([Sample(f'm{i}', f'q {i}', ('a',), 'a') for i in range(9)], None, {})\n"
        "def bad(options): return [1]\n"
        "def twice(options): return Loaded([Sample('m', f'q {i}', ('a',), 'a') for i in range(9)], None, {})\n"
        "def void(options): return Loaded([Sample('m', 'q', (), '')], None, {})\n"
    )
    assert len(load(*config(name=f"{file}:good")).train) == 5
    for name, message in (("bad", "returned a list"), ("twice", "two samples have the id m"), ("void", "empty answer")):
        with pytest.raises(UserError, match=message):
            load(*config(name=f"{file}:{name}"))


def test_world_never_uses_what_the_base_was_asked():
    from undertow.data.generated import world

    asked = frozenset(fact.key for fact in world.facts() if fact.asked)
    split = load(*config(name="world", train=1000, test=300, clients=10, partition="dirichlet"), asked=asked)
    assert split.report["excluded_asked"] == 0
    assert not {s.key for s in [*split.train, *split.test]} & asked
    one = split.train[0].key
    assert load(*config(name="world", train=1000, test=300), asked=frozenset({one})).report["excluded_asked"] == 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is absent")
def test_real_simplequestions_split():
    path = str(SHARED / "simplequestions")
    split = load(*config(5000, 2000, 10, name="simplequestions", path=path, partition="dirichlet"))
    assert (len(split.train), len(split.test), len(split.clients)) == (5000, 2000, 10)
    assert not {identity(s) for s in split.train} & {identity(s) for s in split.test}
    assert not {s.key for s in split.train} & {s.key for s in split.test}


def test_registered_names():
    assert {"world", "simplequestions", "triviaqa", "nq", "instructions", "hub"} <= {entry.name for entry in DATASETS.entries()}
    assert all(entry.summary and entry.source for entry in DATASETS.entries())
    with pytest.raises(UserError, match="did you mean 'triviaqa'"):
        load(*config(name="trivia"))
    with pytest.raises(UserError, match="reads no file"):
        DATASETS.get("world")(Data(path="x"))
