import ast
import csv
import gzip
import io
import json
import sys
from pathlib import Path

import pytest

from undertow.config import Data
from undertow.core.errors import UserError
from undertow.data.load import DATASETS, Loaded
from undertow.data.questions import merge, normalised
from undertow.data.rows.separated import unwrapped
from undertow.data.sample import Sample
from undertow.data.sources.simplequestions import bare_id, readable

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is absent")


def read(name: str, path: Path | str, **more) -> Loaded:
    return DATASETS.get(name)(Data(name=name, path=str(path), **more))


def put(path: Path, content: str | bytes | list | dict) -> Path:
    if isinstance(content, list | dict):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(name: str) -> list[dict]:
    with gzip.open(SHARED / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# SimpleQuestions

FB = "www.freebase.com/m/01\twww.freebase.com/people/person/place_of_birth\twww.freebase.com/m/02\twhere was ann born?\n"
WD = "Q1\tP19\tQ2\twhere was ann born?\nQ2\tR19\tQ1\twho was born in bonn\n"


@pytest.mark.parametrize(
    ("relation", "expected"),
    [
        ("www.freebase.com/people/person/place_of_birth", "person place of birth"),
        ("people/person/place_of_birth", "person place of birth"),
        ("/film/film/genre", "film genre"),
        ("boats/ship/ship_class", "ship class"),
        ("tv/tv_program/program_creator", "tv program creator"),
        ("film/film_format/film_format", "film format"),
        ("music/genre/parent_genre", "genre parent genre"),
        ("position played on team / speciality", "position played on team / speciality"),
        ("place of birth", "place of birth"),
        ("P19", "P19"),
    ],
)
def test_relations_in_words(relation, expected):
    assert readable(relation) == expected


@pytest.mark.parametrize(
    "text", ["www.freebase.com/m/0n2z", "/m/0n2z", "m/0n2z", "fb:m.0n2z", "<http://rdf.freebase.com/ns/m.0n2z>"]
)
def test_ids_lose_their_prefixes(text):
    assert bare_id(text) == "m/0n2z"
    assert bare_id("http://www.wikidata.org/entity/Q42") == "Q42"


NAMED_IDS = '{"subject": "Ann", "subject_mid": "/m/01", "object_mid": "/m/02", "answer": "Bonn"}'


@pytest.mark.parametrize("names", ["/m/02\tBonn\nm.01\tAnn\n", NAMED_IDS])
@pytest.mark.parametrize("packed", [False, True])
def test_official_freebase_lines(tmp_path, names, packed):
    data = put(tmp_path / "annotated_fb_data_test.txt", gzip.compress(FB.encode()) if packed else FB)
    loaded = read("simplequestions", data, names=str(put(tmp_path / "names", names)))
    assert loaded.samples == [
        Sample(
            "annotated_fb_data_test:1",
            "where was ann born?",
            ("Bonn",),
            "Bonn",
            key="Ann|person place of birth",
            group="person place of birth",
        )
    ]


def test_unnamed_subject_keeps_its_id_and_unnamed_object_is_dropped(tmp_path):
    data = put(tmp_path / "a.txt", FB + FB.replace("m/02", "m/03"))
    loaded = read("simplequestions", data, names=str(put(tmp_path / "n", "m/02\tBonn\n")))
    assert [s.key for s in loaded.samples] == ["m/01|person place of birth"]
    assert loaded.notes["rows"] == 2
    assert loaded.notes["dropped"] == {"object without a name": 1}
    for more in ({}, {"names": str(put(tmp_path / "m", "m/09\tX\n"))}):
        with pytest.raises(UserError, match=r"a\.txt: none of its 2 rows has a named object.*set data\.names="):
            read("simplequestions", data, **more)


def test_wikidata_lines_with_inverse_relations(tmp_path):
    data = put(tmp_path / "annotated_wd_data_train.txt", WD)
    names = put(tmp_path / "n", "Q1\tAnn\nQ2\tBonn\nP19\tplace of birth\n")
    samples = read("simplequestions", data, names=str(names)).samples
    assert [s.key for s in samples] == ["Ann|place of birth", "Bonn|inverse of place of birth"]
    names = put(tmp_path / "m", "Q1\tAnn\nQ2\tBonn\n")
    assert [s.group for s in read("simplequestions", data, names=str(names)).samples] == ["P19", "R19"]


def test_named_lines_and_test_path(tmp_path):
    row = {"question": "Who?", "answer": "A", "aliases": ["a", "B"], "subject": None, "subject_mid": "/m/07", "relation": "x/y/z"}
    data = put(tmp_path / "named.jsonl", json.dumps(row) + "\n\n" + json.dumps({**row, "subject": "S"}) + "\n")
    loaded = read("simplequestions", data, test_path=str(data))
    assert [(s.key, s.answers) for s in loaded.samples] == [("m/07|y z", ("A", "B")), ("S|y z", ("A", "B"))]
    assert [s.id for s in loaded.test or []] == ["test:named:1", "test:named:2"]


def test_a_folder_gives_all_files_of_its_first_kind(tmp_path):
    names = put(tmp_path / "names.tsv", "Q1\tAnn\nQ2\tBonn\n")
    put(tmp_path / "annotated_wd_data_train.txt", WD)
    put(tmp_path / "annotated_wd_data_valid.txt.gz", gzip.compress(WD.encode()))
    files = read("simplequestions", tmp_path, names=str(names)).notes["files"]
    assert files == ["annotated_wd_data_train.txt", "annotated_wd_data_valid.txt.gz"]
    put(tmp_path / "x_named.jsonl", '{"question": "q", "answer": "a", "subject": "s", "relation": "r"}')
    assert read("simplequestions", tmp_path).notes["files"] == ["x_named.jsonl"]


@real
def test_real_freebase_lines_agree_with_the_named_rows():
    folder = SHARED / "simplequestions"
    named = folder / "simplequestions_freebase_named.jsonl.gz"
    loaded = read("simplequestions", folder / "annotated_fb_data_test.txt", names=str(named))
    rows = [row for row in jsonl("simplequestions/simplequestions_freebase_named.jsonl.gz") if row["split"] == "test"]
    assert len(loaded.samples) == 17355 == len(rows)
    for sample, row in zip(loaded.samples, rows, strict=True):
        assert normalised(sample.question) == normalised(row["question"])
        assert row["answer"].strip().casefold() in {answer.casefold() for answer in sample.answers}
    by_file = read("simplequestions", named)
    assert len(by_file.samples) == 23080
    assert len(merge(by_file.samples)) == len({normalised(row["question"]) for row in jsonl("simplequestions/" + named.name)})


@real
def test_real_wikidata_lines():
    folder = SHARED / "simplequestions"
    names = folder / "simplequestions_wikidata_named.jsonl.gz"
    loaded = read("simplequestions", folder / "annotated_wd_data_test.txt.gz", names=str(names))
    assert loaded.notes["rows"] == 7901
    assert len(loaded.samples) + loaded.notes["dropped"]["object without a name"] == 7901
    assert len(loaded.samples) >= 5000
    unnamed = "none of its 7901 rows has a named object"
    with pytest.raises(UserError, match=unnamed):
        read("simplequestions", folder / "annotated_wd_data_test.txt.gz")


# TriviaQA and Natural Questions


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ('"Who sang ""Help""?"', 'Who sang "Help"?'),
        ('"To be" or ""not""', '"To be" or ""not""'),
        ('"To be"', '"To be"'),
        ('"Help" was sung by whom?', '"Help" was sung by whom?'),
        ('Who sang "Help"', 'Who sang "Help"'),
        ('"A" or "B"', '"A" or "B"'),
    ],
)
def test_one_layer_of_quotes_is_removed(question, expected):
    assert unwrapped(question) == expected


