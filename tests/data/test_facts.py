import gzip
import json
from pathlib import Path

import pytest

from undertow.config import Data
from undertow.core.errors import UserError
from undertow.data.load import DATASETS
from undertow.pretraining.corpus import FactRow, facts_corpus
from undertow.pretraining.facts import read_facts, refuse_few

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is absent")
FB = (
    "www.freebase.com/m/01\twww.freebase.com/people/person/place_of_birth\twww.freebase.com/m/02\twhere was ann born?\n"
    "www.freebase.com/m/03\twww.freebase.com/people/person/place_of_birth\twww.freebase.com/m/02\twhere was nobody born?\n"
    "www.freebase.com/m/01\twww.freebase.com/people/person/gender\twww.freebase.com/m/04\tis ann a woman\n"
)
EXPECTED = [FactRow("Ann", "place of birth", "Bonn, on the Rhine", "where?"), FactRow("Bob", "ship class", "frigate", "")]


def put(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "content",
    [
        "subject\trelation\tobject\tquestion\n"
        "Ann\tplace of birth\tBonn, on the Rhine\twhere?\nBob\tboats/ship/ship_class\tfrigate\t\n",
        "question,object,relation,Subject\n"
        'where?,"Bonn, on the Rhine",place of birth,Ann\r\n,frigate,boats/ship/ship_class,Bob\r\n',
        '{"subject": "Ann", "relation": "place of birth", "object": "Bonn, on the Rhine", "question": "where?"}\n'
        '{"subject": "Bob", "relation": "boats/ship/ship_class", "object": "frigate"}\n'
        '{"subject": null, "relation": "r", "object": "x"}\n',
    ],
)
def test_columns_in_any_separated_form(tmp_path, content):
    assert read_facts(put(tmp_path / "facts", content)) == EXPECTED
    (tmp_path / "facts.gz").write_bytes(gzip.compress(content.encode()))
    assert read_facts(tmp_path / "facts.gz") == EXPECTED


def test_a_file_without_questions(tmp_path):
    rows = read_facts(put(tmp_path / "f.tsv", "subject\trelation\tobject\nAnn\tpet\tcat\nAnn\tpet\tcat\n\tpet\tdog\nBob\tpet\t\n"))
    assert rows == [FactRow("Ann", "pet", "cat")]


def test_ids_need_names_of_subject_and_object(tmp_path):
    data, names = put(tmp_path / "fb.txt", FB), put(tmp_path / "n", "m/01\tAnn\nm/02\tBonn\n")
    assert read_facts(data, names) == [FactRow("Ann", "person place of birth", "Bonn", "where was ann born?")]
    with pytest.raises(UserError, match="none of its 3 rows has a named object"):
        read_facts(data)


def test_limit_draws_distinct_keys_at_random(tmp_path):
    lines = [f"S{i % 50}\tr\to{i}\n" for i in range(100)]
    data = put(tmp_path / "f.tsv", "subject\trelation\tobject\n" + "".join(lines))
    everything = read_facts(data)
    some = read_facts(data, limit=10, seed=1)
    assert len({row.key for row in some}) == 10
    assert some == [row for row in everything if row.key in {kept.key for kept in some}]
    assert len(some) == 20
    assert read_facts(data, limit=10, seed=1) == some
    assert read_facts(data, limit=10, seed=2) != some
    assert read_facts(data, limit=50) == everything == read_facts(data, limit=999)
    with pytest.raises(UserError, match="limit of facts is 0"):
        read_facts(data, limit=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,c\n1,2,3\n", "line 1: no columns subject, relation, object"),
        ("subject,relation,object\na,b\n", "line 2: 2 columns, the header has 3"),
        ("subject,relation,object\n", "none of its 0 rows"),
        ("one\ttwo\n", "line 1: 2 columns, SimpleQuestions has 4|no columns"),
        ('{"subject": "a", "relation": "b"}\n', "line 1: no column 'object'"),
    ],
)
def test_malformed_facts(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_facts(put(tmp_path / "bad", content))


def simplequestions_keys(path: Path, names: Path | None) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for sample in DATASETS.get("simplequestions")(Data(name="simplequestions", path=str(path), names=names and str(names))).samples:
        found.setdefault(sample.question, set()).add(sample.key)
    return found


@pytest.mark.parametrize("kind", ["fb", "named"])
def test_keys_equal_those_of_the_dataset(tmp_path, kind):
    if kind == "fb":
        data, names = put(tmp_path / "fb.txt", FB), put(tmp_path / "n", "m/01\tAnn\nm/02\tBonn\nm/04\tfemale\n")
    else:
        row = {"question": " who? ", "answer": "A", "subject": " Ann ", "relation": "www.freebase.com/a/ship/ship_class"}
        data, names = put(tmp_path / "f.jsonl", json.dumps(row)), None
    keys = simplequestions_keys(data, names)
    rows = read_facts(data, names)
    assert rows
    assert all(row.key in keys[row.question] for row in rows)


@real
@pytest.mark.parametrize(
    ("file", "names", "least"),
    [
        ("simplequestions_wikidata_named.jsonl.gz", None, 22000),
        ("annotated_wd_data_valid.txt.gz", "simplequestions_wikidata_named.jsonl.gz", 2200),
        ("annotated_fb_data_valid.txt", "simplequestions_freebase_named.jsonl.gz", 3400),
    ],
)
def test_real_keys_equal_those_of_the_dataset(file, names, least):
    folder = SHARED / "simplequestions"
    table = folder / names if names else None
    keys = simplequestions_keys(folder / file, table)
    rows = read_facts(folder / file, table)
    assert len(rows) > least
    assert all(row.key in keys[row.question] for row in rows)


@pytest.mark.parametrize(("count", "asked", "left"), [(2, 0.25, 2), (26, 0.25, 20), (25, 0.24, 19), (150, 0.9, 15)])
def test_facts_of_which_too_few_are_left_to_tune_on_are_refused(tmp_path: Path, count: int, asked: float, left: int) -> None:
    lines = [f"Person {i}\ttown\tTown {i}\twhere does person {i} live?" for i in range(count)]
    path = put(tmp_path / "f.tsv", "\n".join(["subject\trelation\tobject\tquestion", *lines]) + "\n")
    corpus = facts_corpus(read_facts(path), asked, 0)
    assert len(set(corpus.known) - set(corpus.asked)) == left
    if left >= 20:
        refuse_few(corpus, path)
        return
    with pytest.raises(UserError, match=rf"f\.tsv: {count} facts, .* 20 others are needed"):
        refuse_few(corpus, path)