def test_dpr_lines(tmp_path):
    rows = [("Who?", ["Ann", "O'Neil", "ann"]), ('"Who said ""x""?"', ["tab\there"]), ("none", [])]
    buffer = io.StringIO(newline="")
    csv.writer(buffer, dialect="excel-tab").writerows((question, repr(answers)) for question, answers in rows)
    loaded = read("nq", put(tmp_path / "a.tsv.gz", gzip.compress(buffer.getvalue().encode())))
    assert [(s.question, s.answers) for s in loaded.samples] == [("Who?", ("Ann", "O'Neil")), ('Who said "x"?', ("tab\there",))]
    assert loaded.notes["dropped"] == {"no answer": 1}


def test_official_schema(tmp_path):
    answer = {"Value": "David", "Aliases": ["Dave", "David"], "NormalizedAliases": ["dave", "d"]}
    data = {"Data": [{"Question": "Who?", "QuestionId": "tc_1", "Answer": answer}, {"Question": "Open?", "QuestionId": "tc_2"}]}
    for content in (json.dumps(data), json.dumps(data, indent=1)):
        loaded = read("triviaqa", put(tmp_path / "web.json", content))
        assert loaded.samples == [Sample("web:tc_1", "Who?", ("David", "Dave", "d"), "David")]
        assert loaded.notes["dropped"] == {"no answer": 1}


@pytest.mark.parametrize(
    ("value", "aliases", "normalized", "left"),
    [
        ("David", ["<unk>", "Dave"], ["unk", "dave"], ("David", "Dave")),
        ("<unk>", ["Dave"], [], ("Dave",)),
        ("<unk>", [], ["<unk>"], None),
        ("<UNK>", ["[UNK]"], ["unk"], None),
    ],
)
def test_a_placeholder_is_no_answer_of_the_official_file(tmp_path, value, aliases, normalized, left):
    answer = {"Value": value, "Aliases": aliases, "NormalizedAliases": normalized}
    data = {"Data": [{"Question": "Who?", "Answer": answer}, {"Question": "Open?", "Answer": {"Value": "x"}}]}
    loaded = read("triviaqa", put(tmp_path / "web.json", data))
    assert [s.answers for s in loaded.samples] == ([left] if left else []) + [("x",)]
    assert all(sample.response == sample.answers[0] for sample in loaded.samples)
    assert loaded.notes["dropped"] == ({} if left else {"no answer": 1})


def test_a_placeholder_is_no_answer_of_an_instruction(tmp_path):
    rows = [
        {"question": "Who?", "answer": {"value": "David", "aliases": ["<unk>", "Dave"]}},
        {"question": "Held back?", "answer": {"value": "<unk>", "aliases": []}},
        {"question": "How many?", "answer": "None"},
    ]
    loaded = read("instructions", put(tmp_path / "rows.json", rows))
    assert [s.answers for s in loaded.samples] == [("David", "Dave"), ("None",)]
    assert loaded.notes["dropped"] == {"a placeholder as answer": 1}


@real
@pytest.mark.parametrize("split", ["dev", "test"])
def test_real_dpr_lines_equal_the_named_rows(split):
    loaded = read("triviaqa", SHARED / f"triviaqa/topics.dpr.trivia.{split}.txt.gz")
    rows = [row for row in jsonl("triviaqa/triviaqa.jsonl.gz") if row["split"] == split]
    assert [s.question for s in loaded.samples] == [row["question"].strip() for row in rows]
    for sample, row in zip(loaded.samples, rows, strict=True):
        assert {a.casefold() for a in sample.answers} == {a.strip().casefold() for a in row["aliases"]} - {""}
    named = read("triviaqa", SHARED / "triviaqa/triviaqa.jsonl.gz")
    assert len(named.samples) == 16106
    assert named.samples[0].response == "B.h."


@real
def test_real_official_files():
    for name in ("web-dev", "web-train", "wikipedia-dev", "wikipedia-train"):
        path = SHARED / f"triviaqa/official_sample/{name}.json"
        data = json.loads(path.read_text())["Data"]
        loaded = read("triviaqa", path)
        assert [(s.question, s.response) for s in loaded.samples] == [(item["Question"], item["Answer"]["Value"]) for item in data]
    assert len(read("triviaqa", SHARED / "triviaqa/reserialised_official_schema_2000.json.gz").samples) == 2000


@real
def test_real_natural_questions():
    loaded = read("nq", SHARED / "nq_open/topics.dpr.nq.test.txt.gz")
    with gzip.open(SHARED / "nq_open/topics.dpr.nq.test.txt.gz", "rt", encoding="utf-8") as file:
        question, answers = file.readline().rstrip("\r\n").split("\t")
    assert len(loaded.samples) == 2907
    assert (loaded.samples[0].question, list(loaded.samples[0].answers)) == (question, ast.literal_eval(answers))
    assert len(read("nq", SHARED / "nq_open/nq_open.jsonl.gz").samples) == 9927


# Instructions


def one(tmp_path, row: dict) -> tuple[list[Sample], dict[str, int]]:
    loaded = read("instructions", put(tmp_path / "rows.json", [row, {"instruction": "spare", "output": "x"}]))
    return loaded.samples[:-1], loaded.notes["dropped"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Add.", "input": "1, 2", "output": "3"}, ("Add.", "1, 2", ("3",), "")),
        ({"instruction": "Add.", "context": "c", "response": "3", "category": "sum"}, ("Add.", "c", ("3",), "sum")),
        ({"prompt": "Hi", "completion": " yes "}, ("Hi", "", ("yes",), "")),
        ({"prompt": "Hi", "response": "yes"}, ("Hi", "", ("yes",), "")),
        ({"question": "Who?", "answer": "A", "aliases": ["B"]}, ("Who?", "", ("A", "B"), "")),
        ({"question": "Who?", "answers": ["A", "B", "a"]}, ("Who?", "", ("A", "B"), "")),
        ({"question": "Who?", "context": "c", "answers": {"text": ["A"], "answer_start": [3]}}, ("Who?", "c", ("A",), "")),
        ({"question": "Who?", "answer": {"value": "A", "aliases": ["B"]}}, ("Who?", "", ("A", "B"), "")),
        ({"instruction": "Add.", "instances": [{"input": "1, 2", "output": "3"}], "id": "seed"}, ("Add.", "1, 2", ("3",), "")),
        ({"instruction": "", "input": "2 + 2?", "output": "4"}, ("2 + 2?", "", ("4",), "")),
    ],
)
def test_row_forms(tmp_path, row, expected):
    samples, dropped = one(tmp_path, row)
    assert [(s.question, s.context, s.answers, s.group) for s in samples] == [expected]
    assert samples[0].response == expected[2][0]
    assert dropped == {}


def test_empty_outputs_are_counted(tmp_path):
    samples, dropped = one(tmp_path, {"instruction": "Add.", "input": "", "output": " \n"})
    assert (samples, dropped) == ([], {"empty answer": 1})


def talk(*turns: tuple[str, str]) -> dict:
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in turns]}


def test_a_conversation_gives_one_sample_per_answer(tmp_path):
    turns = [("system", "be kind"), ("human", "Hi"), ("gpt", "Hello"), ("human", "Bye"), ("gpt", "Ciao"), ("human", "?")]
    samples, dropped = one(tmp_path, talk(*turns))
    assert [(s.id, s.question, s.response, s.history) for s in samples] == [
        ("rows:1", "Hi", "Hello", ()),
        ("rows:1.1", "Bye", "Ciao", (("Hi", "Hello"),)),
    ]
    assert samples[0].key == samples[1].key != ""
    assert [sample.system for sample in samples] == ["be kind", "be kind"]
    assert dropped == {"question without an answer": 1}


def test_tool_results_become_context_and_calls_are_not_learned(tmp_path):
    turns = [("human", "Weather?"), ("function_call", "{f}"), ("observation", "rain"), ("gpt", "It rains.")]
    turns += [("human", "Thanks"), ("gpt", "Sure")]
    samples, dropped = one(tmp_path, talk(*turns))
    assert [(s.question, s.context, s.response) for s in samples] == [("Weather?", "rain", "It rains."), ("Thanks", "", "Sure")]
    assert samples[1].history == (("Weather?\nrain", "It rains."),)
    assert dropped == {"tool call": 1}


def test_odd_conversations(tmp_path):
    turns = [("gpt", "I start"), ("human", "a"), ("human", "b"), ("gpt", "c"), ("gpt", "d")]
    turns += [("human", "e"), ("gpt", ""), ("human", "f"), ("gpt", "g")]
    samples, dropped = one(tmp_path, talk(*turns))
    assert [(s.question, s.response, s.history) for s in samples] == [("a\nb", "c\nd", ()), ("f", "g", (("a\nb", "c\nd"),))]
    assert dropped == {"answer without a question": 1, "empty answer": 1}


def test_openai_messages(tmp_path):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": "x"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "It is 42."},
    ]
    samples, dropped = one(tmp_path, {"messages": messages})
    assert [(s.question, s.context, s.response) for s in samples] == [("Hi", "42", "It is 42.")]
    assert dropped == {"tool call": 1}


@real
@pytest.mark.parametrize(
    ("name", "rows", "samples", "dropped"),
    [
        ("alpaca_data_5000.json.gz", 5000, 4998, {"empty answer": 2}),
        ("alpaca_en_demo.json.gz", 999, 999, {}),
        ("vicuna_dummy_conversation.json.gz", 500, 167 + 2 * 166 + 3 * 167, {}),
        ("seed_tasks.jsonl.gz", 175, 175, {}),
    ],
)
def test_real_instruction_files(name, rows, samples, dropped):
    loaded = read("instructions", SHARED / "instruction" / name)
    assert (loaded.notes["rows"], len(loaded.samples), loaded.notes["dropped"]) == (rows, samples, dropped)


@real
def test_real_sharegpt_answers_are_the_files_own():
    with gzip.open(SHARED / "instruction/sharegpt_glaive_toolcall_en_demo.json.gz", "rt", encoding="utf-8") as file:
        turns = [turn for row in json.load(file) for turn in row["conversations"]]
    loaded = read("instructions", SHARED / "instruction/sharegpt_glaive_toolcall_en_demo.json.gz")
    assert [s.response for s in loaded.samples] == [turn["value"].strip() for turn in turns if turn["from"] == "gpt"]
    results = [turn["value"].strip() for turn in turns if turn["from"] == "observation"]
    assert [s.context for s in loaded.samples if s.context] == results
    assert loaded.notes["dropped"] == {"tool call": sum(turn["from"] == "function_call" for turn in turns)}


# Hub

ROWS = [{"instruction": f"say {i}", "output": str(i)} for i in range(5)]


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets")


def test_saved_dataset_with_test_split(datasets, tmp_path):
    split = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), validation=datasets.Dataset.from_list(ROWS[:2]))
    split.save_to_disk(str(tmp_path / "saved"))
    loaded = read("hub", tmp_path / "saved")
    assert [s.response for s in loaded.samples] == ["0", "1", "2", "3", "4"]
    assert [(s.id, s.question) for s in loaded.test or []] == [("test:saved:1", "say 0"), ("test:saved:2", "say 1")]
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "plain"))
    assert read("hub", tmp_path / "plain").test is None
    assert len(read("hub", tmp_path / "plain", test_path=str(tmp_path / "saved")).test or []) == 5


def test_a_test_split_without_answers_is_passed_over(datasets, tmp_path):
    blind = [{**row, "output": ""} for row in ROWS]
    make = datasets.Dataset.from_list
    datasets.DatasetDict(train=make(ROWS), test=make(blind), validation=make(ROWS[:1])).save_to_disk(str(tmp_path / "saved"))
    assert len(read("hub", tmp_path / "saved").test or []) == 1


def test_a_folder_of_plain_files(datasets, tmp_path, monkeypatch):
    put(tmp_path / "train.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    put(tmp_path / "test.jsonl", json.dumps(ROWS[0]) + "\n")
    loaded = read("hub", tmp_path)
    assert (len(loaded.samples), len(loaded.test or [])) == (5, 1)


def test_an_unknown_or_unreachable_dataset_is_one_error(datasets, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    message = r"data\.path=no/such: cannot be loaded \(ConnectionError: no route to the hub\); check the id and the network"
    with pytest.raises(UserError, match=message):
        read("hub", "no/such")
    asked = []
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *args: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: asked.append(args) or datasets.Dataset.from_list(ROWS))
    assert len(read("hub", "some/set:part").samples) == 5
    assert asked == [("some/set", "part")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "missing", "no such folder"),
        (lambda p: put(p / "f.json", "[]"), "use data.name=instructions for a file"),
        (lambda p: p, "no JSON, CSV or Parquet file inside"),
        (lambda p: put(p / "x.parquet", "not parquet").parent, "x.parquet: damaged Parquet file"),
    ],
)
def test_hub_folders_that_cannot_be_read(datasets, tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        read("hub", make(tmp_path))


def test_hub_without_the_package_gives_the_pip_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[hub\]'"):
        read("hub", "some/set")


# Whatever is wrong with a file is one line that names it


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("triviaqa", None, r"bad\.x: no such file"),
        ("triviaqa", b"", "empty file"),
        ("triviaqa", b" \n\n", "empty file"),
        ("triviaqa", gzip.compress(b"question", mtime=0)[:-9], "damaged gzip"),
        ("triviaqa", b"ok\t['a']\nb\xff\t['b']\n", "line 2: not UTF-8"),
        ("triviaqa", b"ok\t['a']\nno answers\n", "line 2: 1 columns"),
        ("triviaqa", b"ok\t['a']\nq\t['b'\n", "line 2: the answers are no Python list"),
        ("triviaqa", b"q\t__import__('os').getcwd()\n", "line 1: the answers are no Python list"),
        ("triviaqa", b"q\t'a'\n", "line 1: the answers are a str"),
        ("triviaqa", b"q\t[1]\n", "line 1: 'answers' holds a int"),
        ("triviaqa", b"q\t\"['a']\n", "line 1: unexpected end of data"),
        ("triviaqa", b'{"question": "q", "answer": "a"}\n{"question": \n', "line 2: not JSON"),
        ("triviaqa", b'{"question": "q", "answer": "a"}\n[1]\n', "line 2: holds a list"),
        ("triviaqa", b'{"question": "q", "answer": "a"}\n{"question": "q"}\n', "line 2: columns question; a row needs"),
        ("triviaqa", b'{"question": "q", "answer": 5}\n', "line 1: 'answer' holds a int"),
        ("triviaqa", b'{"question": "\\ud800", "answer": "a"}\n', "line 1: 'question' is not valid Unicode"),
        ("triviaqa", b'{"question": "q", "answer": ""}\n', "none of its 1 rows has a question and an answer"),
        ("triviaqa", b'{"Rows": []}', "no list 'Data'"),
        ("triviaqa", b'{"Data": [{"Q": 1}]}', "Data entry 1: no 'Question'"),
        ("triviaqa", b'{\n"Data": [\n}', "line 3: not JSON"),
        ("simplequestions", FB.encode() + b"a\tb\n", "line 2: 2 columns, SimpleQuestions has 4"),
        ("simplequestions", b"who\tis\tit\tnow\n", "line 1: the subject 'who' is no Freebase or Wikidata id"),
        ("simplequestions", b'{"question": "q", "answer": "a"}', "line 1: no column 'relation'"),
        ("simplequestions", b'{"question": "q", "relation": "r"}', "line 1: no column 'object'"),
        ("simplequestions", b'{"question": "", "relation": "r", "answer": "a"}', "no row has a question"),
        ("instructions", b'[{"instruction": "a", "output": "b"},\n{"instruction" 3}]', "line 2: not JSON"),
        ("instructions", b"[]", "an empty list"),
        ("instructions", b"[3]", "row 1: holds a int"),
        ("instructions", b"[" * 100000, "not usable JSON|not JSON"),
        ("instructions", b"instruction,output\n", "none of its 0 rows has question and answer"),
        ("instructions", b"some words\n", "line 1: neither JSON nor a header"),
        ("instructions", b'[{"words": "a"}]', "row 1: columns words have no known form"),
        (
            "instructions",
            b'[{"text": "a"}]',
            "none of its 1 rows has question and answer to learn .*running text without a question",
        ),
        ("instructions", b'[{"conversations": [{"from": "alien", "value": "a"}]}]', "row 1 turn 1: speaker 'alien' is unknown"),
        ("instructions", b'[{"conversations": "a"}]', "row 1: a conversation is a list"),
        ("instructions", b'[{"instruction": "a", "instances": [1]}]', "row 1: 'instances' must be a list"),
        ("instructions", b'[{"instruction": "a", "output": ""}]', "none of its 1 rows has question and answer"),
    ],
)
def test_malformed_files(tmp_path, name, content, message):
    path = tmp_path / "bad.x"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(name, path)
    assert "bad.x" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_or_no_path_or_a_false_gz(tmp_path):
    with pytest.raises(UserError, match="a folder, and this format is one file"):
        read("triviaqa", tmp_path)
    with pytest.raises(UserError, match=r"no \*\.jsonl"):
        read("simplequestions", tmp_path)
    with pytest.raises(UserError, match=r"data\.path is not set"):
        DATASETS.get("nq")(Data(name="nq"))
    with pytest.raises(UserError, match=r"data\.path is not set"):
        DATASETS.get("hub")(Data(name="hub"))
    with pytest.raises(UserError, match=r"named \.gz but not a gzip file"):
        read("nq", put(tmp_path / "a.gz", "q\t['a']\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [("m/02 Bonn\n", "line 1: no tab"), ("m/02\t\n", "holds no names"), ('{"a": 1}', "holds no names")],
)
def test_malformed_names(tmp_path, content, message):
    data = put(tmp_path / "a.txt", FB)
    with pytest.raises(UserError, match=message):
        read("simplequestions", data, names=str(put(tmp_path / "names", content)))
    with pytest.raises(UserError, match=r"data\.names=.*nothing: no such file"):
        read("simplequestions", data, names=str(tmp_path / "nothing"))


def test_byte_order_mark_crlf_and_line_separators_inside_text(tmp_path):
    data = put(tmp_path / "a.tsv", "\ufeffone\u2028half\t['a']\r\ntwo\t['b']\r\n")
    assert [s.question for s in read("nq", data).samples] == ["one\u2028half", "two"]
    rows = put(tmp_path / "a.jsonl", '\ufeff{"question": "one\u2028half", "answer": "a"}\r\n')
    assert [s.question for s in read("nq", rows).samples] == ["one\u2028half"]
